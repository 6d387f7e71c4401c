"""Which step, Fisher information, layers and mask foretell retraining: one point after the other, each kept.

Every point is judged by the suite's ground truth. Points are chosen by one half of the queries and reported by the
other half, so that the best of many is not the luckiest.
"""

import dataclasses
import functools
import itertools
import logging
import time
import typing as tp
from pathlib import Path

import numpy as np

from ..errors import LuminaError
from ..prepared import progress_bar
from ..validation.lds import Interval, interval, lds, own_lds
from ..validation.results import Panel, dots, kept_parts, save, table
from ..validation.truth import FloatArray, GroundTruth
from .bench import FAMILIES, Bench, MusicGenBench
from .drift import Drift
from .masks import Piece
from .recipe import UnlearningRecipe, unlearning_recipe
from .scoring import Unlearner

logger = logging.getLogger(__name__)

AXES = ('relative=0.0001,0.001,0.003,0.01,0.03', 'steps=1,4', 'layers=all,P,M', 'mask=none,mixed')


@dataclasses.dataclass(frozen=True)
class Point:
    """One recipe, judged.

    Args:
        recipe (UnlearningRecipe): Its keys. error (str): Why it could not be measured; empty where it could.
        lds (dict): By family, of each query, [Q]. linear (dict): The same of its linearisation. own (dict): Of what is
            each query's own (`own_lds`), where there are two queries or more.
        lr, relative (float): Mean over queries. rise (float): How much the queries' own loss rose.
        seconds (float): Per query.
        frechet (list of float): Distance of generations to the songs after forgetting some of the queries.
    """
    recipe: UnlearningRecipe
    error: str = ''
    lds: tp.Dict[str, FloatArray] = dataclasses.field(default_factory=dict)
    linear: tp.Dict[str, FloatArray] = dataclasses.field(default_factory=dict)
    lr: float = 0.
    relative: float = 0.
    rise: float = 0.
    seconds: float = 0.
    frechet: tp.List[float] = dataclasses.field(default_factory=list)
    own: tp.Dict[str, FloatArray] = dataclasses.field(default_factory=dict)

    def chosen_by(self, family: str) -> float:
        """Mean LDS of every other query, from the first: for choosing."""
        return float(self.lds[family][::2].mean()) if not self.error else -1.

    def reported(self, family: str) -> Interval:
        """LDS of the others, which chose nothing."""
        return interval(self.lds[family][1::2])

    @property
    def parts(self) -> tp.Dict[str, str]:
        """What a recipe is called by."""
        r = self.recipe
        return {'fisher': r.fisher if r.power == 1 or r.fisher == 'identity' else f'{r.fisher}^{r.power:g}',
                'size': f'lr {r.lr:g}' if r.lr is not None else f'length {r.relative:g}',
                'steps': f'{r.steps} step{"s" * (r.steps > 1)}', 'layers': r.layers, 'mask': f'mask {r.mask}',
                'damping': f'damping {r.damping:g}', 'loss': f'{r.objective} → {r.reading}',
                'silence': f'{r.silence_db:g} dBFS', 'draws': f'{r.draws} draws'}


def titles(points: tp.Sequence[Point]) -> tp.List[str]:
    """What tells points apart; where that is nothing, all that they are called by."""
    parts = [point.parts for point in points]
    varied = [key for key in parts[0] if len({one[key] for one in parts}) > 1] if parts else []
    return [', '.join(one[key] for key in varied or list(one)[:5]) for one in parts]


def shared(points: tp.Sequence[Point]) -> str:
    """What all points have in common."""
    parts = [point.parts for point in points]
    keys = [key for key in list(parts[0])[:6] if len({one[key] for one in parts}) == 1] if parts else []
    return ', '.join(parts[0][key] for key in keys)


