"""What `lumina unlearn compare` compares on a MusicGen, and what judges there: the validation suite."""

import logging
import typing as tp

from ..baselines.choose import baselines
from ..codec import codec_hash
from ..errors import LuminaError
from ..hashing import state_hash
from ..validation.black_boxes import CodeHistogram, MelStatistics
from ..validation.ground_truth import FILE
from ..validation.lds import half_losses
from ..validation.leave_out import agreement, losses_without
from ..validation.methods import Fingerprints, Method
from ..validation.opened import Opened, open_run, open_truth, query_facts
from ..validation.queries import Query
from ..validation.truth import GroundTruth
from .compare import Asked, Factory, Scores, Setting, Truths, lds_truths, made_by
from .method import unlearning_methods

logger = logging.getLogger(__name__)


class MusicGenSetting(Setting):
    """A MusicGen.

    Args:
        opened (Opened): A run with its model and stores. songs (list of Query): Of the family 'songs', N of them.
        truth (GroundTruth, optional): Of the run. asked: As `Setting`.
    """

    def __init__(self, asked: Asked, opened: Opened, songs: tp.Sequence[Query], truth: tp.Optional[GroundTruth]):
        super().__init__(asked, opened.run, songs)
        self.opened, self.truth, self.musicgen = opened, truth, opened.musicgen

    def methods(self) -> tp.List[Method]:
        return made_by(FACTORIES, self)

    @property
    def facts(self) -> tp.Any:
        return [state_hash(self.musicgen.lm.state_dict()), codec_hash(self.musicgen.compression_model),
                query_facts(self.songs)]

    def facts_of(self, queries: tp.Sequence[Query]) -> tp.Any:
        return query_facts(queries)

    def queries(self, family: str, count: int) -> tp.List[Query]:
        if self.truth is not None:
            return [self.truth.queries[column] for column in self.truth.columns(family)]
        if family != 'free':
            raise LuminaError(f"Queries of the family '{family}' come from a ground truth, and there is none of this "
                              "run; leave --family out, or make one with `lumina validate ground-truth`.")
        return self.opened.free(count)

    def truths(self, family: str, masked: bool, scores: Scores) -> Truths:
        return {} if self.truth is None else truths_of(self.truth, family, masked, scores)


# -- methods ------------------------------------------------------------------------------------------------------

def _lumina(setting: MusicGenSetting) -> tp.List[Method]:
    found: tp.List[Method] = []
    for store in setting.opened.stores:
        method = Fingerprints(setting.musicgen, store.path, setting.ids)
        method.name = f'LUMINA {method.name}'
        found.append(method)
    return found


def _unlearning(setting: MusicGenSetting) -> tp.List[Method]:
    return unlearning_methods(setting.musicgen, setting.run, setting.songs)


def _baselines(setting: MusicGenSetting) -> tp.List[Method]:
    musicgen, asked = setting.musicgen, setting.asked
    return baselines(asked.baselines, musicgen.lm, musicgen.compression_model, setting.songs, asked.device)


def _black_boxes(setting: MusicGenSetting) -> tp.List[Method]:
    musicgen = setting.musicgen
    return [CodeHistogram(setting.songs, musicgen.lm.card), MelStatistics(setting.songs, musicgen.compression_model)]


FACTORIES: tp.Dict[str, Factory] = {'lumina': _lumina, 'unlearning': _unlearning, 'baselines': _baselines,
                                    'black boxes': _black_boxes}


# -- the truth ----------------------------------------------------------------------------------------------------

def truths_of(truth: GroundTruth, family: str, masked: bool, scores: Scores) -> Truths:
    """By method, what the suite's retrainings say of it: LDS over halves, and how it ranks left-out groups.

    What the ground truth lacks models for is left out.
    """
    found: Truths = {name: {} for name in scores}
    try:
        halves = half_losses(truth, truth.columns(family), masked)
        for name, one in scores.items():
            found[name].update(lds_truths(one, halves))
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


def open_musicgen(asked: Asked) -> MusicGenSetting:
    """A run to compare methods on, with its ground truth where there is one.

    Raises:
        LuminaError: when run, songs or ground truth are missing or do not belong together.
    """
    if asked.draws is not None:
        raise LuminaError("--draws is of a diffusion's timesteps and noise, and a MusicGen has none; leave it out.")
    known = asked.truth or asked.out / 'truth' / FILE
    if asked.truth is not None or (known.is_file() and asked.model is None):
        found, opened = open_truth(asked.out, asked.model, asked.truth, asked.device)
        return _judged(asked, opened, found)
    if asked.model is None:
        raise LuminaError(f"There is no ground truth below {asked.out}: name a run by --model, or make the suite's "
                          "with `lumina validate ground-truth`.")
    opened = open_run(asked.model, asked.out, None, asked.device)
    if known.is_file():
        found = GroundTruth.load(known)
        if found.facts.get('run') == opened.run.name and found.facts['catalogue'] == opened.catalogue.hash:
            return _judged(asked, opened, found)
    return MusicGenSetting(asked, opened, opened.songs, None)


def _judged(asked: Asked, opened: Opened, truth: GroundTruth) -> MusicGenSetting:
    return MusicGenSetting(asked, opened, [truth.queries[column] for column in truth.columns('songs')], truth)
