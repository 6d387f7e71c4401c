"""The web page: generate with attributions attached, attribute a file, look a catalogue over, ask how sure and why.

`desk` does the work and knows no Gradio; `views` draws it as HTML; `page` and `endpoints` join both to Gradio;
`guard` stands between Gradio and the network; `server` starts it all.
"""

import importlib
import typing as tp

if tp.TYPE_CHECKING:
    from .limits import Limits
    from .page import build_page
    from .server import expect_free, launch, serve

__all__ = ['Limits', 'build_page', 'expect_free', 'launch', 'serve']
_HOME = {'Limits': 'limits', 'build_page': 'page', 'expect_free': 'server', 'launch': 'server', 'serve': 'server'}


def __getattr__(name: str) -> tp.Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f'.{_HOME[name]}', __name__), name)