def points_of(base: str, axes: tp.Mapping[str, tp.Sequence[tp.Any]]) -> tp.List[UnlearningRecipe]:
    """Recipes of a grid: every combination of the axes' values.

    Args:
        base (str): Preset. axes (mapping): Keys of `UnlearningRecipe`, each with its values.
    Raises:
        LuminaError: for a key or value that there is not.
    """
    found: tp.Dict[str, UnlearningRecipe] = {}
    for values in itertools.product(*axes.values()):
        recipe = unlearning_recipe(base, **dict(zip(axes, values, strict=True)))
        if recipe.fisher == 'identity':  # which has no power
            recipe = recipe.model_copy(update={'power': 1., 'damping': 0.1})
        found.setdefault(recipe.hash, recipe)
    return list(found.values())


def measure(recipe: UnlearningRecipe, musicgen: tp.Any, run: Path, truth: GroundTruth, out: Path,
            families: tp.Sequence[str] = ('free',), linear: bool = False) -> Point:
    """`judged` for a MusicGen, its run's folder and its ground truth."""
    return judged(recipe, MusicGenBench(truth, musicgen, run), out, families, linear)


def judged(recipe: UnlearningRecipe, bench: Bench, out: Path, families: tp.Sequence[str] = ('free',),
           linear: bool = False, drift: tp.Optional[Drift] = None) -> Point:
    """Judge one recipe by a ground truth; what was measured before is read.

    Args:
        bench (Bench): Model, songs and truth. out (Path): Where finished work is kept.
        linear (bool): Also the linearisation. drift (Drift, optional): Also how far generations move.
    """
    recipe = bench.subject.adapted(recipe)

    @functools.cache
    def unlearner() -> Unlearner:
        return bench.subject.unlearner(recipe, progress_bar)
    scores: tp.Dict[str, FloatArray] = {}
    flat: tp.Dict[str, FloatArray] = {}
    own: tp.Dict[str, FloatArray] = {}
    facts: tp.List[tp.Dict[str, FloatArray]] = []
    try:
        for family in families:
            kept = _kept(recipe, bench, family, out, linear, unlearner)
            halves = bench.halves(family)
            scores[family] = lds(kept['scores'], halves)
            if len(scores[family]) > 1:
                own[family] = own_lds(kept['scores'], halves)
            if linear:
                flat[family] = lds(kept['linear'], halves)
            facts.append(kept)
        distances = drift.after(unlearner, recipe, bench.queries(families[0])) if drift else []
    except LuminaError as error:
        logger.warning("%s: %s", recipe.name, error)
        return Point(recipe, str(error))
    lr, relative, rise, seconds = (float(np.concatenate([kept[name] for kept in facts]).mean())
                                   for name in ('lr', 'relative', 'rise', 'seconds'))
    return Point(recipe, '', scores, flat, lr, relative, rise, seconds, distances, own)


def _kept(recipe: UnlearningRecipe, bench: Bench, family: str, out: Path, linear: bool,
          unlearner: tp.Callable[[], Unlearner]) -> tp.Dict[str, FloatArray]:
    """Scores [Q, N] and facts [Q] of queries, as they were measured before or are now."""
    def make(some: tp.Sequence[Piece]) -> tp.Dict[str, FloatArray]:
        pieces = [bench.subject.query_of(piece, recipe) for piece in some]
        unlearner()  # what is made once for all queries is not timed
        begun = time.perf_counter()
        found = unlearner().scores(pieces)
        seconds = (time.perf_counter() - begun) / len(some)
        made = {'scores': found.scores, 'lr': found.lr, 'relative': found.relative, 'rise': found.after - found.before,
                'seconds': np.full(len(some), seconds)}
        if linear:
            made['linear'] = unlearner().linearised(pieces)
        return made
    queries = bench.queries(family)
    facts = ['unlearning', recipe.hash, bench.facts, [query.id for query in queries], FAMILIES[family], linear]
    return kept_parts(out / 'kept', facts, queries, make, titles([Point(recipe)])[0])


