"""`lumina unlearn compare`: do methods say the same of the same generations?

Every method scores every song for every query. What is compared are the rows of these scores, query by query: their
linear and rank correlation, and how many songs two methods have in common among their first ten.

Methods come from `FACTORIES`, in the order of the tables; whoever has another one puts it there.
"""

import dataclasses
import functools
import logging
import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from ..baselines.choose import baselines
from ..codec import codec_hash
from ..errors import LuminaError
from ..hashing import state_hash
from ..validation.black_boxes import CodeHistogram, MelStatistics
from ..validation.lds import Interval, half_losses, interval, lds
from ..validation.leave_out import agreement, losses_without
from ..validation.methods import BOTH, Fingerprints, Method
from ..validation.opened import KEPT, Opened, query_facts
from ..validation.queries import Query
from ..validation.ranking import row_spearman
from ..validation.results import kept_parts
from ..validation.truth import FloatArray, GroundTruth
from .method import Unlearning, unlearning_methods

logger = logging.getLogger(__name__)

TOP = 10
CHANNELS = (BOTH, 'P', 'M')
Scores = tp.Mapping[str, FloatArray]  # by method, [Q, N]
Matrix = tp.List[tp.List[Interval]]


# -- what is compared ---------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Setting:
    """What methods are made for.

    Args:
        opened (Opened): A run with its model and stores. songs (list of Query): Of the family 'songs', N of them.
        baselines (str): As `lumina_plugin.baselines.choose.parse` takes it. device (str, optional): cpu or cuda.
    """
    opened: Opened
    songs: tp.List[Query]
    baselines: str = ''
    device: tp.Optional[str] = None

    @property
    def ids(self) -> tp.List[str]:
        """Of the songs, in the order of all scores."""
        return [str(song.source) for song in self.songs]


Factory = tp.Callable[[Setting], tp.List[Method]]


def _lumina(setting: Setting) -> tp.List[Method]:
    found: tp.List[Method] = []
    for store in setting.opened.stores:
        method = Fingerprints(setting.opened.musicgen, store.path, setting.ids)
        method.name = f'LUMINA {method.name}'
        found.append(method)
    return found


def _baselines(setting: Setting) -> tp.List[Method]:
    musicgen = setting.opened.musicgen
    return baselines(setting.baselines, musicgen.lm, musicgen.compression_model, setting.songs, setting.device)


def _black_boxes(setting: Setting) -> tp.List[Method]:
    musicgen = setting.opened.musicgen
    return [CodeHistogram(setting.songs, musicgen.lm.card), MelStatistics(setting.songs, musicgen.compression_model)]


def _unlearning(setting: Setting) -> tp.List[Method]:
    opened = setting.opened
    return unlearning_methods(opened.musicgen, opened.run, setting.songs)


FACTORIES: tp.Dict[str, Factory] = {'lumina': _lumina, 'unlearning': _unlearning, 'baselines': _baselines,
                                    'black boxes': _black_boxes}


