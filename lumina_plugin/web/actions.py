"""What a click on the page does: the desk's work, drawn as HTML, and errors that a visitor can read."""

import contextlib
import logging
import os
import secrets
import typing as tp
from pathlib import Path

import gradio as gr

from ..errors import LuminaError
from ..report.schema import AttributionReport
from . import views
from .certainty import certainty
from .desk import Desk
from .measured import measured
from .results import Result

logger = logging.getLogger(__name__)

NOTHING_GENERATED = ("What was generated shows here, with the songs that it owes: publishing and master side by side, "
                     "with intervals, and whatever cannot be attributed.")
NOTHING_ATTRIBUTED = "Choose a recording, and the songs that it is closest to show here."
NOTHING_EXPLAINED = ("Generate music or attribute a file first. Then any song can be asked about here, paid or not: "
                     "each of its numbers, from cosine to share, with its formula.")
NOTHING_CHOSEN = "Choose a song to hear it, and to see what past generations paid it."
DOWNLOADS = ('html', 'json', 'csv', 'wav')
STARTS = {'nothing': 'Nothing', 'song': 'A song of the catalogue', 'recording': 'A recording of mine'}


@contextlib.contextmanager
def friendly(desk: Desk) -> tp.Iterator[None]:
    """Turn errors into messages: bad input as it is, without the server's folders; anything else as a number in the
    server's log."""
    try:
        yield
    except LuminaError as error:
        raise gr.Error(desk.concealer.error(str(error)), duration=None, print_exception=False) from None
    except gr.Error:
        raise
    except Exception as error:
        number = secrets.token_hex(4)
        logger.exception("Incident %s", number)
        raise gr.Error(f"Something broke on the server, not by your doing. Its log has it as incident {number}.",
                       duration=None, print_exception=False) from error


class Actions:
    """The page's functions over a desk.

    Args:
        desk (Desk): Does the work. validation (Path, optional): Folder with results of `lumina validate`.
        run (str): Name of the run that the model is of, where it is one.
    """

    def __init__(self, desk: Desk, validation: tp.Optional[Path] = None, run: str = ''):
        self.desk, self.validation, self.run = desk, validation, run

    def url(self, path: Path) -> str:
        """Where a browser finds a file: a copy of it goes to the folder that is served."""
        from gradio.processing_utils import save_file_to_cache
        copy = Path(save_file_to_cache(path, str(self.desk.workplace.cache)))
        os.utime(copy)  # from now on it is kept for as long as stated
        return f'gradio_api/file={copy}'

    # -- generate and attribute ---------------------------------------------------------------------------------------

    def generate(self, text: str, start: str, song: tp.Optional[str], recording: tp.Optional[str],
                 prompt_seconds: float, seconds: float, seed: float, request: gr.Request,
                 progress: gr.Progress = gr.Progress()) -> tp.List[tp.Any]:  # noqa: B008 (gradio's way)
        with friendly(self.desk):
            if start != 'nothing' and not (song if start == 'song' else recording):
                raise LuminaError(f"There is nothing to continue yet; choose {STARTS[start].lower()}, or start from "
                                  "nothing.")
            made = self.desk.generate(
                text or '', song or '' if start == 'song' else '', recording if start == 'recording' else None,
                prompt_seconds, seconds, seed, request.session_hash or '', progress)
            return self._shown(made)

    def attribute(self, recording: tp.Optional[str], request: gr.Request,
                  progress: gr.Progress = gr.Progress()) -> tp.List[tp.Any]:  # noqa: B008
        with friendly(self.desk):
            return self._shown(self.desk.attribute(recording, request.session_hash or '', progress))

    def stop(self, request: gr.Request) -> None:
        """Stop this visitor's work; also when the visitor leaves."""
        self.desk.stop(request.session_hash or '')

    def _shown(self, made: Result) -> tp.List[tp.Any]:
        files = made.files
        return [views.result(made, self.url(made.recording)), '',
                *(gr.DownloadButton(value=str(files[kind]), visible=True) for kind in DOWNLOADS),
                made.name, made.name]

    # -- look closer --------------------------------------------------------------------------------------------------

    def listen(self, name: str, event: gr.EventData) -> str:
        """A segment against a song, both to be heard."""
        with friendly(self.desk):
            mine, begin, end = self.desk.segment(name, int(event.segment))
            song = str(event.song)
            theirs = self.desk.excerpt(song)
            return views.player(self.url(mine), begin, end, self.url(theirs), self.desk.song(song))

    def songs(self, wanted: tp.Optional[str]) -> str:
        return views.catalogue(self.desk.songs(wanted or ''), wanted or '')

    def turn(self, wanted: tp.Optional[str], event: gr.EventData) -> str:
        return views.catalogue(self.desk.songs(wanted or '', event.page), wanted or '')

    def pick(self, event: gr.EventData) -> tp.List[str]:
        """A song's card, and its id."""
        with friendly(self.desk):
            track, influence = self.desk.influence(str(event.song))
            try:
                audio: tp.Optional[str] = self.url(self.desk.excerpt(track.id))
            except LuminaError:
                audio = None
            return [views.song(track, influence, self.desk.history.past(), audio, self.desk.studio.store.channels),
                    track.id]

    def certainty(self, name: str) -> str:
        """How sure: of the result at hand, or of the store alone."""
        with friendly(self.desk):
            report = self._report(name)
            attributor = self.desk.studio.attributor
            known = measured(self.validation, attributor.recipe.name)
            return views.certainty(certainty(attributor, report), report, known, self.url, self.run)

    def explain(self, name: str, song: tp.Optional[str]) -> str:
        with friendly(self.desk):
            report = self.desk.result(name).report
            wanted = (song or '').strip() or next(iter(report.channels.values())).rows[0].track_id
            return views.explanation(self.desk.explanation(name, wanted), report, self._route(report))

    def explain_anew(self, name: str, song: tp.Optional[str]) -> tp.List[tp.Any]:
        """For whoever opens the tab: the song at hand, else the closest one of the result."""
        if self._report(name) is None:
            return [views.nothing_yet(NOTHING_EXPLAINED), song]
        with friendly(self.desk):
            rows = next(iter(self.desk.result(name).report.channels.values())).rows
            wanted = song or max(rows, key=lambda row: row.share).track_id
            return [self.explain(name, wanted), wanted]

    def explain_other(self, name: str, event: gr.EventData) -> tp.List[str]:
        """Another song that was suggested."""
        return [self.explain(name, str(event.song)), str(event.song)]

    def _report(self, name: tp.Optional[str]) -> tp.Optional[AttributionReport]:
        try:
            return self.desk.result(name).report if name else None
        except LuminaError:  # deleted by now
            return None

    def _route(self, report: AttributionReport) -> tp.Dict[str, tp.List[tp.Tuple[str, str]]]:
        """What music and song pass through before they are compared, with this store's numbers."""
        from ..report.words import clean, count, seconds
        parts = len(next(iter(report.channels.values())).segments)
        codes = f'{self.desk.studio.musicgen.frame_rate:g} codes per second in {self.desk.studio.musicgen.lm.n_q} rows'
        gradient = f'at {count(len(report.checkpoints), "checkpoint")}'
        width = f'{self.desk.studio.store.identity.dim} numbers per channel'
        return {'music': [('This music', f'{seconds(report.query.duration)}, {count(parts, "part")}'), ('Codes', codes),
                          ('Gradient', gradient), ('Fingerprint g', width)],
                'song': [('A song', f'of {report.store.songs:,} in {clean(report.store.name, 20)}'), ('Codes', codes),
                         ('Gradient', gradient), ('Fingerprint k', width)]}
