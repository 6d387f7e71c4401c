"""Serve the page: on this machine alone unless asked otherwise, and to a wider world never without a password."""

import errno
import os
import socket
import typing as tp
from pathlib import Path

from ..errors import LuminaError
from .limits import Limits

if tp.TYPE_CHECKING:
    import gradio as gr

    from .desk import Desk

HISTORY = Path('outputs') / 'demo-history'


def serve(page: 'gr.Blocks', desk: 'Desk', host: str = '127.0.0.1', port: tp.Optional[int] = None,
          auth: tp.Sequence[tp.Tuple[str, str]] = (), share: bool = False, wait: bool = True) -> str:
    """Serve a page that `build_page` made; with `wait` until the server is stopped.

    Args:
        host (str), port (int, optional): Where to listen; any free port unless said.
        auth (sequence): (name, password) of everybody who may come in; nobody is asked where it is empty.
        share (bool): Also through Gradio's public tunnel, which takes a password.
    Returns:
        str: The address.
    Raises:
        LuminaError: for a tunnel without a password.
    """
    from .guard import Guard
    from .page import theme
    from .views import front
    expect_guarded(auth, share)
    guard = (Guard, (), dict(cache=desk.workplace.cache, admit=desk.admit, front=front()))  # as Starlette takes them
    try:
        _, local, public = page.launch(
            server_name=host, server_port=port, share=share, auth=list(auth) or None, prevent_thread_lock=True,
            quiet=True, show_error=False, allowed_paths=[], blocked_paths=[str(desk.studio.store.path)],
            max_file_size=desk.limits.upload_bytes, enable_monitoring=False, ssr_mode=False, pwa=False,
            mcp_server=False, footer_links=[], run_history=False, strict_cors=True,
            app_kwargs=dict(middleware=[guard], docs_url=None, redoc_url=None), theme=theme())
        address = str(public or local)
        print(f'The page is at {address}' + (f' and {local}' if public else ''), flush=True)
        if wait:
            page.block_thread()
        return address
    finally:
        if wait:
            page.close(verbose=False)
            desk.close()


def expect_guarded(auth: tp.Sequence[tp.Tuple[str, str]], share: bool) -> None:
    """Raise LuminaError where the page would be open to the world."""
    if share and not auth:
        raise LuminaError("A page that is shared must ask for a password; name one by --auth NAME:PASSWORD.")
    for name, password in auth:
        if not name or len(password) < 8:
            raise LuminaError(f"The password of “{name}” is shorter than 8 characters; choose a longer one for --auth "
                              "NAME:PASSWORD.")


def parse_auth(given: tp.Sequence[str]) -> tp.List[tp.Tuple[str, str]]:
    """(name, password) of each NAME:PASSWORD.

    Raises:
        LuminaError: for anything else.
    """
    for one in given:
        if ':' not in one:
            raise LuminaError("--auth takes NAME:PASSWORD, and there is no colon in what was given.")
    return [(name, password) for name, _, password in (one.partition(':') for one in given)]


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
           host: str = '127.0.0.1', port: int = 7860, auth: tp.Sequence[tp.Tuple[str, str]] = (), share: bool = False,
           limits: tp.Optional[Limits] = None, history: tp.Optional[Path] = HISTORY,
           validation: tp.Optional[Path] = None, checkpoint: tp.Optional[str] = None) -> None:
    """Load a model with its store and serve the page until it is stopped; nothing is sent anywhere.

    Args:
        model (str or path): What `Studio` takes. store (Path, optional): Its store, the run's own unless said.
        checkpoint (str, optional): Whose weights the model has, as `Studio` takes it; the last unless said.
        history (Path, optional): Folder for reports of past generations; None keeps none.
        validation (Path, optional): Results of `lumina validate`; those beside the run unless said.
    Raises:
        LuminaError: for a host or port that cannot be listened at, a tunnel without a password, or what `Studio`
            raises.
    """
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')
    expect_guarded(auth, share)
    expect_free(host, port)
    from ..models import run_folder
    from ..workflows import Studio
    from .page import build_page
    studio = Studio(model, store, device=device, checkpoint=checkpoint)
    run = run_folder(model)
    if validation is None and studio.checkpoint is None:  # figures are of the last checkpoint
        validation = validation_beside(run)
    page, desk = build_page(studio, limits, history, validation, run.name if run else '')
    try:
        serve(page, desk, host, port, auth, share)
    except OSError:
        expect_free(host, port)  # somebody was quicker while the model was loaded
        raise


def validation_beside(run: tp.Optional[Path]) -> tp.Optional[Path]:
    """Where results of `lumina validate` lie that belong to a run: `outputs/validation` of its `outputs/xps/...`, or
    `validation` of the suite that it is part of."""
    if run is None:
        return None
    outputs = run.resolve().parents[1]
    return next((folder for folder in (outputs / 'validation', outputs) if (folder / 'lds').is_dir()), None)
