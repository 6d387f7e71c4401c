"""What a pass over songs has summed so far, kept while it goes on, so that a stop costs a minute of it."""

import json
import logging
import time
import typing as tp
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..atomic import write_atomic

logger = logging.getLogger(__name__)

Tensors = tp.Dict[str, torch.Tensor]
FORMAT = 'lumina-fisher-partial-1'
EVERY = 60.  # seconds between two times that sums are written
PATIENCE = 20.  # and at least so many times what writing them took: large ones are written less often


class Partial:
    """Sums of a computation of several stages, one file each.

    Args:
        path (Path, optional): Of the result, beside which they lie; None keeps nothing.
        facts (mapping): All that the sums depend on but the songs that they are over, ready for JSON.
        every (float, optional): Seconds between two times that they are written; `EVERY` unless given, 0 always.
    """

    def __init__(self, path: tp.Optional[Path] = None, facts: tp.Optional[tp.Mapping[str, tp.Any]] = None,
                 every: tp.Optional[float] = None):
        self.path, self.every = path, EVERY if every is None else every
        self._facts = json.dumps(dict(facts or {}), sort_keys=True)
        self._due = time.monotonic() + self.every

    def read(self, stage: str) -> tp.Tuple[int, Tensors]:
        """How many songs are in a stage's sums, and the sums; 0 and nothing where none of this computation are kept."""
        place = self._place(stage)
        if place is None or not place.is_file():
            return 0, {}
        try:
            with safetensors.safe_open(str(place), 'pt') as file:
                header = file.metadata() or {}
                if header.get('format') == FORMAT and header.get('facts') == self._facts:
                    return int(header['done']), {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
            logger.warning("%s is damaged (%s) and is made again.", place, str(error).splitlines()[0])
        return 0, {}

    def offer(self, stage: str, done: int, sums: tp.Callable[[], tp.Mapping[str, torch.Tensor]]) -> None:
        """Write a stage's sums over its first `done` songs, if it is time to."""
        if self.path is None or time.monotonic() < self._due:
            return
        begun = time.monotonic()
        self.write(stage, done, sums())
        now = time.monotonic()
        self._due = now + (max(self.every, PATIENCE * (now - begun)) if self.every else 0.)

    def write(self, stage: str, done: int, sums: tp.Mapping[str, torch.Tensor]) -> None:
        """Write them now, whole or not at all."""
        place = self._place(stage)
        if place is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sums.items()}
            write_atomic(place, safetensors.torch.save(tensors, {'format': FORMAT, 'facts': self._facts,
                                                                 'done': str(done)}))

    def remove(self, *stages: str) -> None:
        """Remove what is kept of stages that nobody needs any more."""
        for stage in stages:
            place = self._place(stage)
            if place is not None:
                place.unlink(missing_ok=True)

    def _place(self, stage: str) -> tp.Optional[Path]:
        return None if self.path is None else self.path.with_suffix(f'.{stage}.partial')
