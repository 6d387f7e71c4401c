"""`lumina unlearn draws`: how many draws of noise does a diffusion's loss need, so that more change no result?

A loss over T draws is an average over timesteps and noises, of which 2,048 are used in print (arXiv 2506.18312). Here
the same queries are unlearnt with T draws and with twice as many, for one T after the other: enough is a T of which
doubling moves no song into or out of any query's first ten.
"""

import dataclasses
import time
import typing as tp
from pathlib import Path

import numpy as np

from ..errors import LuminaError
from ..hashing import state_hash
from ..prepared import progress_bar
from ..validation.lds import HalfLosses, Interval, interval, lds
from ..validation.ranking import row_spearman
from ..validation.results import Panel, dots, kept_parts, save, table
from .compare import overlap
from .kept import songs_hash
from .masks import Piece
from .recipe import UnlearningRecipe
from .scoring import FloatArray
from .subject import Subject

TOP = 10


@dataclasses.dataclass(frozen=True)
class Doubling:
    """T draws against twice as many.

    Args:
        draws (int): T. unmoved (int): Queries whose first songs are the same.
        common (Interval): Part of them in common. spearman (Interval): Of all songs' scores.
        lds (Interval): Of T draws, where there is a ground truth.
        relative (float): ‖θ - θ0‖ / ‖θ0‖ at T, mean. seconds (float): Per query, at T.
    """
    draws: int
    unmoved: int
    common: Interval
    spearman: Interval
    lds: tp.Optional[Interval]
    relative: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Draws:
    """All doublings.

    Args:
        recipe (UnlearningRecipe): At the first T. queries, songs (int): How many. rows (list of Doubling): By T.
        among (int, optional): How many songs of each query were asked about with more than the first T.
    """
    recipe: UnlearningRecipe
    queries: int
    songs: int
    rows: tp.List[Doubling]
    among: tp.Optional[int] = None

    @property
    def enough(self) -> tp.Optional[int]:
        """The first T from which on no doubling moves anything; None where the last one still does."""
        found = None
        for row in reversed(self.rows):
            if row.unmoved < self.queries:
                break
            found = row.draws
        return found


def measure(subject: Subject, recipe: UnlearningRecipe, pieces: tp.Sequence[Piece], out: Path, first: int = 16,
            last: int = 256, halves: tp.Optional[HalfLosses] = None, among: tp.Optional[int] = None) -> Draws:
    """Unlearn every query with `first`, twice, four times … `last` draws; what was measured before is read.

    Args:
        pieces (sequence of Piece): Queries, before anything is masked. halves (HalfLosses, optional): What retraining
            says of them. among (int, optional): After `first` draws, ask only about so many songs, those that came
            highest: the first ten are looked for among them.
    Raises:
        LuminaError: for a model whose loss has no draws, or fewer than two numbers of draws.
    """
    recipe = subject.adapted(recipe)
    if recipe.objective != 'v_objective':
        raise LuminaError("Only a diffusion's loss is a mean over draws of noise; a MusicGen needs no choice of them.")
    tried = [first * 2 ** i for i in range(32) if first * 2 ** i <= last]
    if len(tried) < 2:
        raise LuminaError(f"{first} draws cannot be doubled up to {last}; raise the last number to {2 * first} or "
                          "more.")
    if among is not None and not TOP < among <= len(subject.songs):
        raise LuminaError(f"The first {TOP} songs cannot be looked for among {among} of {len(subject.songs)}; choose "
                          "--among between these numbers.")
    found: tp.List[tp.Dict[str, FloatArray]] = []
    for draws in progress_bar(tried, 'draws', len(tried)):
        some = None if among is None or not found else _highest(found[0]['scores'], among)
        found.append(_scores(subject, recipe.model_copy(update={'draws': draws}), pieces, out, some))
    rows = [_doubling(draws, one, other, halves) for draws, one, other in zip(tried, found, found[1:], strict=False)]
    return Draws(recipe, len(pieces), len(subject.songs), rows, among)


def _highest(scores: FloatArray, count: int) -> tp.List[tp.List[int]]:
    """The songs of each row that came highest."""
    return [sorted(int(song) for song in np.argsort(-row, kind='stable')[:count]) for row in scores]


