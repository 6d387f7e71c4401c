"""Fisher information of a checkpoint: which weights the songs hold on to, so that a step can leave those alone.

Per weight matrix W [o, i] with per-song gradients G_n [o, i] of the training loss:

- diagonal: F = mean over songs of G_n², as published (arXiv 2506.18312, after Ko et al. 2024);
- adam: the optimizer's running mean of squared batch gradients, which a training checkpoint holds for nothing;
- kronecker: eigenvectors of the second moments of the layer's inputs and output gradients, and in their basis the mean
  of squared gradients (George et al. 2018): what a diagonal cannot see;
- identity: all weights alike, an ordinary step along the gradient.

What a step divides by is (F + damping · mean F)^power.
"""

import abc
import typing as tp

import torch

from ..capture import Moments, TwoSided, full_gradient
from ..errors import LuminaError
from ..gradients import add_to_songs
from .partial import Partial

Tensors = tp.Dict[str, torch.Tensor]  # by block name
Songs = tp.Sequence[tp.Any]  # of a catalogue: each has an `id` and `examples`
Progress = tp.Callable[[tp.Sequence[Songs]], tp.Iterable[Songs]]
TOGETHER = 4  # songs whose whole gradients are held at once, at most
GRADIENTS_BYTES = 2 * 2 ** 30  # of songs' whole gradients that are held at once, and as much again of a pass' examples
STAGES = ('moments', 'basis', 'squares')  # of what is kept while Fisher information is computed


class Learner(tp.Protocol):
    """A model whose loss can be differentiated by weight matrices: a `GradientModel`, or that of a diffusion."""

    @property
    def blocks(self) -> tp.Mapping[str, tp.Any]:
        """The weights that may move, by name."""

    def batches(self, examples: tp.Sequence[tp.Any], reducers: tp.Mapping[str, tp.Any]
                ) -> tp.Iterator[tp.Tuple[tp.List[int], Tensors]]:
        """Reduced per-example gradients."""

    def values(self, examples: tp.Sequence[tp.Any]) -> torch.Tensor:
        """The objective of examples, [n]."""

    def moved(self, offsets: tp.Mapping[str, torch.Tensor]) -> 'Learner':
        """The same with weights moved."""

    def weight(self, name: str) -> torch.Tensor:
        """A weight as it is, [o, i]."""


class Fisher(abc.ABC):
    """Information about some weights.

    Args:
        values (dict): By block name, never negative: how much the songs hold on to each weight.
    """
    kind: tp.ClassVar[str]

    def __init__(self, values: Tensors):
        self.values = values
        count = sum(value.numel() for value in values.values())
        self.mean = float(sum(value.double().sum() for value in values.values()) / max(1, count))

    def step(self, gradients: tp.Mapping[str, torch.Tensor], damping: float, power: float) -> Tensors:
        """(F + damping · mean F)^-power applied to gradients, by block name, [o, i] each.

        Raises:
            LuminaError: when it does not know a block.
        """
        missing = [name for name in gradients if name not in self.values]
        if missing:
            raise LuminaError(f"The Fisher information does not cover {missing[0]}; make it again for these layers "
                              "with `lumina unlearn fisher`.")
        return {name: self._step(name, gradient.float(), damping * self.mean, power)
                for name, gradient in gradients.items()}

    def tensors(self) -> Tensors:
        """For a file."""
        return {f'values.{name}': value for name, value in self.values.items()}

    @abc.abstractmethod
    def _step(self, name: str, gradient: torch.Tensor, damping: float, power: float) -> torch.Tensor:
        """For one block."""


class Diagonal(Fisher):
    """One number per weight."""
    kind = 'diagonal'

    def _step(self, name: str, gradient: torch.Tensor, damping: float, power: float) -> torch.Tensor:
        return gradient / (self.values[name].to(gradient) + damping) ** power


class Adam(Diagonal):
    """The second moment of an optimizer."""
    kind = 'adam'


