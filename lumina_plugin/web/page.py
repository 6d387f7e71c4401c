"""The page itself: five tabs of Gradio components, and which click does what."""

import os
import re
import typing as tp
from pathlib import Path

import gradio as gr

from ..report.words import clean
from . import actions, views
from .actions import Actions
from .desk import Desk
from .endpoints import add_endpoints

if tp.TYPE_CHECKING:
    from ..workflows import Studio
    from .limits import Limits

HERE = Path(__file__).parent
LISTED = 500  # songs of a catalogue that a menu offers; of a larger one it takes an id or a title
RECORDINGS = ['.wav', '.flac', '.ogg', '.oga', '.opus', '.mp3', '.m4a', '.mp4', '.aac', '.aif', '.aiff', '.webm']
MODEL, LIGHT = 'model', 'light'  # queues: one piece of work with the model at a time, some lookings-up beside it
LOOKINGS_UP = 4


class _Tabs(tp.NamedTuple):
    """What a result is shown by, in the tabs Generate and Attribute."""
    shown: gr.HTML
    player: gr.HTML
    files: tp.List[gr.DownloadButton]
    name: gr.Textbox


def build_page(studio: 'Studio', limits: tp.Optional['Limits'] = None, history: tp.Optional[Path] = None,
               validation: tp.Optional[Path] = None, run: str = '') -> tp.Tuple[gr.Blocks, Desk]:
    """The page over a loaded `Studio`, to be served by `serve`.

    Args:
        studio (Studio): Model and store. limits (Limits, optional): What visitors are allowed.
        history (Path, optional): Folder for reports of past generations; none are kept without.
        validation (Path, optional): Folder with results of `lumina validate`. run (str): Name of the model's run.
    """
    desk = Desk(studio, limits, history)
    os.environ['GRADIO_TEMP_DIR'] = str(desk.workplace.cache)  # read whenever a component or an app is made
    does = Actions(desk, validation, run)
    with gr.Blocks(title='LUMINA attribution', analytics_enabled=False) as page:
        add_endpoints(desk, MODEL, LIGHT)  # first: whoever comes first has a name for good
        gr.HTML(views.header(desk), apply_default_css=False, js_on_load=None)
        current = gr.Textbox(visible=False)  # name of the latest result
        song = gr.Textbox(visible=False)  # id of the song at hand
        with gr.Tabs(overflow_behavior='wrap'):  # on a phone all of them are seen, none in a menu
            with gr.Tab('Generate', id='generate'):
                _generate_tab(does, current)
            with gr.Tab('Attribute a file', id='attribute'):
                _attribute_tab(does, current)
            with gr.Tab('Catalogue', id='catalogue'):
                _catalogue_tab(does, song)
            with gr.Tab('How sure?', id='sure') as sure:
                certainty = gr.HTML(views.nothing_yet('One moment …'), apply_default_css=False, js_on_load=None)
            with gr.Tab('Explain', id='explain') as tab:
                _explain_tab(does, tab, current, song)
        gr.HTML(views.footer(desk.limits, desk.history.folder is not None), apply_default_css=False, js_on_load=None)
        sure.select(does.certainty, current, certainty, **_light())
        page.unload(does.stop)
    page.queue(max_size=desk.limits.queue, default_concurrency_limit=LOOKINGS_UP)
    return page, desk


def theme() -> gr.themes.Base:
    """How Gradio's own parts look. Fonts are the reader's own, so that nothing is fetched."""
    sans = ['-apple-system', 'Segoe UI', 'Roboto', 'Helvetica Neue', 'Arial', 'Liberation Sans', 'system-ui',
            'sans-serif']
    blue = gr.themes.Color('#eef3f9', '#dbe6f2', '#b9cbe2', '#93afd2', '#5f86b8', '#17457d', '#17457d', '#123864',
                           '#0e2c4f', '#0a203a', '#071729')
    look = gr.themes.Base(primary_hue=blue, secondary_hue=blue, neutral_hue=gr.themes.colors.stone, font=sans,
                          font_mono=['ui-monospace', 'Menlo', 'Consolas', 'Liberation Mono', 'monospace'],
                          radius_size=gr.themes.sizes.radius_sm)
    look.set(body_background_fill='#faf9f6', background_fill_secondary='#faf9f6', block_border_width='1px',
             block_label_background_fill='transparent', block_label_text_color='#565d67', block_shadow='none',
             button_primary_background_fill='#17457d', button_primary_background_fill_hover='#0e2c4f',
             button_primary_text_color='white')
    return look