def _doubling(draws: int, one: tp.Dict[str, FloatArray], other: tp.Dict[str, FloatArray],
              halves: tp.Optional[HalfLosses]) -> Doubling:
    asked = np.isfinite(other['scores'])  # [Q, N], as many in each row
    both = [np.stack([row[some] for row, some in zip(found['scores'], asked, strict=True)]) for found in (one, other)]
    whole = np.isfinite(one['scores']).all()
    first, second = (np.where(np.isfinite(found['scores']), found['scores'], -np.inf) for found in (one, other))
    common = overlap(first, second, TOP)
    return Doubling(draws, int((common == 1).sum()), interval(common), interval(row_spearman(both[0], both[1])),
                    interval(lds(one['scores'], halves)) if halves is not None and whole else None,
                    float(one['relative'].mean()), float(one['seconds'].mean()))


def _scores(subject: Subject, recipe: UnlearningRecipe, pieces: tp.Sequence[Piece], out: Path,
            among: tp.Optional[tp.List[tp.List[int]]] = None) -> tp.Dict[str, FloatArray]:
    """Scores [Q, N], NaN where a song was not asked about, and seconds [Q]."""
    def make(some: tp.Sequence[Piece]) -> tp.Dict[str, FloatArray]:
        unlearner = subject.unlearner(recipe, progress_bar)
        asked = None if among is None else [among[[piece.id for piece in pieces].index(one.id)] for one in some]
        begun = time.perf_counter()
        found = unlearner.scores([subject.query_of(piece, recipe) for piece in some], asked)
        seconds = (time.perf_counter() - begun) / len(some)
        return {'scores': found.scores, 'relative': found.relative, 'seconds': np.full(len(some), seconds)}
    facts = ['draws', recipe.hash, state_hash(subject.weights), songs_hash(subject.songs), songs_hash(pieces)]
    return kept_parts(out / 'kept', facts if among is None else [*facts, among], pieces, make, f'{recipe.draws} draws')


def markdown(draws: Draws) -> str:
    """A table, and what it is of."""
    judged = any(row.lds is not None for row in draws.rows)
    head = ['T', f'queries whose first {TOP} stay with 2 T', 'of these songs in common', 'Spearman of T and 2 T',
            *(['LDS at T'] if judged else []), '‖θ-θ0‖/‖θ0‖', 's/query']
    text = table(head, [[row.draws, f'{row.unmoved} of {draws.queries}', row.common, row.spearman,
                         *([row.lds or ''] if judged else []), f'{row.relative:.2g}', f'{row.seconds:.1f}']
                        for row in draws.rows])
    text += (f'\n{draws.queries} queries against {draws.songs} songs; recipe {draws.recipe.name}, Fisher information '
             f'over {draws.recipe.fisher_draws} draws.')
    if draws.among is not None:
        text += (f' With more than {draws.rows[0].draws} draws only the {draws.among} songs that came highest with '
                 'these were asked about, and correlation is among them.')
    within = '' if draws.among is None else ' among these songs'
    if draws.enough is None:
        return text + (f' At {draws.rows[-1].draws} draws doubling still moves songs into or out of the first {TOP}: '
                       'ask for more.\n')
    return text + f' From T = {draws.enough} on doubling moves no song into or out of any first {TOP}{within}.\n'


def save_draws(out: Path, draws: Draws) -> Path:
    """Write draws.md, draws.json and draws.png."""
    panels = [Panel(f'of the first {TOP} in common with 2 T', [row.common for row in draws.rows], (1.,)),
              Panel('Spearman of T and 2 T', [row.spearman for row in draws.rows], (1.,))]
    if any(row.lds is not None for row in draws.rows):
        panels.append(Panel('LDS at T', [row.lds for row in draws.rows]))
    picture = dots([f'T = {row.draws}' for row in draws.rows], panels,
                   f'mean and 95 % interval over {draws.queries} queries', limits=None)
    data = {'recipe': draws.recipe.model_dump(), 'queries': draws.queries, 'songs': draws.songs,
            'among': draws.among, 'enough': draws.enough, 'rows': draws.rows}
    return save(out, 'draws', markdown(draws), data, picture)
