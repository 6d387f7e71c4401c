"""The `lumina` command: a thin face over the library.

Exit codes: 0 done, 2 bad input (one sentence says what and how to mend it), 1 internal error.
"""

import os
import sys
import typing as tp

from ..errors import LuminaError


def main(argv: tp.Optional[tp.Sequence[str]] = None) -> None:
    """Entry point; the only place where an exception becomes an exit code."""
    from .app import app
    try:
        app(args=list(argv) if argv is not None else None, prog_name='lumina')
    except LuminaError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("Interrupted; what was finished is kept, and the same command goes on from there.", 130)
    except Exception as error:
        if os.environ.get('LUMINA_DEBUG'):
            raise
        _fail(f"Internal error ({type(error).__name__}: {_first_line(error)}). Set LUMINA_DEBUG=1 to see where, and "
              "report it.", 1)


def _fail(message: str, code: int) -> tp.NoReturn:
    print(f'Error: {message}' if code != 130 else message, file=sys.stderr)
    sys.exit(code)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else 'no message'
