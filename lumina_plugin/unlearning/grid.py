"""Which step, Fisher information, layers and mask foretell retraining: one point after the other, each kept.

Every point is judged by the suite's ground truth. Points are chosen by one half of the queries and reported by the
other half, so that the best of many is not the luckiest.
"""

import dataclasses
import itertools
import logging
import typing as tp
from pathlib import Path

import numpy as np

from ..errors import LuminaError
from ..prepared import progress_bar
from ..validation.lds import Interval, half_losses, interval, lds
from ..validation.queries import Query
from ..validation.results import Panel, digest, dots, kept_parts, save, table
from ..validation.truth import FloatArray, GroundTruth
from .method import Unlearning
from .recipe import UnlearningRecipe, unlearning_recipe

logger = logging.getLogger(__name__)

FAMILIES = {'free': False, 'continued': True, 'heldout': False}  # and whether a prompt's frames are left out
AXES = ('relative=0.0001,0.001,0.003,0.01,0.03', 'steps=1,4', 'layers=all,P,M', 'mask=none,mixed')


@dataclasses.dataclass(frozen=True)
class Point:
    """One recipe, judged.

    Args:
        recipe (UnlearningRecipe): Its keys. error (str): Why it could not be measured; empty where it could.
        lds (dict): By family, of each query, [Q]. linear (dict): The same of its linearisation.
        lr, relative (float): Mean over queries. rise (float): How much the queries' own loss rose.
        seconds (float): Per query.
    """
    recipe: UnlearningRecipe
    error: str = ''
    lds: tp.Dict[str, FloatArray] = dataclasses.field(default_factory=dict)
    linear: tp.Dict[str, FloatArray] = dataclasses.field(default_factory=dict)
    lr: float = 0.
    relative: float = 0.
    rise: float = 0.
    seconds: float = 0.

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
    """Judge one recipe by a ground truth; what was measured before is read.

    Args:
        musicgen, run: The model that the truth is of, and its folder. out (Path): Where finished work is kept.
        linear (bool): Also the linearisation.
    """
    songs = [truth.queries[column] for column in truth.columns('songs')]
    method = Unlearning(recipe, musicgen, run, songs)
    scores: tp.Dict[str, FloatArray] = {}
    flat: tp.Dict[str, FloatArray] = {}
    facts: tp.List[tp.Dict[str, FloatArray]] = []
    try:
        for family in families:
            queries = [truth.queries[column] for column in truth.columns(family)]
            kept = _kept(method, queries, FAMILIES[family], out, truth, linear)
            halves = half_losses(truth, truth.columns(family), FAMILIES[family])
            scores[family] = lds(kept['scores'], halves)
            if linear:
                flat[family] = lds(kept['linear'], halves)
            facts.append(kept)
    except LuminaError as error:
        logger.warning("%s: %s", recipe.name, error)
        return Point(recipe, str(error))
    means = (float(np.concatenate([kept[name] for kept in facts]).mean())
             for name in ('lr', 'relative', 'rise', 'seconds'))
    return Point(recipe, '', scores, flat, *means)


def _kept(method: Unlearning, queries: tp.Sequence[Query], masked: bool, out: Path, truth: GroundTruth, linear: bool
          ) -> tp.Dict[str, FloatArray]:
    """Scores [Q, N] and facts [Q] of queries, as they were measured before or are now."""
    def make(some: tp.Sequence[Query]) -> tp.Dict[str, FloatArray]:
        spent = method.spent
        scores = next(iter(method.scores(some, masked).values()))
        found = method.found[-1]
        made = {'scores': scores, 'lr': found.lr, 'relative': found.relative, 'rise': found.after - found.before,
                'seconds': np.full(len(some), (method.spent - spent) / len(some))}
        if linear:
            pieces = [method.piece(query, masked) for query in some]
            made['linear'] = method.unlearner.linearised(pieces)
        return made
    facts = ['unlearning', method.recipe.hash, digest(truth.facts), [query.id for query in queries], masked, linear]
    return kept_parts(out / 'kept', facts, queries, make, titles([Point(method.recipe)])[0])


def grid(recipes: tp.Sequence[UnlearningRecipe], musicgen: tp.Any, run: Path, truth: GroundTruth, out: Path,
         families: tp.Sequence[str] = ('free',), linear: bool = False) -> tp.List[Point]:
    """Judge recipes one after the other."""
    return [measure(recipe, musicgen, run, truth, out, families, linear)
            for recipe in progress_bar(recipes, 'grid', len(recipes))]


def markdown(points: tp.Sequence[Point], families: tp.Sequence[str] = ('free',)) -> str:
    """A table, the best by the choosing half first, with the best named beneath it."""
    linear = any(point.linear for point in points)
    ordered = sorted(points, key=lambda point: -point.chosen_by(families[0]))
    best = ordered[0]
    head = ['recipe', *(f'LDS, {family}' for family in families), *(['linearised'] if linear else []),
            'chosen by', 'behind the best', 'lr', '‖θ-θ0‖/‖θ0‖', "query's loss +", 's/query']
    rows = []
    for title, point in zip(titles(ordered), ordered, strict=True):
        if point.error:
            rows.append([title, point.error, *[''] * (len(head) - 2)])
            continue
        rows.append([title, *(str(interval(point.lds[family])) for family in families),
                     *([f'{point.linear[families[0]].mean():.3f}' if point.linear else '']
                       if linear else []),
                     f'{point.chosen_by(families[0]):.3f}',
                     '–' if point is best else str(interval(best.lds[families[0]] - point.lds[families[0]])),
                     f'{point.lr:.2g}', f'{point.relative:.2g}',
                     f'{point.rise:.2f}', f'{point.seconds:.1f}'])
    text = table(head, rows)
    text += f'\nAll: {shared(points)}.\n' if shared(points) else ''
    if not best.error:
        text += (f'\nBest by the even queries: {titles(ordered)[0]}; the odd ones, which chose nothing, give it '
                 f'{best.reported(families[0])}.\n')
    return text


def save_grid(out: Path, points: tp.Sequence[Point], families: tp.Sequence[str] = ('free',)) -> Path:
    """Write grid.md, grid.json and grid.png."""
    ordered = [point for point in sorted(points, key=lambda p: -p.chosen_by(families[0])) if not point.error]
    panels = [Panel(f'{family} queries', [interval(point.lds[family]) for point in ordered]) for family in families]
    picture = dots(titles(ordered), panels, f'LDS, mean and 95 % interval over queries ({shared(ordered)})',
                   limits=None)
    data = [{'recipe': point.recipe.model_dump(), 'error': point.error, 'lds': point.lds, 'linear': point.linear,
             'lr': point.lr, 'relative': point.relative, 'rise': point.rise, 'seconds': point.seconds}
            for point in points]
    return save(out, 'grid', markdown(points, families), data, picture)
