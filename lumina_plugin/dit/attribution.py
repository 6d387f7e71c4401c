"""From windows of latents to scores and statistics against a store of a latent diffusion model."""

import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import statistics
from ..errors import LuminaError
from ..hashing import model_config_hash
from ..projection import ChannelProjection
from ..recipe import recipe_from_dict
from ..scoring import Scorer, StackedRows, fit_scorers, mean_scores
from ..store import CheckpointInfo, FingerprintStore
from .fingerprint import DiTFingerprinter
from .model import LatentDiT, LatentExample
from .oobleck import oobleck_hash

FloatArray = npt.NDArray[np.float64]


class DiTAttributor:
    """Compare generations and recordings with the songs of a store, with the weights of each checkpoint in it.

    Args:
        dit (LatentDiT): A model of the architecture that the store was made with.
        store (FingerprintStore or path): Fingerprints of the catalogue.
        codec_hash (str, optional): Known hash of the autoencoder, else computed.
        batch_size (int): Windows per pass.
    Raises:
        LuminaError: when store and model or autoencoder do not belong together, or no checkpoint is finished.
    """

    def __init__(self, dit: LatentDiT, store: tp.Union[FingerprintStore, str, Path],
                 codec_hash: tp.Optional[str] = None, batch_size: int = 8):
        self.dit, self.batch_size = dit, batch_size
        self.store = store if isinstance(store, FingerprintStore) else FingerprintStore.open(store)
        self.recipe = recipe_from_dict(self.store.identity.recipe)
        self.store.expect(codec_hash=codec_hash or oobleck_hash(dit.vae),
                          model_config_hash=model_config_hash(dit.denoiser))
        complete = [info for info in self.store.checkpoints if info.complete]
        if not complete:
            raise LuminaError(f"The store {self.store.path} has no finished checkpoint; fingerprint the catalogue "
                              "first.")
        self.checkpoints: tp.List[CheckpointInfo] = complete[-1:] if self.recipe.checkpoints == 'last' else complete
        self.song_ids: tp.List[str] = self.store.vectors(self.checkpoints[0].name, self.store.channels[0])[0]
        self._scorers = {channel: [self._fit(info.name, channel) for info in self.checkpoints]
                         for channel in self.store.channels}

    def scores(self, queries: tp.Sequence[tp.Sequence[LatentExample]]) -> tp.Dict[str, FloatArray]:
        """Scores [Q, N] of queries, each given as its windows, against every song, by channel."""
        return {channel: scores for channel, (_, scores) in self._compare(queries).items()}

    def statistics(self, query: tp.Sequence[LatentExample]) -> tp.Dict[str, statistics.ChannelStatistics]:
        """Cosine, score, confidence, STS, LIP, gate and share of every song, by channel, under the printed gate."""
        gate = statistics.Gate(self.recipe.gate.level, self.recipe.gate.tail)
        found = {}
        for channel, (cosine, score) in self._compare([query]).items():
            mean, floor = 0., statistics.noise_floor(self.recipe.projection.dim)
            if self.recipe.gate.noise_floor == 'measured':
                rows = [self._rows(info.name, channel) for info in self.checkpoints]
                mean, floor = statistics.measured_noise(
                    rows, None, unit=not self.recipe.projection.keeps_lengths(channel))
            found[channel] = statistics.channel_statistics(cosine[0], score[0], floor, gate, mean)
        return found

    def _compare(self, queries: tp.Sequence[tp.Sequence[LatentExample]]
                 ) -> tp.Dict[str, tp.Tuple[FloatArray, FloatArray]]:
        """Mean cosine and mean score over the checkpoints, [Q, N] each, by channel."""
        examples = [example for query in queries for example in query]
        groups = [index for index, query in enumerate(queries) for _ in query]
        if len(set(groups)) < len(queries):
            raise LuminaError("A query without a window (silence, or an empty file) cannot be attributed; leave it "
                              "out.")
        vectors: tp.Dict[str, tp.List[np.ndarray]] = {channel: [] for channel in self.store.channels}
        for info in self.checkpoints:
            fingerprinter = self._fingerprinter(info)
            found, _ = fingerprinter.query(tp.cast(tp.Any, examples), groups=groups)
            for channel in vectors:
                vectors[channel].append(found[channel].numpy())
        return {channel: mean_scores(self._scorers[channel], vectors[channel], self.recipe.scoring.method)
                for channel in vectors}

    def _fingerprinter(self, info: CheckpointInfo) -> DiTFingerprinter:
        weights = self.store.load_weights(info) if info.weights is not None else None
        fingerprinter = DiTFingerprinter(self.dit, self.recipe, weights, batch_size=self.batch_size)
        fingerprinter.projections = {
            channel: ChannelProjection.load(blocks, *self.store.projection(info.name, channel),
                                            block_norm=self.recipe.block_norm, device=fingerprinter.device)
            for channel, blocks in fingerprinter.channels.items()}
        return fingerprinter

    def _rows(self, checkpoint: str, channel: str) -> StackedRows:
        return StackedRows([rows for _, rows in self.store.iter_vectors(checkpoint, channel)],
                           self.store.identity.dim)

    def _fit(self, checkpoint: str, channel: str) -> tp.Dict[str, Scorer]:
        names = list(dict.fromkeys(['cosine', self.recipe.scoring.method]))
        return fit_scorers(names, self._rows(checkpoint, channel), self.recipe.scoring.ridge,
                           unit=not self.recipe.projection.keeps_lengths(channel))
