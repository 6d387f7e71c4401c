"""`lumina unlearn compare`: do methods say the same of the same generations?

Every method scores every song for every query. What is compared are the rows of these scores, query by query: their
linear and rank correlation, and how many songs two methods have in common among their first ten.

What differs between kinds of generators (which methods there are, what a query is, what judges) is a `Setting`, in
`compare_musicgen` and `compare_diffusion`. Methods come from its `FACTORIES`, in the order of the tables; whoever has
another one puts it there.
"""

import abc
import dataclasses
import functools
import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from ..errors import LuminaError
from ..validation.lds import HalfLosses, Interval, interval, lds, own_lds
from ..validation.methods import BOTH, Method
from ..validation.opened import KEPT
from ..validation.ranking import row_spearman
from ..validation.results import kept_parts
from ..validation.truth import FloatArray

TOP = 10
STEP = 'step: '  # before the names of what is kept beside scores
CHANNELS = (BOTH, 'P', 'M')
Scores = tp.Mapping[str, FloatArray]  # by method, [Q, N]
Matrix = tp.List[tp.List[Interval]]
TRUTHS = ('LDS', 'LDS, own part', 'leave out: Spearman', 'leave out: NDCG', 'leave out: top-1')
Truths = tp.Dict[str, tp.Dict[str, Interval]]  # by method and one of `TRUTHS`


# -- what is compared ---------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Asked:
    """What a comparison is asked for.

    Args:
        out (Path): Folder for what is made; a MusicGen's suite is looked for there. model (str, optional): A run.
        truth (Path, optional): A ground truth of another folder. baselines (str): As
            `lumina_plugin.baselines.choose.parse` takes it. device (str, optional): cpu or cuda.
        draws (int, optional): Diffusion: fixed draws of timestep and noise.
    """
    out: Path
    model: tp.Optional[str] = None
    truth: tp.Optional[Path] = None
    baselines: str = ''
    device: tp.Optional[str] = None
    draws: tp.Optional[int] = None


class Setting(abc.ABC):
    """What methods are made for: a run, its songs and, where there is one, its ground truth.

    Args:
        asked (Asked): What was asked for. run (Path): The run's folder. songs (sequence): N of them, each with its id
            as `source`.
    """

    def __init__(self, asked: Asked, run: Path, songs: tp.Sequence[tp.Any]):
        self.asked, self.run, self.songs = asked, run, list(songs)
        self.steps: tp.Dict[str, tp.Dict[str, float]] = {}  # by method that moves weights: how far, mean over queries

    @property
    def ids(self) -> tp.List[str]:
        """Of the songs, in the order of all scores."""
        return [str(song.source) for song in self.songs]

    @abc.abstractmethod
    def methods(self) -> tp.List[Method]:
        """What is compared."""

    @property
    @abc.abstractmethod
    def facts(self) -> tp.Any:
        """What tells model and songs from others, ready for JSON."""

    @abc.abstractmethod
    def facts_of(self, queries: tp.Sequence[tp.Any]) -> tp.Any:
        """What tells queries from others, ready for JSON."""

    @abc.abstractmethod
    def queries(self, family: str, count: int) -> tp.List[tp.Any]:
        """Those of the ground truth; without one, so many free generations.

        Raises:
            LuminaError: for a family that there are none of.
        """

    @abc.abstractmethod
    def truths(self, family: str, masked: bool, scores: Scores) -> Truths:
        """By method, what retraining says of its scores; nothing without a ground truth."""

    @property
    def told(self) -> tp.Dict[str, tp.Any]:
        """What a result says about it."""
        return {'run': self.run.name, 'baselines': self.asked.baselines}


def lds_truths(scores: FloatArray, halves: HalfLosses) -> tp.Dict[str, Interval]:
    """What retrained halves say of scores [Q, N]: LDS, and that of what is each query's own."""
    found = {TRUTHS[0]: interval(lds(scores, halves))}
    return found if len(scores) < 2 else {**found, TRUTHS[1]: interval(own_lds(scores, halves))}


Factory = tp.Callable[[tp.Any], tp.List[Method]]  # of a setting


