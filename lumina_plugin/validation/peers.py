"""Other libraries' attribution methods beside ours: `lumina validate lds --peers`. An optional extra.

Each gets what ours gets: the checkpoints whose weights fingerprinting kept (their last where a method knows one alone),
the layers of each channel, and no more numbers per song and channel than ours. All of them run on the CPU.
"""

import importlib.util
import math
import tempfile
import typing as tp
import warnings

import torch

from ..errors import LuminaError
from ..recipe import get_recipe
from .methods import Indexed, Method
from .plain_model import PlainModel, Predictions, Tensors, loader
from .queries import Query
from .tracin import Checkpoint
from .truth import FloatArray

NEEDED = ('dattri', 'kronfluence')
MISSING = "--peers needs {}, which `pip install -e '.[peers]'` brings, and `make validate-peers` without another torch."
DIM = 512  # numbers per song, channel and checkpoint, at most
RIDGE = 0.01  # of TRAK's kernel, as a part of the mean square length of the songs' projected gradients
DRAWN = 32  # examples per batch of TRAK, for each of which dattri draws its projection anew
DAMPING = 0.1  # of LoGra's Hessian, as a part of its mean eigenvalue


def missing_peers() -> tp.List[str]:
    """Which of the libraries are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def peer_methods(lm: torch.nn.Module, checkpoints: tp.Sequence[Checkpoint], songs: tp.Sequence[Query], dim: int = DIM
                 ) -> tp.List[Method]:
    """TRAK and LoGra of dattri, EK-FAC of kronfluence.

    Args:
        lm (nn.Module): audiocraft `LMModel`. checkpoints (sequence of Checkpoint): Of its training.
        songs (sequence of Query): Of the family 'songs'. dim (int): Numbers per song, channel and checkpoint.
    Raises:
        LuminaError: when the extra `peers` is not installed, or the model is of a kind that they do not know.
    """
    if missing_peers():
        raise LuminaError(MISSING.format(' and '.join(missing_peers())))
    from .ekfac import EKFAC
    return [kind(lm, checkpoints, songs, dim) for kind in (Trak, LoGra, EKFAC)]


class Peer(Indexed):
    """A method of another library on a plain copy of the model.

    Args:
        name (str): As tables print it. dim (int): Numbers per song, channel and checkpoint, at most.
        lm, checkpoints, songs: As `peer_methods`.
    """

    def __init__(self, name: str, lm: torch.nn.Module, checkpoints: tp.Sequence[Checkpoint],
                 songs: tp.Sequence[Query], dim: int):
        super().__init__(name, [str(song.source) for song in songs])
        self.lm, self.checkpoints, self.dim, self._queries = lm, list(checkpoints), dim, list(songs)
        self.channels = get_recipe('default').channels
        self.model().expect_like(lm, songs[0].example(lm, False))

    def scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        with warnings.catch_warnings():
            for about in ('There is a performance drop', "'pin_memory' argument is set"):  # nothing to be done about it
                warnings.filterwarnings('ignore', message=about)
            return super().scores(queries, masked)

    def model(self) -> PlainModel:
        """A copy of the model, for one use: libraries leave their marks on it."""
        return PlainModel(self.lm, self.channels)

    def rows(self, model: PlainModel, queries: tp.Sequence[Query], masked: bool = False) -> tp.List[Tensors]:
        """Queries as tensors."""
        return model.tensors([query.example(self.lm, masked) for query in queries])


class Trak(Peer):
    """TRAK (Park et al. 2023) by `dattri.algorithm.TRAKAttributor`, all checkpoints as its ensemble.

    Whole gradients of the mean log odds of a song's codes, by `torch.func`, times dattri's random signs [R, D]; Q is
    what the mean probability of a song's codes lacks of 1. Where there are fewer songs than D, the kernel has no
    inverse: dattri's `regularization` is set, to the part `ridge` of the mean square length of the kernel's rows.
    """

    def __init__(self, lm: torch.nn.Module, checkpoints: tp.Sequence[Checkpoint], songs: tp.Sequence[Query],
                 dim: int = DIM, ridge: float = RIDGE, projection: str = 'rademacher'):
        super().__init__('TRAK (dattri)', lm, checkpoints, songs, dim)
        self.ridge, self.projection = ridge, projection
        self._attributors: tp.Dict[str, tp.Any] = {}

    def _index(self) -> None:
        for channel in self.channels:
            model = self.model().train_only([channel])
            rows = self.rows(model, self._queries)
            self._attributors[channel] = attributor = self._attributor(model)
            attributor.regularization = self.ridge * self._square_length(attributor, rows)
            attributor.cache(loader(rows, DRAWN))

    def _attributor(self, model: PlainModel) -> tp.Any:
        from dattri.algorithm import TRAKAttributor
        from dattri.task import AttributionTask
        task = AttributionTask(
            lambda weights, row: _of_one(model, weights, row).margins[0], model,
            [checkpoint.state for checkpoint in self.checkpoints], checkpoints_load_func=PlainModel.load)

        def probability(weights: Tensors, row: Tensors) -> torch.Tensor:
            return _of_one(model, weights, row).probabilities[0]
        keys = {'proj_dim': self.dim, 'proj_max_batch_size': 32, 'proj_seed': 0, 'device': 'cpu',
                'proj_type': self.projection}
        return TRAKAttributor(task, probability, projector_kwargs=keys)

    def _square_length(self, attributor: tp.Any, rows: tp.Sequence[Tensors]) -> float:
        """Mean over a few songs and all checkpoints of the square of what dattri projects, whose length signs keep."""
        found = []
        for index in range(len(self.checkpoints)):
            weights, _ = attributor.task.get_param(ckpt_idx=index)
            for batch in loader(rows[::max(1, len(rows) // 8)]):
                gradients = attributor.grad_loss_func(weights, batch) / attributor.norm_scaler  # [B, R]
                found += gradients.square().sum(1).tolist()
        return sum(found) / len(found)

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        return {channel: one.attribute(loader(self.rows(one.task.model, queries, masked), DRAWN)).T.double().numpy()
                for channel, one in self._attributors.items()}

    def _bytes(self) -> float:
        return 4. * sum(matrix.shape[0] for one in self._attributors.values() for matrix in one.inv_XTX_XT_list)


class LoGra(Peer):
    """LoGra (Choe et al. 2024) by `dattri.algorithm.LoGraAttributor`, the last checkpoint: it knows one.

    Gradients of the mean cross entropy, each layer's projected from both sides by normal numbers to the largest square
    of which the channel's layers together have at most D; its inverse is that of each layer's second moments.
    """

    def __init__(self, lm: torch.nn.Module, checkpoints: tp.Sequence[Checkpoint], songs: tp.Sequence[Query],
                 dim: int = DIM, damping: float = DAMPING):
        super().__init__('LoGra (dattri)', lm, checkpoints, songs, dim)
        self.damping = damping
        self._folder = tempfile.TemporaryDirectory(prefix='lumina-logra-')  # dattri notes the batches' sizes there
        self._attributors: tp.Dict[str, tp.Tuple[tp.Any, tp.Any]] = {}  # and the songs' loader, by channel

    def _index(self) -> None:
        for channel in self.channels:
            model = self.model().train_only([channel])
            songs, attributor = loader(self.rows(model, self._queries)), self._attributor(model, channel)
            with _uncompiled():
                attributor.cache(songs)
            self._attributors[channel] = attributor, songs

    def _attributor(self, model: PlainModel, channel: str) -> tp.Any:
        from dattri.algorithm import LoGraAttributor
        from dattri.task import AttributionTask
        layers = model.layers[channel]
        task = AttributionTask(lambda model, batch, _: model(**batch).loss, model, [self.checkpoints[-1].state],
                               checkpoints_load_func=PlainModel.load)
        return LoGraAttributor(task, layers, hessian='eFIM', damping=self.damping, offload='cpu',
                               proj_dim=math.isqrt(self.dim // len(layers)) ** 2,
                               cache_dir=tempfile.mkdtemp(dir=self._folder.name))

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        found = {}
        for channel, (attributor, songs) in self._attributors.items():
            with _uncompiled():
                rows = self.rows(attributor.model, queries, masked)
                found[channel] = attributor.attribute(songs, loader(rows)).T.double().numpy()
        return found

    def _bytes(self) -> float:
        return 4. * sum(attributor.total_proj_dim for attributor, _ in self._attributors.values())


def _of_one(model: PlainModel, weights: Tensors, row: Tensors) -> Predictions:
    """What a model with other weights says of one example, B = 1."""
    batch = {name: tensor[None] for name, tensor in row.items()}
    return tp.cast(Predictions, torch.func.functional_call(model, weights, kwargs=batch))


def _uncompiled() -> tp.ContextManager[None]:
    """dattri compiles its projections, which needs a compiler and pays for large models alone."""
    return tp.cast(tp.ContextManager[None], torch.compiler.set_stance('force_eager'))
