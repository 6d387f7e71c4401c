"""`lumina unlearn self`: forget training songs, one at a time, and see whether the model loses them first.

Per layer group and mask: the rank of the target itself among all songs, how like the target its most and least affected
songs sound, and how far generations move (arXiv 2506.18312, section 4, train-to-train).
"""

import dataclasses
import functools
import logging
import math
import time
import typing as tp
from pathlib import Path

import numpy as np

from ..errors import LuminaError
from ..hashing import state_hash
from ..prepared import progress_bar
from ..validation.lds import Interval, interval
from ..validation.ranking import ranks_of
from ..validation.results import Panel, dots, kept_parts, save, table
from .drift import Drift
from .embeddings import Embedder, FloatArray, pick_targets
from .kept import songs_hash
from .recipe import UnlearningRecipe
from .scoring import Unlearner
from .subject import Subject

logger = logging.getLogger(__name__)

TOP = 10  # songs that are compared with the target


@dataclasses.dataclass(frozen=True)
class Group:
    """What one layer group under one mask gave.

    Args:
        recipe (UnlearningRecipe): Its keys. error (str): Why there is nothing; empty where there is.
        targets (list of str): Ids of the songs that were forgotten. ranks (list): Of each target itself.
        near, far (Interval): Cosine of the target with its top and bottom songs, itself left out.
        relative (float): ‖θ - θ0‖ / ‖θ0‖, mean. rise (float): How much the target's own loss rose, mean.
        frechet (list of float): Distance of generations to the songs after forgetting some of the targets.
        lr (float): Mean over the targets. seconds (float): Per target. NaN where an earlier version kept neither.
    """
    recipe: UnlearningRecipe
    error: str = ''
    targets: tp.List[str] = dataclasses.field(default_factory=list)
    ranks: tp.List[float] = dataclasses.field(default_factory=list)
    near: tp.Optional[Interval] = None
    far: tp.Optional[Interval] = None
    relative: float = 0.
    rise: float = 0.
    frechet: tp.List[float] = dataclasses.field(default_factory=list)
    lr: float = math.nan
    seconds: float = math.nan


@dataclasses.dataclass(frozen=True)
class Own:
    """All groups of one run.

    Args:
        run (str): Its name. embedding (str): What similarity and distance are of.
        songs (int): N. before (list of float): Fréchet distance of generations to the songs over seeds, nothing
            unlearnt.
    """
    run: str
    embedding: str
    songs: int
    before: tp.List[float]
    groups: tp.List[Group]


def measure(subject: Subject, recipes: tp.Sequence[UnlearningRecipe], embedder: Embedder, out: Path, targets: int = 40,
            generations: int = 32, moved: int = 3) -> Own:
    """Forget targets under each recipe; what was measured before is read.

    Args:
        recipes (sequence): One per layer group and mask. targets (int): Songs, picked by k-means on embeddings.
        generations (int): Clips of ten seconds per Fréchet distance; 0: none. moved (int): Targets after whose
            forgetting they are generated.
    """
    songs = progress_bar(subject.songs, 'listening', len(subject.songs))
    vectors = np.stack([embedder.song(subject.sounds(song)) for song in songs])  # [N, 2 D]
    chosen = pick_targets(vectors, targets)
    drift = Drift(subject, embedder, out, generations, moved) if generations else None
    before = drift.before() if drift else []
    groups = []
    for recipe in progress_bar(recipes, 'layers and masks', len(recipes)):
        try:
            groups.append(_group(subject, recipe, embedder, out, chosen, vectors, drift))
        except LuminaError as error:
            logger.warning("%s: %s", recipe.layers, error)
            groups.append(Group(recipe, str(error)))
    return Own(subject.folder.name, embedder.name, len(subject.songs), before, groups)


