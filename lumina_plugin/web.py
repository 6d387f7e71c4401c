"""A minimal web page: generate with attributions attached, or attribute an upload; both channels side by side."""

import errno
import os
import socket
import tempfile
import typing as tp
from pathlib import Path

from .errors import LuminaError
from .report.schema import AttributionReport
from .report.words import channel_words

MAX_SECONDS = 30.
COLUMNS = ['song', 'artist', 'cosine', 'confidence %', 'STS', 'LIP %', 'share %']


def channel_rows(report: AttributionReport, channel: str, top: int = 10) -> tp.List[tp.List[tp.Any]]:
    """The `top` songs of a channel as table rows in the order of `COLUMNS`, and the unattributed remainder last."""
    found = report.channels[channel]
    rows: tp.List[tp.List[tp.Any]] = [
        [row.title, row.artist, round(row.cosine, 3), round(100 * row.confidence, 1), round(row.sts, 2),
         round(row.lip_percent, 1), round(100 * row.share, 1)] for row in found.rows[:top]]
    return [*rows, ['unattributed', '', None, None, None, None, round(100 * found.unattributed, 1)]]


def build_page(studio: tp.Any) -> tp.Any:
    """The Gradio page over a loaded `Studio`."""
    import gradio as gr
    folder, channels = Path(tempfile.mkdtemp(prefix='lumina-demo-')), studio.store.channels

    def shown(report: AttributionReport, html: Path) -> tp.List[tp.Any]:
        notes = '\n\n'.join(f'⚠ {warning}' for warning in report.warnings)
        return [*(channel_rows(report, channel) for channel in channels), notes, str(html)]

    def generate(text: str, prompt: tp.Optional[str], seconds: float, seed: float,
                 progress: gr.Progress = gr.Progress(track_tqdm=True)) -> tp.List[tp.Any]:  # noqa: B008 (gradio's way)
        from .workflows import Prompt
        with _friendly():
            clip = studio.generate(Path(tempfile.mkdtemp(dir=folder)), 'clip', text or None,
                                   Prompt(Path(prompt)) if prompt else None, seconds, seed=int(seed))[0]
        return [str(clip.audio), *shown(clip.report, clip.folder / 'report.html')]

    def attribute(upload: tp.Optional[str]) -> tp.List[tp.Any]:
        with _friendly():
            if not upload:
                raise LuminaError("No file was given; choose a recording first.")
            out = Path(tempfile.mkdtemp(dir=folder))
            report = studio.attribute(upload, out)
        return shown(report, out / 'report.html')

    def results() -> tp.List[tp.Any]:
        with gr.Row():
            tables = [gr.Dataframe(headers=COLUMNS, label=channel_words(channel).name, wrap=True)
                      for channel in channels]
        return [*tables, gr.Markdown(), gr.File(label='Report (HTML)')]

    with gr.Blocks(title='LUMINA attribution') as page:
        gr.Markdown(f"# Which songs shaped this music?\nModel {studio.musicgen.name}, {len(studio.store.tracks)} songs "
                    f"in the catalogue, recipe `{studio.attributor.recipe.name}`.")
        with gr.Tab('Generate'):
            with gr.Row():
                text = gr.Textbox(label='Description (may be empty)')
                prompt = gr.Audio(label='Continue the first 3 s of (may be empty)', type='filepath')
            with gr.Row():
                seconds = gr.Slider(4, MAX_SECONDS, 10, step=1, label='Seconds')
                seed = gr.Number(0, label='Seed', precision=0)
            button = gr.Button('Generate', variant='primary')
            audio = gr.Audio(label='Generated', type='filepath', interactive=False)
            button.click(generate, [text, prompt, seconds, seed], [audio, *results()], api_name='generate')
        with gr.Tab('Attribute a file'):
            upload = gr.Audio(label='Recording', type='filepath')
            button = gr.Button('Attribute', variant='primary')
            button.click(attribute, [upload], results(), api_name='attribute')
    return page.queue(max_size=16, default_concurrency_limit=1)


class _friendly:
    """Show a LuminaError as a message on the page."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: tp.Any, error: tp.Any, trace: tp.Any) -> None:
        if isinstance(error, LuminaError):
            import gradio as gr
            raise gr.Error(str(error)) from error


def expect_free(host: str, port: int) -> None:
    """Raise LuminaError where no server can listen at this address: told before a model is loaded."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            if os.name == 'posix':  # as servers do: an address that was in use a moment ago is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise LuminaError(f"Port {port} of {host} is taken by another program; choose another by --port.") from None
        if isinstance(error, PermissionError):
            raise LuminaError(f"Port {port} of {host} must not be used ({reason}); choose one above 1023 by "
                              "--port.") from None
        raise LuminaError(f"The page cannot be served at {host} ({reason}); give an address of this machine by --host, "
                          "such as 127.0.0.1.") from None


def launch(model: tp.Union[str, Path], store: tp.Optional[Path] = None, device: tp.Optional[str] = None,
           host: str = '127.0.0.1', port: int = 7860, **options: tp.Any) -> tp.Any:
    """Load a model with its store and serve the page; sends nothing anywhere. Returns when the server is stopped.

    Raises:
        LuminaError: for a host or port that cannot be listened at, or what `Studio` raises.
    """
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')
    from .workflows import Studio
    expect_free(host, port)
    page = build_page(Studio(model, store, device=device))
    try:
        return page.launch(server_name=host, server_port=port, share=False, **options)
    except OSError:
        expect_free(host, port)  # somebody was quicker while the model was loaded
        raise
