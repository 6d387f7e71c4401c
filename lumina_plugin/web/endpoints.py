"""What programs may call, by gradio_client or plain HTTP: stable names, typed values, files as files. docs/demo.md
describes each."""

import dataclasses
import typing as tp

import gradio as gr
from gradio.components.api_component import Api  # as gr.api makes: values that no browser has to draw

from .actions import friendly
from .certainty import certainty
from .desk import Desk

_Json = tp.Dict[str, tp.Any]


def add_endpoints(desk: Desk, model: str, light: str) -> None:
    """Add the endpoints to the page that is being built.

    Args:
        desk (Desk): Does the work. model (str), light (str): Queues for what takes the model, and for what does not.
    """
    calls = _Endpoints(desk)
    with gr.Column(visible=False):
        text, song, name, wanted, channel = (gr.Textbox('', label=label) for label in (
            'text', 'song', 'result', 'wanted', 'channel'))
        recording = gr.File(label='recording', type='filepath')
        prompt_seconds, seconds, seed = (gr.Number(value, label=label) for label, value in (
            ('prompt_seconds', 3), ('seconds', 10), ('seed', 0)))
        segment, page = gr.Number(0, label='segment', precision=0), gr.Number(1, label='page', precision=0)
        made, report, found = gr.Textbox(label='result'), *(
            Api(None, {'type': 'object', 'description': 'JSON'}, label) for label in ('report', 'found'))
        wav, html, csv = (gr.File(label=label) for label in ('wav', 'html', 'csv'))
        mine, theirs = gr.File(label='segment as WAV'), gr.File(label='song as WAV')

        def add(function: tp.Callable, inputs: tp.List[tp.Any], outputs: tp.List[tp.Any], queue: str) -> None:
            gr.Button(visible=False).click(function, inputs, outputs, api_name=function.__name__,
                                           api_description=function.__doc__, concurrency_id=queue)
        add(calls.generate, [text, song, recording, prompt_seconds, seconds, seed], [made, report, wav, html, csv],
            model)
        add(calls.attribute, [recording], [made, report, html, csv], model)
        add(calls.listen, [name, segment, song], [mine, theirs], light)
        add(calls.songs, [wanted, page], [found], light)
        add(calls.influence, [song], [found], light)
        add(calls.certainty, [name], [found], light)
        add(calls.explain, [name, song, channel], [found], light)
        add(calls.about, [], [found], light)


class _Endpoints:
    """One method per endpoint; a docstring is what clients are told of it."""

    def __init__(self, desk: Desk):
        self.desk = desk

    def generate(self, text: str, song: str, recording: tp.Optional[str], prompt_seconds: float, seconds: float,
                 seed: float, request: gr.Request) -> tp.Tuple[str, _Json, str, str, str]:
        """Generate a clip, of a text, or continuing a song of the catalogue or an upload, with its attribution."""
        with friendly(self.desk):
            made = self.desk.generate(text or '', song or '', recording, prompt_seconds, seconds, seed,
                                      request.session_hash or '')
            files = made.files
            return made.name, made.report.model_dump(mode='json'), str(files['wav']), str(files['html']), str(
                files['csv'])

    def attribute(self, recording: tp.Optional[str], request: gr.Request) -> tp.Tuple[str, _Json, str, str]:
        """Attribute a recording."""
        with friendly(self.desk):
            made = self.desk.attribute(recording, request.session_hash or '')
            return made.name, made.report.model_dump(mode='json'), str(made.files['html']), str(made.files['csv'])

    def listen(self, result: str, segment: float, song: str) -> tp.Tuple[str, str]:
        """A segment of a result, counted from 0, and the beginning of a song, to be compared by ear."""
        with friendly(self.desk):
            return str(self.desk.segment(result, int(segment))[0]), str(self.desk.excerpt(song))

    def songs(self, wanted: str, page: float) -> _Json:
        """Songs of the catalogue whose title, artist or id holds what is wanted, 20 at a time."""
        with friendly(self.desk):
            found = self.desk.songs(wanted or '', page)
            keys = ('id', 'title', 'artist', 'isrc', 'iswc', 'duration', 'status')
            return dict(found=found.found, page=found.page, pages=found.pages,
                        songs=[{key: getattr(track, key) for key in keys} for track in found.songs])

    def influence(self, song: str) -> _Json:
        """What a song was paid by the past generations that are kept."""
        with friendly(self.desk):
            track, found = self.desk.influence(song)
            return dict(song=track.id, channels={key: dataclasses.asdict(one) for key, one in found.items()})

    def certainty(self, result: str) -> _Json:
        """By channel: the null distribution with a result's songs on it, both gates, and the store's diagnosis."""
        with friendly(self.desk):
            report = self.desk.result(result).report if result else None
            return {one.channel: dataclasses.asdict(one) for one in certainty(self.desk.studio.attributor, report)}

    def explain(self, result: str, song: str, channel: str) -> _Json:
        """Why a song is paid in a result, or is not: every number with its formula. Of both channels unless said."""
        with friendly(self.desk):
            return dataclasses.asdict(self.desk.explanation(result, song, channel or None))

    def about(self) -> _Json:
        """Model, store, recipe, and what is allowed here."""
        studio = self.desk.studio
        return dict(model=self.desk.concealer.text(studio.musicgen.name), recipe=studio.attributor.recipe.name,
                    store=studio.store.path.name, songs=len(studio.store.tracks), channels=studio.store.channels,
                    limits=dataclasses.asdict(self.desk.limits))