def made_by(factories: tp.Mapping[str, Factory], setting: Setting) -> tp.List[Method]:
    """All that factories make.

    Raises:
        LuminaError: when two have one name.
    """
    found = [method for factory in factories.values() for method in factory(setting)]
    names = [method.name for method in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LuminaError(f"Two methods are called '{twice}'; give one of them weights or settings with another name.")
    return found


def scores_of(setting: Setting, methods: tp.Sequence[Method], queries: tp.Sequence[tp.Any], masked: bool,
              channel: str = BOTH) -> tp.Dict[str, FloatArray]:
    """By method, scores [Q, N]; those that an earlier call has finished are read.

    Args:
        masked (bool): Leave the frames of prompts out.
        channel (str): Of methods that have several, one of `CHANNELS`.
    """
    model, asked, found = setting.facts, setting.facts_of(queries), {}

    def make(method: Method, some: tp.Sequence[tp.Any]) -> tp.Dict[str, FloatArray]:
        scores = method.scores(some, masked)
        return {**scores, **{f'{STEP}{name}': one for name, one in method.moves().items()}}
    for method in methods:
        if method.songs != setting.ids:
            raise LuminaError(f"{method.name} scores other songs than are compared, or in another order.")
        facts = ['compare', method.name, facts_of(method), model, masked, asked]
        by_channel = kept_parts(setting.asked.out / KEPT, facts, queries,
                                functools.partial(make, method), method.name)
        setting.steps[method.name] = {name.removeprefix(STEP): float(one.mean()) for name, one in by_channel.items()
                                      if name.startswith(STEP)}
        found[method.name] = by_channel[channel] if channel in by_channel else next(iter(by_channel.values()))
    return found


def facts_of(method: Method) -> tp.Any:
    """All that a method's scores depend on besides its name, the model, the songs and the queries; ready for JSON.

    A method says so itself by an attribute `facts`.

    Raises:
        TypeError: when it does not: scores of other settings would be taken for its own.
    """
    if not hasattr(method, 'facts'):
        raise TypeError(f"{type(method).__name__} has no `facts`, by which its scores are remembered")
    return method.facts


def open_setting(asked: Asked, family: str = 'free', whole: bool = False) -> Setting:
    """A run to compare methods on, with its ground truth where there is one.

    Args:
        family (str): Of the queries that will be asked about. whole (bool): Whether prompts shall count.
    Raises:
        LuminaError: when run, songs or ground truth are missing or do not belong together, or that kind of generator
            has no such queries.
    """
    from ..dit.ground_truth import DiTTruth
    from ..models import run_folder, run_key
    from .bench import of_diffusion
    if asked.model is None and asked.truth is not None and of_diffusion(asked.truth):
        asked = dataclasses.replace(asked, model=str(DiTTruth.load(asked.truth).facts['run']))
    run = None if asked.model is None else run_folder(asked.model)
    if run is not None and run_key(run, 'solver') == 'lumina_dit':
        from .compare_diffusion import expect_families, open_diffusion
        expect_families(family, whole)
        return open_diffusion(asked)
    from .compare_musicgen import open_musicgen
    return open_musicgen(asked)


# -- how they agree -----------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Agreements:
    """Of M methods with each other, mean over queries with a 95 % bootstrap interval; M x M each."""
    methods: tp.List[str]
    pearson: Matrix
    spearman: Matrix
    overlap: Matrix


def agreements(scores: Scores, top: int = TOP) -> Agreements:
    """Compare methods with each other.

    Args:
        scores (mapping): By method, [Q, N]. top (int): Songs that count in the overlap.
    Raises:
        LuminaError: when the scores are of unlike shapes or not finite, or `top` is not below N.
    """
    names, given = list(scores), [np.asarray(one, dtype=np.float64) for one in scores.values()]
    if len({one.shape for one in given}) != 1:
        raise LuminaError("Methods can be compared only by scores of the same queries and songs; score them again.")
    bad = next((name for name, one in scores.items() if not np.isfinite(one).all()), None)
    if bad is not None:
        raise LuminaError(f"{bad} has scores that are NaN or infinite; leave it out, or mend it.")
    if not 0 < top < given[0].shape[1]:
        raise LuminaError(f"The first {top} of {given[0].shape[1]} songs tell nothing; choose --top below their "
                          "number.")
    return Agreements(names, _matrix(given, pearson), _matrix(given, row_spearman),
                      _matrix(given, lambda a, b: overlap(a, b, top)))


def pearson(first: FloatArray, second: FloatArray) -> FloatArray:
    """Linear correlation of each row, [Q, N] twice -> [Q]; 0 where one is constant."""
    a, b = (one - one.mean(1, keepdims=True) for one in (first, second))
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def overlap(first: FloatArray, second: FloatArray, top: int) -> FloatArray:
    """Part of the first `top` songs of each row that two methods have in common, [Q, N] twice -> [Q]."""
    common = np.minimum(first_songs(first, top), first_songs(second, top)).sum(1)
    return np.asarray(common / top, dtype=np.float64)


def first_songs(scores: npt.ArrayLike, top: int) -> FloatArray:
    """1 for the `top` highest scores of each row [Q, N]; equal ones share the places that they are about."""
    given = np.asarray(scores, dtype=np.float64)
    first, last = (np.asarray(stats.rankdata(-given, way, axis=1)) for way in ('min', 'max'))
    return np.clip((top + 1 - first) / (last - first + 1), 0., 1.)


def _matrix(given: tp.Sequence[FloatArray], measure: tp.Callable[[FloatArray, FloatArray], FloatArray]) -> Matrix:
    """Symmetric, 1 where a method meets itself."""
    rows = [[Interval(1., 1., 1.)] * len(given) for _ in given]
    for i, first in enumerate(given):
        for j, second in enumerate(given[:i]):
            rows[i][j] = rows[j][i] = interval(measure(first, second))
    return rows
