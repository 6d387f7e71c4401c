"""A query in two halves, its prompt and what follows, either of which counts as much as the other (`prompt_apart`)."""

import dataclasses
import typing as tp

import numpy as np

from .gradients import Example
from .resampling import Parts
from .scoring import FloatArray

Rows = tp.Dict[str, tp.List[np.ndarray]]  # by channel and checkpoint


@dataclasses.dataclass(frozen=True)
class Cut:
    """A query's n examples, cut where its prompt ends.

    Args:
        examples, of_piece, of_half: [n], with the piece and the half (0: prompt, 1: what follows) that each belongs to.
            A chunk's frames of one half are a piece, which several ways of encoding it may stand for.
        half, frames: [P], the half that each piece belongs to, and how much it counts there.
    """
    examples: tp.List[Example]
    of_piece: tp.List[int]
    of_half: tp.List[int]
    half: tp.List[int]
    frames: tp.List[float]


@dataclasses.dataclass(frozen=True)
class Halves:
    """Fingerprints of a query that was cut: of its halves, [2, D], and of its pieces, [P, D]."""
    cut: Cut
    halves: Rows
    pieces: Rows

    @property
    def whole(self) -> Rows:
        """The query's own [D]: the mean of its halves'."""
        return {channel: [two.mean(axis=0) for two in halves] for channel, halves in self.halves.items()}

    def parts(self, channel: str, cosines: tp.Sequence[FloatArray], scores: tp.Sequence[FloatArray],
              unit: tp.Tuple[bool, bool]) -> Parts:
        """What intervals are drawn from: the pieces of each half, with their cosines and scores."""
        return Parts(self.pieces[channel], self.halves[channel], self.cut.frames, cosines, scores, unit, self.cut.half)


def cut_at_prompt(examples: tp.Sequence[tp.Tuple[Example, int]], of_part: tp.Sequence[int]) -> tp.Optional[Cut]:
    """Cut a query's examples; None where all is prompt, or none of it.

    Args:
        examples: each with the frame before which it was given. of_part: the chunk that each belongs to.
    """
    found = []
    for (example, frame), part in zip(examples, of_part, strict=True):
        end = min(max(frame, example.start), example.stop)
        for half, start, stop in ((0, example.start, end), (1, end, example.stop)):
            if start < stop:
                found.append((half, part, dataclasses.replace(example, start=start, stop=stop)))
    found.sort(key=lambda one: one[0])
    pieces = {name: index for index, name in enumerate(sorted({(half, part) for half, part, _ in found}))}
    if len({half for half, _ in pieces}) < 2:
        return None
    of_piece, frames = [pieces[half, part] for half, part, _ in found], [0.] * len(pieces)
    for piece, (_, _, example) in zip(of_piece, found, strict=True):
        frames[piece] += example.weight
    return Cut([example for _, _, example in found], of_piece, [half for half, _, _ in found],
               [half for half, _ in pieces], frames)