class Identity(Diagonal):
    """Nothing is held on to."""
    kind = 'identity'

    def __init__(self, blocks: tp.Mapping[str, tp.Any]):
        super().__init__({name: torch.ones(1, 1) for name in blocks})

    def _step(self, name: str, gradient: torch.Tensor, damping: float, power: float) -> torch.Tensor:
        return gradient


class Kronecker(Fisher):
    """One number per pair of eigenvectors of a layer's inputs [i, i] and output gradients [o, o]."""
    kind = 'kronecker'

    def __init__(self, values: Tensors, inputs: Tensors, outputs: Tensors):
        super().__init__(values)
        self.inputs, self.outputs = inputs, outputs

    def _step(self, name: str, gradient: torch.Tensor, damping: float, power: float) -> torch.Tensor:
        inputs, outputs = self.inputs[name].to(gradient), self.outputs[name].to(gradient)
        turned = (outputs.T @ gradient @ inputs) / (self.values[name].to(gradient) + damping) ** power
        return outputs @ turned @ inputs.T

    def tensors(self) -> Tensors:
        return {**super().tensors(), **{f'inputs.{name}': value for name, value in self.inputs.items()},
                **{f'outputs.{name}': value for name, value in self.outputs.items()}}


def fisher_from(kind: str, tensors: tp.Mapping[str, torch.Tensor]) -> Fisher:
    """What `Fisher.tensors` wrote."""
    def part(name: str) -> Tensors:
        return {key.removeprefix(f'{name}.'): value for key, value in tensors.items() if key.startswith(f'{name}.')}
    if kind == Kronecker.kind:
        return Kronecker(part('values'), part('inputs'), part('outputs'))
    return (Adam if kind == Adam.kind else Diagonal)(part('values'))


# -- computing ---------------------------------------------------------------------------------------------------------

def diagonal_fisher(learner: Learner, songs: Songs, progress: Progress = iter,
                    among: tp.Sequence[Learner] = (), partial: tp.Optional[Partial] = None) -> Diagonal:
    """Mean over songs of their squared gradients, a few songs at a time.

    Args:
        learner (Learner): Objective and weights. songs (sequence): Each the mean over its examples, by their weights.
        among (sequence of Learner): Ask each of these in place of the learner and average what they say, as for the
            timesteps of a diffusion.
        partial (Partial, optional): Where sums are kept, and taken up after a stop; the caller removes `STAGES`.
    """
    reducers = {name: full_gradient for name in learner.blocks}
    return Diagonal(_mean_squares(learner, among or [learner], songs, reducers, progress, partial or Partial()))


def kronecker_fisher(learner: Learner, songs: Songs, progress: Progress = iter,
                     among: tp.Sequence[Learner] = (), partial: tp.Optional[Partial] = None) -> Kronecker:
    """Two passes: eigenvectors first, then what the songs' gradients are in their basis. Arguments as above."""
    partial = partial or Partial()
    done, basis = partial.read('basis')
    if not done:
        partial.remove('squares')  # of a basis that is gone: another one need not be the same
        basis = _basis(learner, among or [learner], songs, progress, partial)
        partial.write('basis', len(songs), basis)
        partial.remove('moments')
    inputs = {name: basis[f'inputs.{name}'].to(learner.weight(name).device) for name in learner.blocks}
    outputs = {name: basis[f'outputs.{name}'].to(learner.weight(name).device) for name in learner.blocks}
    turned = {name: TwoSided(inputs[name], outputs[name]) for name in learner.blocks}
    return Kronecker(_mean_squares(learner, among or [learner], songs, turned, progress, partial), inputs, outputs)


