"""Scores of songs: how much worse the model is at each, once it has forgotten the query (mirrored influence).

τ(query, song) = L(song; θ without query) - L(song; θ0). One unlearning answers for all songs, because forgetting is
asked of the query instead of each of the songs (Ko et al. 2024; arXiv 2506.18312, section 3).
"""

import dataclasses
import math
import typing as tp

import numpy as np
import numpy.typing as npt
import torch

from ..capture import full_gradient
from ..errors import LuminaError
from .fisher import Fisher, Learner, Tensors, grouped, song_gradients
from .recipe import UnlearningRecipe
from .step import SIGN, Forgotten, forget

FloatArray = npt.NDArray[np.float64]
Progress = tp.Callable[[tp.Iterable[tp.Any]], tp.Iterable[tp.Any]]
SONGS_AT_ONCE = 64  # whose examples are in memory together
MODELS_BYTES = 4 * 2 ** 30  # of moved weights that are held at once


@dataclasses.dataclass(frozen=True)
class Unlearnt:
    """Scores of some queries.

    Args:
        scores (array): How much each song's loss rose, [Q, N] in nats per code (diffusion: squared velocity); NaN for
            songs that were not asked about.
        lr (array): [Q]. relative (array): ‖θ - θ0‖ / ‖θ0‖, [Q]. before, after (array): Losses of the queries, [Q].
    """
    scores: FloatArray
    lr: FloatArray
    relative: FloatArray
    before: FloatArray
    after: FloatArray