def grid(recipes: tp.Sequence[UnlearningRecipe], bench: Bench, out: Path, families: tp.Sequence[str] = ('free',),
         linear: bool = False, drift: tp.Optional[Drift] = None) -> tp.List[Point]:
    """Judge recipes one after the other."""
    return [judged(recipe, bench, out, families, linear, drift)
            for recipe in progress_bar(recipes, 'grid', len(recipes))]


def markdown(points: tp.Sequence[Point], families: tp.Sequence[str] = ('free',), before: tp.Sequence[float] = ()
             ) -> str:
    """A table, the best by the choosing half first, with the best named beneath it.

    Args:
        before (sequence of float): `Drift.before`, where it was measured.
    """
    linear, moved = any(point.linear for point in points), any(point.frechet for point in points)
    ordered = sorted(points, key=lambda point: -point.chosen_by(families[0]))
    best = ordered[0]
    head = ['recipe', *(f'LDS, {family}' for family in families), 'own part', *(['linearised'] if linear else []),
            'chosen by', 'behind the best', 'lr', '‖θ-θ0‖/‖θ0‖', "query's loss +",
            *(['Fréchet distance after'] if moved else []), 's/query']
    rows = []
    for title, point in zip(titles(ordered), ordered, strict=True):
        if point.error:
            rows.append([title, point.error, *[''] * (len(head) - 2)])
            continue
        rows.append([title, *(str(interval(point.lds[family])) for family in families),
                     f'{point.own[families[0]].mean():.3f}' if families[0] in point.own else '',
                     *([f'{point.linear[families[0]].mean():.3f}' if point.linear else '']
                       if linear else []),
                     f'{point.chosen_by(families[0]):.3f}',
                     '–' if point is best else str(interval(best.lds[families[0]] - point.lds[families[0]])),
                     f'{point.lr:.2g}', f'{point.relative:.2g}',
                     f'{point.rise:.2f}', *([_range(point.frechet)] if moved else []), f'{point.seconds:.1f}'])
    text = table(head, rows)
    text += f'\nAll: {shared(points)}.\n' if shared(points) else ''
    if not best.error:
        text += (f'\nBest by the even queries: {titles(ordered)[0]}; the odd ones, which chose nothing, give it '
                 f'{best.reported(families[0])}.\n')
    if before:
        forgotten = max((len(point.frechet) for point in points), default=0)
        text += (f'\nFréchet distance of generations to the songs, after forgetting {forgotten} of the queries one at '
                 f'a time: mean, lowest and highest. Those of the untouched model lie {np.mean(before):.3g} from the '
                 f'songs, {min(before):.3g} to {max(before):.3g} over {len(before)} seeds.\n')
    return text


def _range(values: tp.Sequence[float]) -> str:
    return f'{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})' if values else ''


def save_grid(out: Path, points: tp.Sequence[Point], families: tp.Sequence[str] = ('free',),
              before: tp.Sequence[float] = ()) -> Path:
    """Write grid.md, grid.json and grid.png. Arguments as for `markdown`."""
    ordered = [point for point in sorted(points, key=lambda p: -p.chosen_by(families[0])) if not point.error]
    panels = [Panel(f'LDS, {family} queries', [interval(point.lds[family]) for point in ordered])
              for family in families]
    if before:  # lines where generations of the untouched model lie
        ranges = [Interval(float(np.mean(point.frechet)), min(point.frechet), max(point.frechet)) for point in ordered]
        panels.append(Panel('Fréchet distance after: mean and range', ranges, (min(before), max(before))))
    picture = dots(titles(ordered), panels, f'mean and 95 % interval over queries ({shared(ordered)})', limits=None)
    data = {'before': list(before), 'points': [
        {'recipe': point.recipe.model_dump(), 'error': point.error, 'lds': point.lds, 'linear': point.linear,
         'lr': point.lr, 'relative': point.relative, 'rise': point.rise, 'seconds': point.seconds,
         'frechet': point.frechet, 'own': point.own} for point in points]}
    return save(out, 'grid', markdown(points, families, before), data, picture)
