"""How far generations move when something is forgotten: their Fréchet distance to the songs, before and after.

Before, over several seeds: what another seed changes is the yardstick for what forgetting does
(arXiv 2506.18312, section 4).
"""

import functools
import typing as tp
from pathlib import Path

import numpy as np

from ..hashing import state_hash
from ..prepared import progress_bar
from ..validation.results import kept_parts
from .embeddings import Embedder, FloatArray, frechet
from .kept import songs_hash
from .recipe import UnlearningRecipe
from .scoring import Unlearner
from .step import lent_to
from .subject import Subject

SEEDS = 5  # sets of generations before anything is forgotten


class Drift:
    """Fréchet distances of a model's generations to its songs, kept as they are measured.

    Args:
        subject (Subject): The model and its songs. embedder (Embedder): What listens. out (Path): Where finished work
            is kept. generations (int): Clips of ten seconds per distance. moved (int): Pieces after whose forgetting
            they are generated.
    """

    def __init__(self, subject: Subject, embedder: Embedder, out: Path, generations: int = 32, moved: int = 3):
        self.subject, self.embedder, self.out = subject, embedder, out
        self.generations, self.moved = generations, moved

    @functools.cached_property
    def windows(self) -> FloatArray:
        """All windows of all songs, [W, D]."""
        songs = progress_bar(self.subject.songs, 'listening', len(self.subject.songs))
        return np.concatenate([self.embedder.windows(chunk) for song in songs for chunk in self.subject.sounds(song)])

    @functools.cached_property
    def facts(self) -> tp.Dict[str, tp.Any]:
        """All that a distance depends on besides what is forgotten, ready for JSON."""
        return {'model': state_hash(self.subject.weights), 'embedding': [self.embedder.name, self.embedder.facts],
                'songs': songs_hash(self.subject.songs)}

    def before(self) -> tp.List[float]:
        """Of the untouched model, over `SEEDS` seeds."""
        def drawn(seeds: tp.Sequence[int]) -> tp.Dict[str, FloatArray]:
            with lent_to(self.subject.module, None, {}, self.subject.state):
                return {'distance': np.array([self._distance(seed) for seed in seeds])}
        facts = {**self.facts, 'what': 'before', 'generations': self.generations}
        return list(kept_parts(self.out / 'kept', facts, list(range(SEEDS)), drawn, 'generations, before',
                               1)['distance'])

    def after(self, unlearner: tp.Callable[[], Unlearner], recipe: UnlearningRecipe, pieces: tp.Sequence[tp.Any]
              ) -> tp.List[float]:
        """After forgetting each of the first `moved` pieces, with the seed that `before` begins with.

        Args:
            unlearner (callable): Makes it where something is left to do. pieces (sequence): As they are before masks.
        """
        def drawn(some: tp.Sequence[tp.Any]) -> tp.Dict[str, FloatArray]:
            distances = []
            for piece in some:
                gone = unlearner().forget(self.subject.query_of(piece, recipe))
                with lent_to(self.subject.module, unlearner().learner, gone.offsets, self.subject.state):
                    distances.append(self._distance(0))
            return {'distance': np.array(distances)}
        some = list(pieces[:self.moved])
        if not some:
            return []
        facts = {**self.facts, 'what': 'after', 'generations': self.generations, 'recipe': recipe.hash,
                 'pieces': songs_hash(some)}
        return list(kept_parts(self.out / 'kept', facts, some, drawn, 'generations, after', 1)['distance'])

    def _distance(self, seed: int) -> float:
        """Of generations of the model as it is now."""
        made = self.subject.generated(self.generations, seed)
        return frechet(np.concatenate([self.embedder.windows(one) for one in made]), self.windows)