def script(part: str) -> str:
    """One part of page.js."""
    parts = re.split(r'^//# (\w+)\n', (HERE / 'page.js').read_text(encoding='utf-8'), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[part]


def _model() -> tp.Dict[str, tp.Any]:
    """Of events that take the model: one after the other, whoever asks."""
    return dict(api_visibility='private', concurrency_id=MODEL, concurrency_limit=1)


def _light() -> tp.Dict[str, tp.Any]:
    return dict(api_visibility='private', concurrency_id=LIGHT, concurrency_limit=LOOKINGS_UP,
                show_progress='minimal')


def _shown(does: Actions, nothing: str) -> _Tabs:
    """Where a result is shown, with its downloads and A/B listening."""
    shown = gr.HTML(views.nothing_yet(nothing), apply_default_css=False, js_on_load=script('clicks'))
    player = gr.HTML(apply_default_css=False, js_on_load=script('player'), elem_classes='lumina-ab')
    name = gr.Textbox(visible=False)
    with gr.Row():
        files = [gr.DownloadButton(f'Download {kind.upper()}', visible=False, size='sm', min_width=120)
                 for kind in actions.DOWNLOADS]
    shown.listen(does.listen, name, player, **_light())
    return _Tabs(shown, player, files, name)


def _generate_tab(does: Actions, current: gr.Textbox) -> None:
    limits = does.desk.limits
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            text = gr.Textbox(label='What should it sound like?', placeholder='slow waltz, plucked strings', lines=2,
                              max_length=500, info='May be left empty.')
            start = gr.Radio([(label, key) for key, label in actions.STARTS.items()], value='nothing',
                             label='Start from')
            song = _song_menu(does.desk, 'Song to continue', visible=False)
            recording = _upload('Recording to continue', visible=False)
            most = min(10., limits.seconds / 2, 0.9 * does.desk.studio.musicgen.max_duration)  # it is heard at once
            prompt_seconds = gr.Slider(min(0.5, most / 2), most, min(3., most / 2), step=0.1,
                                       label='Seconds of it that are given', visible=False)
            seconds = gr.Slider(2, limits.seconds, min(10., limits.seconds), step=1, label='Length in seconds')
            seed = gr.Number(0, label='Seed', precision=0)
            with gr.Row():
                button = gr.Button('Generate', variant='primary', scale=3, min_width=120)
                stop = gr.Button('Stop', scale=1, min_width=80)
        with gr.Column(scale=9, min_width=320):
            tabs = _shown(does, actions.NOTHING_GENERATED)
    start.change(_choices, start, [song, recording, prompt_seconds], api_visibility='private', queue=False,
                 show_progress='hidden')
    event = button.click(
        does.generate, [text, start, song, recording, prompt_seconds, seconds, seed],
        [tabs.shown, tabs.player, *tabs.files, tabs.name, current],
        show_progress_on=[tabs.shown], **_model())
    text.submit(lambda: None, js="() => document.querySelector('#generate-button')?.click()", api_visibility='private',
                queue=False)
    button.elem_id = 'generate-button'
    stop.click(does.stop, cancels=[event], queue=False, api_visibility='private')


def _choices(start: str) -> tp.List[tp.Any]:
    """What can be chosen for a beginning of this kind."""
    return [gr.update(visible=start == 'song'), gr.update(visible=start == 'recording'),
            gr.update(visible=start != 'nothing')]


def _attribute_tab(does: Actions, current: gr.Textbox) -> None:
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            recording = _upload('Recording')
            with gr.Row():
                button = gr.Button('Attribute', variant='primary', scale=3, min_width=120)
                stop = gr.Button('Stop', scale=1, min_width=80)
        with gr.Column(scale=9, min_width=320):
            tabs = _shown(does, actions.NOTHING_ATTRIBUTED)
    event = button.click(does.attribute, recording, [tabs.shown, tabs.player, *tabs.files, tabs.name, current],
                         show_progress_on=[tabs.shown], **_model())
    stop.click(does.stop, cancels=[event], queue=False, api_visibility='private')


def _catalogue_tab(does: Actions, song: gr.Textbox) -> None:
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            wanted = gr.Textbox(label='Look for', placeholder='part of a title, an artist or an id', max_length=200)
            found = gr.HTML(does.songs(''), apply_default_css=False, js_on_load=script('clicks'))
        with gr.Column(scale=9, min_width=320):
            card = gr.HTML(views.nothing_yet(actions.NOTHING_CHOSEN), apply_default_css=False, js_on_load=None)
    wanted.change(does.songs, wanted, found, trigger_mode='always_last', **_light())
    found.turn(does.turn, wanted, found, **_light())
    found.pick(does.pick, None, [card, song], **_light())


def _explain_tab(does: Actions, tab: gr.Tab, current: gr.Textbox, song: gr.Textbox) -> None:
    menu = _song_menu(does.desk, 'Why was this song paid, or not?', any_name=True)
    shown = gr.HTML(views.nothing_yet(actions.NOTHING_EXPLAINED), apply_default_css=False, js_on_load=script('clicks'))
    tab.select(does.explain_anew, [current, song], [shown, menu], **_light())
    menu.input(does.explain, [current, menu], shown, **_light())
    shown.pick(does.explain_other, current, [shown, menu], **_light())


def _song_menu(desk: Desk, label: str, visible: bool = True, any_name: bool = False) -> gr.Dropdown:
    """A menu of songs; with `any_name`, or where there are too many to list, another name may be typed."""
    tracks = desk.studio.store.tracks
    choices = [(f'{clean(track.title or track.id, 60)} ({track.id})', track.id) for track in tracks[:LISTED]]
    return gr.Dropdown(choices, value=None, label=label, filterable=True, visible=visible,
                       allow_custom_value=any_name or len(tracks) > LISTED,
                       info=None if len(tracks) <= LISTED else f'The first {LISTED} songs are listed; any other by its '
                                                               'id or title.')


def _upload(label: str, visible: bool = True) -> gr.File:
    """Where a recording is dropped. A plain field for files: Gradio's audio player triples what a browser must load."""
    return gr.File(label=label, type='filepath', file_types=RECORDINGS, visible=visible, height=150)
