"""Crossed songs: every composition in every production, none of them in any catalogue.

They tell what a channel finds. Two parts have nothing in common, neither compositions nor productions nor their styles:
one to fit on, one to measure on.
"""

import typing as tp
from dataclasses import dataclass

import numpy as np

from .composition import compose
from .production import STYLES, make_production
from .render import render
from .songs import PRODUCTIONS

PARTS = {'fit': 0, 'test': 1}
_FIRST = 1 << 50  # beyond the seeds of `songs`


@dataclass(frozen=True)
class CrossedSong:
    """One cell of the grid, by the numbers of its composition and its production."""
    part: str
    composition: int
    production: int

    def render(self, seconds: float) -> np.ndarray:
        """Samples `[T]`, float32 in [-1, 1], 16 kHz."""
        style = _styles(self.part)[self.production:self.production + 1]
        return render(compose(self._seed(0, self.composition)),
                      make_production(self._seed(1, self.production), style[0] if style else None), seconds,
                      self._seed(2, self.composition * 1000 + self.production))

    def _seed(self, kind: int, number: int) -> int:
        return _FIRST | PARTS[self.part] << 40 | kind << 36 | number


def crossed_songs(part: str, compositions: int, productions: int) -> tp.List[CrossedSong]:
    """The grid of a part ('fit' or 'test'), composition by composition; nothing is rendered yet."""
    return [CrossedSong(part, c, p) for c in range(compositions) for p in range(productions)]


def _styles(part: str) -> tp.Tuple[str, ...]:
    """The training catalogue's to fit, all others to test; what goes beyond them are hybrids."""
    return tuple(STYLES)[:PRODUCTIONS] if part == 'fit' else tuple(STYLES)[PRODUCTIONS:]