def _group(subject: Subject, recipe: UnlearningRecipe, embedder: Embedder, out: Path, chosen: tp.Sequence[int],
           vectors: FloatArray, drift: tp.Optional[Drift]) -> Group:
    @functools.cache
    def unlearner() -> Unlearner:
        return subject.unlearner(recipe, progress_bar)

    def scored(some: tp.Sequence[int]) -> tp.Dict[str, FloatArray]:
        unlearner()  # what is made once for all targets is not timed
        begun = time.perf_counter()
        found = unlearner().scores([subject.query_of(subject.songs[row], recipe) for row in some])
        return {'scores': found.scores, 'relative': found.relative, 'rise': found.after - found.before,
                'lr': found.lr, 'seconds': np.full(len(some), (time.perf_counter() - begun) / len(some))}
    facts = {'model': state_hash(subject.weights), 'embedding': [embedder.name, embedder.facts],
             'songs': songs_hash(subject.songs), 'recipe': recipe.hash, 'targets': list(map(int, chosen))}
    kept = kept_parts(out / 'kept', facts, chosen, scored, f'{recipe.layers}, {recipe.mask}')
    distances = drift.after(unlearner, recipe, [subject.songs[row] for row in chosen]) if drift else []
    near, far = _likeness(kept['scores'], chosen, vectors)
    return Group(recipe, '', [subject.songs[row].id for row in chosen],
                 [float(rank) for rank in ranks_of(kept['scores'], list(chosen))], interval(near), interval(far),
                 float(kept['relative'].mean()), float(kept['rise'].mean()), distances,
                 *(float(kept[name].mean()) if name in kept else math.nan for name in ('lr', 'seconds')))


def _likeness(scores: FloatArray, chosen: tp.Sequence[int], vectors: FloatArray) -> tp.Tuple[FloatArray, FloatArray]:
    """Of each target, the mean cosine with its top and its bottom songs."""
    centred = vectors - vectors.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    near, far = [], []
    top = _top(len(vectors))
    for row, target in zip(scores, chosen, strict=True):
        order = [song for song in np.argsort(-row) if song != target]
        near.append(float((unit[order[:top]] @ unit[target]).mean()))
        far.append(float((unit[order[-top:]] @ unit[target]).mean()))
    return np.array(near), np.array(far)


def _top(songs: int) -> int:
    """How many songs are compared with a target at either end, which few songs must not share."""
    return max(1, min(TOP, (songs - 1) // 2))


def markdown(own: Own) -> str:
    """A table, and what it is of."""
    rows = []
    for group in own.groups:
        if group.error:
            rows.append([group.recipe.layers, group.recipe.mask, group.error, *[''] * 6])
            continue
        ranks = np.array(group.ranks)
        moved = '–' if not group.frechet else f'{np.mean(group.frechet):.3g}'
        rows.append([group.recipe.layers, group.recipe.mask, f'{ranks.mean():.2f}',
                     f'{int((ranks == 1).sum())} of {len(ranks)}', str(group.near), str(group.far), moved,
                     f'{group.relative:.2g}', f'{group.rise:.2f}'])
    text = table(['layers', 'mask', 'R(target), mean', 'itself first', f'likeness of the top {_top(own.songs)}',
                  f'of the bottom {_top(own.songs)}', 'Fréchet distance after', '‖θ-θ0‖/‖θ0‖', "target's loss +"], rows)
    text += f'\n{own.songs} songs; likeness and Fréchet distance by {own.embedding}.'
    if own.before:
        text += (f' Generations of the untouched model lie {np.mean(own.before):.3g} from the songs, '
                 f'{min(own.before):.3g} to {max(own.before):.3g} over {len(own.before)} seeds.')
    return text + '\n'


def save_own(out: Path, own: Own) -> Path:
    """Write self.md, self.json and self.png."""
    good = [group for group in own.groups if not group.error]
    labels = [f'{group.recipe.layers}, {group.recipe.mask}' for group in good]
    picture = dots(labels, [Panel('mean 1/R(target)', [interval(1 / np.array(group.ranks)) for group in good]),
                            Panel(f'likeness, top {_top(own.songs)}', [group.near for group in good]),
                            Panel(f'likeness, bottom {_top(own.songs)}', [group.far for group in good])],
                   f'training songs of {own.run} forgotten, mean with 95 % interval', limits=None)
    data = {'run': own.run, 'embedding': own.embedding, 'songs': own.songs, 'before': own.before,
            'groups': [{**vars(group), 'recipe': group.recipe.model_dump()} for group in own.groups]}
    return save(out, 'self', markdown(own), data, picture)
