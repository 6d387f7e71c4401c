"""`lumina demo`: the web page. Nothing heavy is imported before it is asked for."""

import typing as tp
from pathlib import Path

import typer

from .options import Checkpoint

_LIMITS = 'Limits of the page'


def demo(
    model: tp.Annotated[tp.Optional[str], typer.Option(
        '--model', '-m', help="Folder or signature of a dora run, an exported folder, or a hub name; the quickstart's "
                              "run unless said.")] = None,
    store: tp.Annotated[tp.Optional[Path], typer.Option(
        '--store', '-s', help="Fingerprint store; the one beside the run's checkpoints unless said.")] = None,
    checkpoint: Checkpoint = None,
    device: tp.Annotated[tp.Optional[str], typer.Option(
        help="cpu or cuda; cuda where there is one unless said.")] = None,
    host: tp.Annotated[str, typer.Option(help="Address to listen on; this machine alone unless said.")] = '127.0.0.1',
    port: tp.Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
    auth: tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
        metavar='NAME:PASSWORD', help="Who may come in; may be repeated. Nobody is asked unless said.")] = None,
    share: tp.Annotated[bool, typer.Option(
        '--share', help="Also through Gradio's public tunnel, which needs --auth and the internet.")] = False,
    history: tp.Annotated[tp.Optional[Path], typer.Option(
        help="Folder for reports of past generations; outputs/demo-history unless said.")] = None,
    no_history: tp.Annotated[bool, typer.Option('--no-history', help="Remember no generation.")] = False,
    validation: tp.Annotated[tp.Optional[Path], typer.Option(
        help="Folder with results of `lumina validate`, to be shown; the one beside the run unless said.")] = None,
    max_upload_mb: tp.Annotated[float, typer.Option(min=1, rich_help_panel=_LIMITS, help="Largest upload, MiB.")] = 50.,
    max_upload_seconds: tp.Annotated[float, typer.Option(
        min=1, rich_help_panel=_LIMITS, help="Longest recording.")] = 300.,
    max_seconds: tp.Annotated[float, typer.Option(min=2, rich_help_panel=_LIMITS, help="Longest generation.")] = 30.,
    keep_minutes: tp.Annotated[float, typer.Option(
        min=1, rich_help_panel=_LIMITS, help="After so long uploads and results are deleted.")] = 60.,
    queue: tp.Annotated[int, typer.Option(min=1, rich_help_panel=_LIMITS, help="Visitors who may wait.")] = 32,
) -> None:
    """Open the web page: generate, attribute a file, hear songs against it, see how sure it is and why."""
    from ..web import Limits, launch
    from ..web.server import HISTORY, expect_guarded, parse_auth
    from ..workflows import quickstart_run
    people = parse_auth(auth or [])
    expect_guarded(people, share)
    limits = Limits(upload_mb=max_upload_mb, upload_seconds=max_upload_seconds, seconds=max_seconds,
                    keep_minutes=keep_minutes, queue=queue)
    launch(model or quickstart_run(), store, device=device, host=host, port=port, auth=people, share=share,
           limits=limits, history=None if no_history else history or HISTORY, validation=validation,
           checkpoint=checkpoint)
