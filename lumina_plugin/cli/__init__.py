"""The `lumina` command: a thin face over the library.

Exit codes: 0 done, 2 bad input (one sentence says what and how to mend it), 1 internal error.
"""

import os
import sys
import typing as tp

from ..errors import LuminaError

_INTERRUPTED = "Interrupted; what was finished is kept, and the same command goes on from there."


def main(argv: tp.Optional[tp.Sequence[str]] = None) -> None:
    """Entry point; the only place where an exception becomes an exit code."""
    import typer

    from .app import app
    try:
        # not typer's own way to end: it would draw its errors in boxes and end silently at Ctrl-C, by returning 130
        code = app(args=list(argv) if argv is not None else None, prog_name='lumina', standalone_mode=False)
        if isinstance(code, int) and code:
            _fail(_INTERRUPTED if code == 130 else "Stopped.", code)
    except LuminaError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail(_INTERRUPTED, 130)
    except Exception as error:
        if hasattr(error, 'format_message'):  # the command line itself: an unknown option, a value out of range
            _fail_usage(error)
        if os.environ.get('LUMINA_DEBUG'):
            raise
        _fail(f"Internal error ({type(error).__name__}: {_first_line(error)}). Set LUMINA_DEBUG=1 to see where, and "
              "report it.", 1)


def _fail(message: str, code: int) -> tp.NoReturn:
    print(f'Error: {message}' if code != 130 else message, file=sys.stderr)
    sys.exit(code)


def _fail_usage(error: tp.Any) -> tp.NoReturn:
    """End with what typer has to say of a command line, in one sentence; where nothing was asked, help is printed."""
    if type(error).__name__ == 'NoArgsIsHelpError':
        error.show()
        sys.exit(2)
    command = error.ctx.command_path if getattr(error, 'ctx', None) else 'lumina'
    _fail(f"{error.format_message().strip().rstrip('.')}; see `{command} --help`.", 2)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else 'no message'
