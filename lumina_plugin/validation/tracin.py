"""TracIn (Pruthi et al. 2020): whole gradients of the loss at a training's checkpoints, nothing projected or scaled."""

import dataclasses
import json
import tempfile
import typing as tp
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..capture import full_gradient
from ..gradients import Example, GradientModel
from ..models import run_stores
from ..recipe import get_recipe
from ..store import FingerprintStore
from .methods import Indexed
from .queries import Query
from .truth import FloatArray

State = tp.Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model of a training.

    Args:
        name (str): Unique. state (mapping): Its state dict.
        rate (float): Sum of the learning rates of the epochs since the checkpoint before.
    """
    name: str
    state: State
    rate: float = 1.


def run_checkpoints(run: tp.Union[str, Path], lm: torch.nn.Module) -> tp.List[Checkpoint]:
    """The checkpoints whose weights a run's fingerprinting kept, in order; the model as it is where there are none.

    Args:
        run (path): Folder of a dora run. lm (nn.Module): Its last model.
    """
    for path in run_stores(Path(run)):
        store = FingerprintStore.open(path)
        kept = [info for info in store.checkpoints if info.complete and info.weights is not None]
        if kept:
            since = [0, *(info.epoch for info in kept)]
            rates = [_rate(Path(run), first, last) for first, last in zip(since, since[1:], strict=False)]
            return [Checkpoint(info.name, store.load_weights(info), rate if any(rates) else 1.)
                    for info, rate in zip(kept, rates, strict=True)]
    return [Checkpoint('last', dict(lm.state_dict()))]


def _rate(run: Path, first: int, last: int) -> float:
    """Sum of the mean learning rates of epochs first + 1 to last, from the run's history; 1 where that has none.

    No epoch led to the weights that a training starts from, whose rate is 0.
    """
    if last <= first:
        return 0.
    path = run / 'history.json'
    epochs = json.loads(path.read_text())[first:last] if path.is_file() else []
    rates = [epoch.get('train', {}).get('lr') for epoch in epochs]
    return float(sum(rates)) if rates and None not in rates else 1.


class TracIn(Indexed):
    """Inner products of the loss's gradients, summed over checkpoints c with the learning rates η_c that led to them:
    Σ_c η_c ⟨∇L_c(song), ∇L_c(query)⟩ for the weights of each channel.

    The songs' gradients wait in a temporary file.

    Args:
        lm (nn.Module): audiocraft `LMModel`. checkpoints (sequence of Checkpoint): Of its training.
        songs (sequence of Query): Of the family 'songs'.
    """

    def __init__(self, lm: torch.nn.Module, checkpoints: tp.Sequence[Checkpoint], songs: tp.Sequence[Query]):
        super().__init__('TracIn', [str(song.source) for song in songs])
        self.lm, self._queries = lm, list(songs)
        self.checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint.rate]
        self._folder = tempfile.TemporaryDirectory(prefix='lumina-tracin-')
        self._recipe = get_recipe('default', objective='cross_entropy')
        self._files: tp.Dict[tp.Tuple[str, str], np.memmap] = {}  # by checkpoint and channel, [N, R]

    def _index(self) -> None:
        examples = [song.example(self.lm, False) for song in self._queries]
        for checkpoint in tqdm(self.checkpoints, desc='TracIn, songs', unit='checkpoint', delay=2, leave=False):
            for channel, index, values in self._gradients(checkpoint, examples):
                key = (checkpoint.name, channel)
                if key not in self._files:
                    path = Path(self._folder.name) / f'{len(self._files)}.bin'
                    self._files[key] = np.memmap(path, np.float32, 'w+', shape=(len(examples), values.shape[1]))
                self._files[key][index] = values.numpy()

    def _gradients(self, checkpoint: Checkpoint, examples: tp.Sequence[Example]
                   ) -> tp.Iterator[tp.Tuple[str, tp.List[int], torch.Tensor]]:
        """Per batch and channel, which examples and their joined gradients [B, R]."""
        model = GradientModel(self.lm, self._recipe, checkpoint.state)
        for index, gradients in model.batches(examples, dict.fromkeys(model.blocks, full_gradient)):
            for channel, blocks in model.channels.items():
                joined = torch.cat([gradients[block.name].flatten(1) for block in blocks], dim=1).cpu()
                yield channel, index, joined

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        examples = [query.example(self.lm, masked) for query in queries]
        found: tp.Dict[str, FloatArray] = {}
        for checkpoint in self.checkpoints:
            for channel, index, values in self._gradients(checkpoint, examples):
                total = found.setdefault(channel, np.zeros((len(queries), len(self.songs))))
                total[index] += checkpoint.rate * (values.numpy() @ self._files[checkpoint.name, channel].T)
        return found

    def _bytes(self) -> float:
        return float(sum(file.nbytes for file in self._files.values())) / len(self.songs)
