"""The attribution report: a versioned record of what was found (`schema`) and the ways to look at it (`render`).

Names load on first use, so that reading a report does not load jinja2 and rich, and so that
`python -m lumina_plugin.report.schema` runs its module once.
"""

import importlib
import typing as tp

if tp.TYPE_CHECKING:
    from .render import render_html, render_table, to_csv
    from .schema import AttributionReport, ChannelReport

__all__ = ['AttributionReport', 'ChannelReport', 'render_html', 'render_table', 'to_csv']
_HOME = {'AttributionReport': 'schema', 'ChannelReport': 'schema',
         'render_html': 'render', 'render_table': 'render', 'to_csv': 'render'}


def __getattr__(name: str) -> tp.Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f'.{_HOME[name]}', __name__), name)
