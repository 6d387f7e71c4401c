"""No folder of the server in anything that a visitor sees."""

import json
import re
import typing as tp
from pathlib import Path

from ..report.schema import AttributionReport

_ABSOLUTE = re.compile(r'(?<![\w.:/])/(?:[^\s/\'"`“”]+/)+([^\s/\'"`“”]*)')


class Concealer:
    """Takes the server's folders out of texts: of each path only its last part stays.

    Args:
        paths (sequence of path): Folders and files that texts may name; those that do not exist are none.
    """

    def __init__(self, paths: tp.Iterable[tp.Union[str, Path]]):
        known = [Path(path) for path in paths if Path(path).exists()]
        seen = {form for path in known for form in (path, path.absolute(), path.resolve())}
        self._roots = sorted((str(root) for root in seen if len(root.parts) > 1), key=len, reverse=True)

    def error(self, text: str) -> str:
        """An error's text without any absolute path."""
        return _ABSOLUTE.sub(lambda found: found[1] or '…', self.text(text))

    def text(self, text: str) -> str:
        """The text with known folders left out: where /home/a is known, '/home/a/outputs/x.wav' becomes 'x.wav'."""
        for root in self._roots:
            while (begin := text.find(root)) >= 0:
                end = begin + len(root)
                while end < len(text) and not (text[end].isspace() or text[end] in '"\'`,;()<>“”'):
                    end += 1
                path = text[begin:end]
                bare = path.rstrip('.:')
                text = text[:begin] + (Path(bare).name or '…') + path[len(bare):] + text[end:]
        return text

    def report(self, report: AttributionReport) -> AttributionReport:
        """The report with known folders left out of all its texts."""
        before = report.model_dump(mode='json')
        after = self._walk(before)
        return report if after == before else AttributionReport.model_validate_json(json.dumps(after))

    def _walk(self, value: tp.Any) -> tp.Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self._walk(part) for key, part in value.items()}
        return [self._walk(part) for part in value] if isinstance(value, list) else value