class Unlearner:
    """One model, its songs and its Fisher information.

    Args:
        learner (Learner): Under `recipe.objective`, for the layers that may move.
        fisher (Fisher): Of the same checkpoint.
        songs (sequence): N of them, each with an `id` and `examples`; masked already where the recipe says so.
        recipe (UnlearningRecipe): Step and readings.
            Where it reads another loss than it drives up, `learner.values` must take the name of an objective.
    Raises:
        LuminaError: for no songs.
    """

    def __init__(self, learner: Learner, fisher: Fisher, songs: tp.Sequence[tp.Any], recipe: UnlearningRecipe):
        if not songs:
            raise LuminaError("There is no song to score; give a catalogue that holds some.")
        self.learner, self.fisher, self.songs, self.recipe = learner, fisher, list(songs), recipe
        self.ids = [song.id for song in self.songs]
        self._before: tp.Optional[FloatArray] = None

    def forget(self, query: tp.Any) -> Forgotten:
        """Unlearn one query; `step.forget` says what it raises."""
        return forget(self.learner, self.fisher, query, self.recipe, len(self.songs))

    def before(self, progress: Progress = iter) -> FloatArray:
        """Readings of the songs at θ0, [N]; taken once."""
        if self._before is None:
            self._before = self._readings([self.learner], range(len(self.songs)), progress)[0]
        return self._before

    def known_before(self, losses: FloatArray) -> None:
        """Take readings at θ0 that were kept, [N]."""
        if losses.shape != (len(self.songs),):
            raise ValueError(f"{losses.shape} readings for {len(self.songs)} songs")
        self._before = losses

    def scores(self, queries: tp.Sequence[tp.Any], among: tp.Optional[tp.Sequence[tp.Sequence[int]]] = None,
               progress: Progress = iter) -> Unlearnt:
        """Unlearn queries and score songs. One pass over the songs serves as many queries as memory holds models for.

        Args:
            queries (sequence): Q of them, each with an `id` and `examples`.
            among (sequence of sequence of int, optional): For each query, which songs are asked about; all unless said.
            progress (callable): Wraps what is iterated over.
        """
        together, parts = self._together(), []
        for first in range(0, len(queries), together):
            asked = None if among is None else among[first:first + together]
            parts.append(self._some(queries[first:first + together], asked, progress))
        return Unlearnt(*(np.concatenate([getattr(part, field.name) for part in parts])
                          for field in dataclasses.fields(Unlearnt)))

    def linearised(self, queries: tp.Sequence[tp.Any], progress: Progress = iter) -> FloatArray:
        """First-order scores of the first step, ⟨∇L(song), θ - θ0⟩, [Q, N]: what finite steps have to beat.

        Raises:
            LuminaError: where another loss is read than is driven up.
        """
        if self.recipe.reading != self.recipe.objective:
            raise LuminaError(f"The linearisation is of the loss that is driven up ({self.recipe.objective}); read the "
                              "same, or leave the linearisation out.")
        together = self._together()
        return np.concatenate([self._linearised(queries[first:first + together], progress)
                               for first in range(0, len(queries), together)])

    def _linearised(self, queries: tp.Sequence[tp.Any], progress: Progress) -> FloatArray:
        """Those of as many queries as memory holds steps for."""
        steps = [self.forget_once(query) for query in queries]
        joined = {name: torch.stack([step.pop(name).flatten() for step in steps])  # [Q, o * i]
                  for name in self.learner.blocks}
        columns = []
        reducers = {name: full_gradient for name in self.learner.blocks}
        for group in progress(grouped(self.learner, self.songs)):
            found = np.zeros((len(queries), len(group)))
            for name, gradient in song_gradients(self.learner, group, reducers).items():  # [n, o, i]
                found += (joined[name] @ gradient.flatten(1).T).double().cpu().numpy()
            columns.append(found)
        return SIGN[self.recipe.objective] * np.concatenate(columns, axis=1)

    def forget_once(self, query: tp.Any) -> Tensors:
        """θ - θ0 of a single step, by block name."""
        once = self.recipe.model_copy(update={'steps': 1})
        return forget(self.learner, self.fisher, query, once, len(self.songs)).offsets

    def _some(self, queries: tp.Sequence[tp.Any], among: tp.Optional[tp.Sequence[tp.Sequence[int]]],
              progress: Progress) -> Unlearnt:
        found = [self.forget(query) for query in queries]
        scores = np.full((len(queries), len(self.songs)), np.nan)
        if among is None:
            scores[:] = self._readings([one.learner for one in found], range(len(self.songs)), progress)
            scores -= self.before(progress)
        else:
            for row, (one, asked) in enumerate(zip(found, among, strict=True)):
                known = self._before
                read = self._readings([one.learner] + [self.learner] * (known is None), asked, progress)
                scores[row, list(asked)] = read[0] - (read[1] if known is None else known[list(asked)])
        facts = (np.array([getattr(one, name) for one in found]) for name in ('lr', 'relative', 'before', 'after'))
        everything: tp.Sequence[int] = range(len(self.songs))
        self._expect_finite(scores, [everything] * len(queries) if among is None else among, found, queries)
        return Unlearnt(scores, *facts)

    def _expect_finite(self, scores: FloatArray, asked: tp.Sequence[tp.Sequence[int]], found: tp.Sequence[Forgotten],
                       queries: tp.Sequence[tp.Any]) -> None:
        for row, query in enumerate(queries):
            bad = [song for song in asked[row] if not np.isfinite(scores[row, song])]
            if bad:
                raise LuminaError(f"After forgetting {query.id} with lr {found[row].lr:.3g} the loss of "
                                  f"{self.ids[bad[0]]} is not finite; use a smaller lr, e.g. {found[row].lr / 10:.3g}.")

    def _readings(self, learners: tp.Sequence[Learner], songs: tp.Sequence[int], progress: Progress) -> FloatArray:
        """Readings of some songs under several models, [models, songs]: each song is prepared once for all of them."""
        found = np.zeros((len(learners), len(songs)))
        for first in progress(range(0, len(songs), SONGS_AT_ONCE)):
            some = [self.songs[i] for i in songs[first:first + SONGS_AT_ONCE]]
            read = [list(song.examples) for song in some]
            flat, sizes = [example for examples in read for example in examples], [len(examples) for examples in read]
            weights = torch.tensor([example.weight for example in flat], dtype=torch.float64).split(sizes)
            for row, learner in enumerate(learners):
                values = self._values(learner, flat).double().split(sizes)
                found[row, first:first + len(some)] = [
                    float((value * weight).sum() / weight.sum()) for value, weight in zip(values, weights, strict=True)]
        return found

    def _values(self, learner: Learner, examples: tp.Sequence[tp.Any]) -> torch.Tensor:
        reading = self.recipe.reading
        if reading == self.recipe.objective:
            return SIGN[reading] * learner.values(examples)
        return SIGN[reading] * tp.cast(tp.Any, learner).values(examples, reading)

    def _together(self) -> int:
        """How many moved models are held at once. What does not move is shared."""
        size = 4 * sum(block.out_features * block.in_features for block in self.learner.blocks.values())
        return max(1, math.floor(MODELS_BYTES / (2 * size)))
