"""What `lumina unlearn compare` compares on a latent diffusion transformer, and what judges there: its own retraining.

Everything but fingerprints, whose recipe says their own, is asked at the same number of draws of timestep and noise.
"""

import logging
import typing as tp

from .. import compat
from ..baselines.choose import listening
from ..baselines.diffusion import TARGETS, Calmness, LatentRepresenters, LatentStatistics, latent_lpips
from ..dit.attribution import DiTAttributor
from ..dit.ground_truth import DiTTruth
from ..dit.oobleck import oobleck_hash
from ..dit.queries import LatentQuery, latent_decoded, latent_facts
from ..errors import LuminaError
from ..hashing import state_hash
from ..models import run_stores
from ..store import FingerprintStore
from ..validation.black_boxes import MelStatistics
from ..validation.methods import Method, Stored
from ..validation.truth import FloatArray
from .bench import DiffusionBench
from .compare import Asked, Factory, Scores, Setting, Truths, lds_truths, made_by
from .diffusion import DiffusionSubject
from .masks import Piece
from .method import Unlearning
from .opened import open_subject, run_of
from .recipe import PRESETS, unlearning_recipe

logger = logging.getLogger(__name__)

DRAWS, FISHER_DRAWS = 32, 16  # at most so many for the Fisher information
FAMILIES = ('free', 'heldout')
SEED = 0  # of free generations


class DiffusionSetting(Setting):
    """A latent diffusion transformer.

    Args:
        subject (DiffusionSubject): The run with its songs, in the truth's order where there is one.
        bench (DiffusionBench, optional): What judges. asked: As `Setting`.
    """

    def __init__(self, asked: Asked, subject: DiffusionSubject, bench: tp.Optional[DiffusionBench] = None):
        super().__init__(asked, subject.folder, [LatentQuery(song.id, song.examples, song.id)
                                                 for song in subject.songs])
        self.subject, self.bench, self.dit = subject, bench, subject.dit
        self.draws = asked.draws or DRAWS

    def methods(self) -> tp.List[Method]:
        return made_by(FACTORIES, self)

    @property
    def facts(self) -> tp.Any:
        return [state_hash(self.subject.weights), oobleck_hash(self.dit.vae), latent_facts(self.songs)]

    def facts_of(self, queries: tp.Sequence[LatentQuery]) -> tp.Any:
        return latent_facts(queries)

    def queries(self, family: str, count: int) -> tp.List[LatentQuery]:
        if self.bench is not None:
            return [LatentQuery(piece.id, piece.examples) for piece in self.bench.queries(family)]
        if family != 'free':
            raise LuminaError(f"Queries of the family '{family}' come from a ground truth; name one by --truth, made "
                              "by benchmarks/dit_ground_truth.py, or leave --family out.")
        made = self.dit.generate(count, seed=SEED)
        return [LatentQuery(one.id, [one]) for one in made]

    def truths(self, family: str, masked: bool, scores: Scores) -> Truths:
        if self.bench is None:
            return {}
        halves = self.bench.halves(family)
        return {name: lds_truths(one, halves) for name, one in scores.items()}

    @property
    def told(self) -> tp.Dict[str, tp.Any]:
        return {**super().told, 'draws': self.draws}


# -- methods ------------------------------------------------------------------------------------------------------

class LatentFingerprints(Stored):
    """A store of a diffusion's fingerprints under its own recipe."""

    def _scores(self, queries: tp.Sequence[LatentQuery], masked: bool) -> tp.Dict[str, FloatArray]:
        found = self.attributor.scores([list(query.examples) for query in queries])
        return {channel: rows[:, self._order] for channel, rows in found.items()}


def _lumina(setting: DiffusionSetting) -> tp.List[Method]:
    stores = [FingerprintStore.open(path) for path in run_stores(setting.run)]
    if not stores:
        logger.warning("LUMINA is left out: run %s has no fingerprints; make them with `dora run -f %s "
                       "execute_only=fingerprint`.", setting.run.name, setting.run.name)
    return [LatentFingerprints(f'LUMINA {store.path.name}', DiTAttributor(setting.dit, store), setting.ids)
            for store in stores]


def _unlearning(setting: DiffusionSetting) -> tp.List[Method]:
    draws = {'draws': setting.draws, 'fisher_draws': min(setting.draws, FISHER_DRAWS)}
    return [Unlearning(unlearning_recipe(preset, **draws), setting.subject, _asked, f'unlearning, {preset}')
            for preset in PRESETS]


def _asked(query: LatentQuery, masked: bool) -> Piece:
    return Piece(query.id, query.examples)


def _baselines(setting: DiffusionSetting) -> tp.List[Method]:
    asked, dit, songs, draws = setting.asked, setting.dit, setting.songs, setting.draws
    points = [LatentRepresenters(dit, songs, draws, targets=targets) for targets in TARGETS]
    return [*listening(asked.baselines, dit, songs, asked.device, latent_decoded), latent_lpips(dit, songs, draws),
            *points]


def _black_boxes(setting: DiffusionSetting) -> tp.List[Method]:
    return [LatentStatistics(setting.songs), MelStatistics(setting.songs, setting.dit, latent_decoded),
            Calmness(setting.songs)]


FACTORIES: tp.Dict[str, Factory] = {'lumina': _lumina, 'unlearning': _unlearning, 'baselines': _baselines,
                                    'black boxes': _black_boxes}


# -- opening ------------------------------------------------------------------------------------------------------

def open_diffusion(asked: Asked) -> DiffusionSetting:
    """A run to compare methods on, with its ground truth where one is named.

    Raises:
        LuminaError: when run, songs or ground truth are missing or do not belong together.
    """
    compat.install()
    truth = None if asked.truth is None else DiTTruth.load(asked.truth)  # before anything heavy
    subject = tp.cast(DiffusionSubject, open_subject(run_of(str(asked.model)), asked.device))
    return DiffusionSetting(asked, subject, None if truth is None else DiffusionBench(truth, subject))


def expect_families(family: str, whole: bool) -> None:
    """Raise LuminaError for queries that a diffusion does not have."""
    if family not in FAMILIES:
        raise LuminaError(f"A diffusion continues nothing, so that it has no queries '{family}'; --family takes "
                          f"{' or '.join(FAMILIES)}.")
    if whole:
        raise LuminaError("--whole is about the prompts of continuations, which a diffusion does not make; leave it "
                          "out.")