def _basis(learner: Learner, among: tp.Sequence[Learner], songs: Songs, progress: Progress, partial: Partial
           ) -> Tensors:
    """Eigenvectors of the second moments of each block's inputs and output gradients."""
    done, sums = partial.read('moments')
    moments = {name: Moments() for name in learner.blocks}
    for name, found in moments.items():
        device = learner.weight(name).device
        found.a, found.delta = (None if kept is None else kept.to(device)
                                for kept in (sums.get(f'a.{name}'), sums.get(f'delta.{name}')))
    for past, group in _left(learner, songs, done, progress):
        examples = [example for song in group for example in song.examples]
        for one in among:
            for _ in one.batches(examples, moments):
                pass
        partial.offer('moments', past, lambda: {
            f'{side}.{name}': second for name, found in moments.items()
            for side, second in (('a', found.a), ('delta', found.delta)) if second is not None})
    basis = {}
    for name, found in moments.items():
        if found.a is None or found.delta is None:
            raise LuminaError(f"No gradient reaches {name}, so that nothing can be known about it; leave it out of the "
                              "layers.")
        basis[f'inputs.{name}'], basis[f'outputs.{name}'] = _eigenvectors(found.a), _eigenvectors(found.delta)
    return basis


def _eigenvectors(second: torch.Tensor) -> torch.Tensor:
    vectors: torch.Tensor = torch.linalg.eigh(second.double()).eigenvectors
    return vectors.to(second)


def _left(learner: Learner, songs: Songs, done: int, progress: Progress) -> tp.Iterator[tp.Tuple[int, Songs]]:
    """Groups of the songs after the first `done`, each with how many songs are past with it."""
    groups, past = [*grouped(learner, songs[:done]), *grouped(learner, songs[done:])], 0
    for group in progress(groups):
        past += len(group)
        if past > done:
            yield past, group


def grouped(learner: Learner, songs: Songs) -> tp.List[Songs]:
    """Songs whose whole gradients are held at once: as many as `GRADIENTS_BYTES` hold, at least one."""
    size = min(TOGETHER, _held(learner))
    return [songs[first:first + size] for first in range(0, len(songs), size)]


def _held(learner: Learner) -> int:
    """How many whole gradients fit, at least one."""
    return max(1, GRADIENTS_BYTES // (4 * sum(b.out_features * b.in_features for b in learner.blocks.values())))


def _mean_squares(learner: Learner, among: tp.Sequence[Learner], songs: Songs, reducers: tp.Mapping[str, tp.Any],
                  progress: Progress, partial: Partial) -> Tensors:
    done, sums = partial.read('squares')
    total = {name: kept.to(learner.weight(name).device) for name, kept in sums.items()}
    for past, group in _left(learner, songs, done, progress):
        for one in among:
            for name, gradients in song_gradients(one, group, reducers).items():  # [n, o, i]
                squares = gradients.float().square_().sum(0)
                total[name] = squares if name not in total else total[name].add_(squares)
        partial.offer('squares', past, lambda: total)
    return {name: value / (len(songs) * len(among)) for name, value in total.items()}


def song_gradients(learner: Learner, songs: Songs, reducers: tp.Mapping[str, tp.Any]) -> Tensors:
    """Gradients of songs, each the mean over its examples weighted by what counts in them: by block, [n, o', i'].

    Passes are of so few examples that their gradients fit in `GRADIENTS_BYTES`, at least of one.
    """
    read = [list(song.examples) for song in songs]
    flat = [(row, example) for row, examples in enumerate(read) for example in examples]
    totals = [sum(example.weight for example in examples) for examples in read]
    sums: Tensors = {}
    size = _held(learner)
    for first in range(0, len(flat), size):
        some = flat[first:first + size]
        for batch, gradients in learner.batches([example for _, example in some], reducers):
            parts = [some[index] for index in batch]
            add_to_songs(sums, gradients, [row for row, _ in parts],
                         [example.weight / totals[row] for row, example in parts], len(songs))
    return sums


def adam_fisher(learner: Learner, moments: tp.Mapping[str, torch.Tensor]) -> Adam:
    """An optimizer's second moments as a Fisher.

    Args:
        moments (mapping): By parameter name: `store.second_moments` of a checkpoint.
    Raises:
        LuminaError: when they lack a weight.
    """
    values = {}
    for name, block in learner.blocks.items():
        if block.parameter not in moments:
            raise LuminaError(f"The optimizer's state knows no {block.parameter}; use the diagonal Fisher, which needs "
                              "no optimizer.")
        values[name] = block.of(moments).float()
    return Adam(values)
