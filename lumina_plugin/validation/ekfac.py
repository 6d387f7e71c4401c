"""EK-FAC influence (Grosse et al. 2023) by kronfluence; needs the extra `peers`."""

import logging
import tempfile
import typing as tp

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task

from .peers import DIM, Peer
from .plain_model import Tensors, loader
from .queries import Query
from .tracin import Checkpoint
from .truth import FloatArray

FACTORS = 'factors'


class MusicTask(Task):
    """Next codes as kronfluence sees them: the cross entropy summed over valid codes, as in its language examples."""

    def __init__(self, layers: tp.Sequence[str]):
        self.layers = list(layers)

    def compute_train_loss(self, batch: Tensors, model: torch.nn.Module, sample: bool = False) -> torch.Tensor:
        """Sum over the batch; `sample`: of codes drawn from the model, for the true Fisher matrix."""
        found = model(**batch)
        codes = batch['codes']
        if sample:
            chances = found.logits.detach().softmax(-1).flatten(0, -2)  # [B * K * T, card]
            codes = torch.multinomial(chances, 1).view_as(codes)
        chosen = found.logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
        return -(chosen * found.mask).sum()

    def compute_measurement(self, batch: Tensors, model: torch.nn.Module) -> torch.Tensor:
        """The queries' loss."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> tp.List[str]:
        """The channels' linears."""
        return self.layers


class EKFAC(Peer):
    """EK-FAC by kronfluence's `Analyzer`, on the last checkpoint.

    It keeps nothing of a song but its codes: scores are whole gradients of songs, computed again for every call, times
    queries' ones that its factors have preconditioned. Its damping is kronfluence's: a tenth of the mean eigenvalue.

    Args:
        strategy (str): kronfluence's name for its factors; 'identity' leaves inner products of gradients.
        lm, checkpoints, songs, dim: As `peer_methods`; `dim` means nothing here.
    """

    def __init__(self, lm: torch.nn.Module, checkpoints: tp.Sequence[Checkpoint], songs: tp.Sequence[Query],
                 dim: int = DIM, strategy: str = 'ekfac'):
        super().__init__('EK-FAC (kronfluence)', lm, checkpoints, songs, dim)
        self._strategy = strategy
        self._folder = tempfile.TemporaryDirectory(prefix='lumina-ekfac-')
        self._calls = 0

    def _index(self) -> None:
        self._model = self.model().load(self.checkpoints[-1].state)
        self._layers = dict(self._model.layers)
        task = MusicTask([name for names in self._layers.values() for name in names])
        self._rows = self.rows(self._model, self._queries)
        prepared = prepare_model(self._model, task)
        self._analyzer = Analyzer('lumina', prepared, task, cpu=True, log_level=logging.ERROR, disable_tqdm=True,
                                  output_dir=self._folder.name)
        with torch.random.fork_rng(devices=[]):  # codes are drawn
            torch.manual_seed(0)
            self._analyzer.fit_all_factors(FACTORS, tp.cast(tp.Any, self._rows), _batch(self._rows),
                                           factor_args=FactorArguments(strategy=self._strategy))

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        rows = self.rows(self._model, queries, masked)
        name, self._calls = f'scores-{self._calls}', self._calls + 1
        self._analyzer.compute_pairwise_scores(
            name, FACTORS, tp.cast(tp.Any, rows), tp.cast(tp.Any, self._rows), _batch(rows), _batch(self._rows),
            score_args=ScoreArguments(damping_factor=None, compute_per_module_scores=True))
        found = self._analyzer.load_pairwise_scores(name)  # by layer, [Q, N]
        return {channel: np.sum([found[layer].double().numpy() for layer in layers], axis=0)
                for channel, layers in self._layers.items()}

    def _bytes(self) -> float:
        return 2. * float(np.mean([song.codes.numel() for song in self._queries]))


def _batch(rows: tp.Sequence[Tensors]) -> int:
    return tp.cast(int, loader(rows).batch_size)