def methods_of(setting: Setting) -> tp.List[Method]:
    """One of each kind that `FACTORIES` makes.

    Raises:
        LuminaError: when two have one name.
    """
    found = [method for factory in FACTORIES.values() for method in factory(setting)]
    names = [method.name for method in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LuminaError(f"Two methods are called '{twice}'; give one of them weights or settings with another name.")
    return found


def scores_of(setting: Setting, methods: tp.Sequence[Method], queries: tp.Sequence[Query], masked: bool,
              channel: str = BOTH) -> tp.Dict[str, FloatArray]:
    """By method, scores [Q, N]; those that an earlier call has finished are read.

    Args:
        masked (bool): Leave the frames of prompts out.
        channel (str): Of methods that have several, one of `CHANNELS`.
    """
    musicgen, found = setting.opened.musicgen, {}
    model = [state_hash(musicgen.lm.state_dict()), codec_hash(musicgen.compression_model), query_facts(setting.songs)]
    for method in methods:
        if method.songs != setting.ids:
            raise LuminaError(f"{method.name} scores other songs than are compared, or in another order.")
        facts = ['compare', method.name, facts_of(method), model, masked, query_facts(queries)]
        by_channel = kept_parts(setting.opened.out / KEPT, facts, queries,
                                functools.partial(method.scores, masked=masked), method.name)
        found[method.name] = by_channel[channel] if channel in by_channel else next(iter(by_channel.values()))
    return found


def facts_of(method: Method) -> tp.Any:
    """All that a method's scores depend on besides its name, the model, the songs and the queries; ready for JSON.

    A method says so itself by an attribute `facts`.

    Raises:
        TypeError: when it does not: scores of other settings would be taken for its own.
    """
    if isinstance(method, Fingerprints):
        return [method.attributor.store.hash, method.attributor.recipe.hash]
    if isinstance(method, Unlearning):
        state = method.subject.state
        return [method.recipe.hash, None if state is None else state_hash(state)]
    if isinstance(method, CodeHistogram | MelStatistics):
        return None
    if not hasattr(method, 'facts'):
        raise TypeError(f"{type(method).__name__} has no `facts`, by which its scores are remembered")
    return method.facts


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


# -- against the truth --------------------------------------------------------------------------------------------

TRUTHS = ('LDS', 'leave out: Spearman', 'leave out: NDCG', 'leave out: top-1')


def truths_of(truth: GroundTruth, family: str, masked: bool, scores: Scores) -> tp.Dict[str, tp.Dict[str, Interval]]:
    """By method, what the suite's retrainings say of it: LDS over halves, and how it ranks left-out groups.

    What the ground truth lacks models for is left out.
    """
    found: tp.Dict[str, tp.Dict[str, Interval]] = {name: {} for name in scores}
    try:
        halves = half_losses(truth, truth.columns(family), masked)
        for name, one in scores.items():
            found[name][TRUTHS[0]] = interval(lds(one, halves))
    except LuminaError as error:
        logger.warning("%s LDS is left out.", error)
    try:
        losses = losses_without(truth, family, masked)
        for name, one in scores.items():
            rows = [row for row in agreement(family, name, '', one, losses) if row.kind == 'all']
            found[name].update({f'leave out: {measure}': value for row in rows
                                for measure, value in row.measures.items()})
    except LuminaError as error:
        logger.warning("%s Leave-group-out is left out.", error)
    return found


def open_setting(out: Path, model: tp.Optional[str], truth: tp.Optional[Path], wanted: str,
                 device: tp.Optional[str] = None) -> tp.Tuple[Setting, tp.Optional[GroundTruth]]:
    """A run to compare methods on, with its ground truth where there is one.

    Args:
        out (Path): Folder of the suite. model (str, optional): A run; the suite's unless said.
        truth (Path, optional): A ground truth of another folder. wanted (str): Baselines.
    Raises:
        LuminaError: when run, songs or ground truth are missing or do not belong together.
    """
    from ..validation.ground_truth import FILE
    from ..validation.opened import open_run, open_truth
    known = truth or out / 'truth' / FILE
    if truth is not None or (known.is_file() and model is None):
        found, opened = open_truth(out, model, truth, device)
        return Setting(opened, [found.queries[column] for column in found.columns('songs')], wanted, device), found
    if model is None:
        raise LuminaError(f"There is no ground truth below {out}: name a run by --model, or make the suite's with "
                          "`lumina validate ground-truth`.")
    opened = open_run(model, out, None, device)
    if known.is_file():
        found = GroundTruth.load(known)
        if found.facts.get('run') == opened.run.name and found.facts['catalogue'] == opened.catalogue.hash:
            return Setting(opened, [found.queries[c] for c in found.columns('songs')], wanted, device), found
    return Setting(opened, opened.songs, wanted, device), None
