"""Seconds, and numbers that are kept: for the benchmarks of unlearning."""

import json
import time
import typing as tp
from pathlib import Path

from lumina_plugin.atomic import write_json
from lumina_plugin.validation.results import digest

Facts = tp.Dict[str, tp.Any]


class Watch:
    """Seconds of a block: on the clock, and of the processor, which other work on the machine changes less."""

    def __enter__(self) -> 'Watch':
        self._begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: tp.Any) -> None:
        self.wall, self.cpu = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]


def kept(out: Path, name: str, facts: tp.Any, make: tp.Callable[[], Facts]) -> Facts:
    """What `make` finds, which is made once."""
    path = out / 'kept' / f'{name}-{digest(facts)}.json'
    if not path.is_file():
        write_json(path, make())
    return tp.cast(Facts, json.loads(path.read_text(encoding='utf-8')))
