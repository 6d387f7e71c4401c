"""Per-example gradients of a language model's objective: batches of like length, as large as memory takes."""

import contextlib
import copy
import dataclasses
import gc
import logging
import random
import sys
import typing as tp

import torch
from torch import nn

from .capture import GradientCapture, Reducer
from .channels import Block, resolve_channels
from .conditions import condition_shapes
from .errors import LuminaError
from .magnet import hidden_predictions, is_magnet
from .objectives import Objective, get_objective
from .recipe import Recipe

logger = logging.getLogger(__name__)

T = tp.TypeVar('T')

Gradients = tp.Dict[str, torch.Tensor]  # by block name, [n, o', i']


@dataclasses.dataclass(frozen=True)
class Example:
    """One chunk as the objective sees it.

    Args:
        codes (torch.Tensor): Shape [K, T].
        start (int): First frame that counts (later than 0 where a prompt is left out).
        stop (int): First frame that does not count any more (padding follows).
        attributes: audiocraft `ConditioningAttributes` of this chunk.
        counted (torch.Tensor, optional): True for frames between `start` and `stop` that count, [T]; all of them unless
            given. Frames that do not count are read all the same.
    """
    codes: torch.Tensor
    start: int
    stop: int
    attributes: tp.Any
    counted: tp.Optional[torch.Tensor] = None

    @property
    def weight(self) -> float:
        """Valid frames; chunks of a song are averaged with these weights."""
        if self.counted is None:
            return float(self.stop - self.start)
        return float(self.counted[self.start:self.stop].sum())


class _ScoredModel(nn.Module):
    """A language model and its objective as one module, so that `functional_call` can lend it other weights."""

    def __init__(self, lm: nn.Module, objective: Objective):
        super().__init__()
        self.lm = lm
        self.objective = objective

    def forward(self, codes: torch.Tensor, inputs: torch.Tensor, valid: torch.Tensor, attributes: tp.List[tp.Any],
                autocast: tp.Optional[tp.Callable[[], tp.ContextManager]]) -> torch.Tensor:
        """Objective per example, [B], of codes [B, K, T] where valid [B, T], with its backward pass already done where
        gradients are on.

        The backward pass belongs in here: torch checkpointing recomputes layers in it, which must see the lent weights.
        """
        with autocast() if autocast is not None else contextlib.nullcontext():
            values = self._objective(codes, inputs, valid, attributes)
        if torch.is_grad_enabled():
            values.sum().backward()
        return values.detach()

    def _objective(self, codes: torch.Tensor, inputs: torch.Tensor, valid: torch.Tensor,
                   attributes: tp.List[tp.Any]) -> torch.Tensor:
        with torch.no_grad():
            provider: tp.Any = self.lm.condition_provider
            conditions = provider(provider.tokenize(attributes))
        lm: tp.Any = self.lm
        if is_magnet(lm):
            logits, asked = hidden_predictions(lm, inputs, valid, conditions)
            return self.objective(logits, codes, asked)
        # as `LMModel.compute_predictions`, but codes are brought into the pattern's order rather than logits out of it
        pattern = lm.pattern_provider.get_pattern(codes.shape[-1])
        sequence, where, filled = pattern.build_pattern_sequence(inputs, lm.special_token_id,
                                                                 keep_only_valid_steps=True)  # [B, K, S], [K, S] twice
        first = int(pattern.starts_with_special_token())  # a step's logits predict the codes of the next one
        where = nn.functional.pad(where[:, first:], (0, first), value=codes[0].numel()).flatten()
        filled = nn.functional.pad(filled[:, first:], (0, first))
        targets, counted = (nn.functional.pad(x.flatten(1), (0, 1))[:, where].unflatten(1, filled.shape)
                            for x in (codes, valid[:, None].expand_as(codes)))  # [B, K, S]
        logits = lm(sequence, [], conditions)  # [B, K, S, card]
        return self.objective(logits, targets, counted & filled)


class GradientModel:
    """A model under a recipe's objective, whose per-example gradients of the recipe's channels can be asked for.

    The model is left as it was: its weights are lent, detached, to each pass, its training mode is put back, its
    gradients are never touched and the random state is kept.

    Args:
        lm (nn.Module): audiocraft `LMModel`.
        recipe (Recipe): Objective and channels.
        weights (mapping, optional): State dict to use in place of the model's own (EMA weights, an earlier checkpoint).
        batch_size (int): Full chunks per pass; more of shorter ones. Halved, for good, when memory runs out.
        autocast (callable, optional): Makes a context for the forward pass (half precision on a GPU).
    """

    def __init__(self, lm: nn.Module, recipe: Recipe, weights: tp.Optional[tp.Mapping[str, torch.Tensor]] = None,
                 batch_size: int = 8, autocast: tp.Optional[tp.Callable[[], tp.ContextManager]] = None):
        self._prepare(lm, recipe, weights, batch_size, autocast)
        self.channels: tp.Dict[str, tp.List[Block]] = resolve_channels(lm, recipe.channels)
        self._models: tp.Dict[str, _ScoredModel] = {}  # by objective
        self._tapped: tp.Dict[str, tp.Dict[str, Block]] = {}  # the same: the blocks whose gradients are of it
        for channel, blocks in self.channels.items():
            objective = recipe.objective_of(channel)
            self._models.setdefault(objective, _ScoredModel(lm, get_objective(objective)))
            self._tapped.setdefault(objective, {}).update({block.name: block for block in blocks})
        asked = [name for tapped in self._tapped.values() for name in tapped]
        if len(asked) > len(set(asked)):
            twice = next(name for name in asked if asked.count(name) > 1)
            raise LuminaError(f"{twice} belongs to channels of different objectives; give them one objective, or "
                              "layer groups that share no weight.")

    def _prepare(self, lm: nn.Module, recipe: Recipe, weights: tp.Optional[tp.Mapping[str, torch.Tensor]],
                 batch_size: int, autocast: tp.Optional[tp.Callable[[], tp.ContextManager]] = None) -> None:
        """Take over what a model of any kind is asked with."""
        self.lm, self.recipe, self.batch_size, self.autocast = lm, recipe, batch_size, autocast
        self._at_most = sys.maxsize  # chunks per pass, however short, once memory has run out
        self.device = next(lm.parameters()).device
        state = dict(lm.state_dict()) if weights is None else dict(weights)
        # always fp32: a mean over thousands of codes makes gradients that half precision would round to zero
        self._state = {
            f'lm.{name}': tensor.detach().to(self.device, torch.float32 if tensor.is_floating_point() else None)
            for name, tensor in state.items()}

    @property
    def blocks(self) -> tp.Dict[str, Block]:
        """Every tapped weight of any channel, by name."""
        return {block.name: block for blocks in self.channels.values() for block in blocks}

    def gradients(self, examples: tp.Sequence[Example], reducers: tp.Mapping[str, Reducer]) -> Gradients:
        """Reduced per-example gradients of one batch, by block name, each [B, o', i'].

        Those of each example alone, if padding for the others' sake changes none; `batches` sees to that.
        """
        codes, inputs, valid, attributes = self._inputs(examples)
        checkpointing = getattr(getattr(self.lm, 'transformer', None), 'checkpointing', 'none')
        captures = []
        for objective, model in self._models.items():  # a pass each: that of the output linears ends where they begin
            weights = {name: block.of(self._state, 'lm.') for name, block in self._tapped[objective].items()}
            captures.append(GradientCapture(weights, {name: reducers[name] for name in weights},
                                            from_embeddings=checkpointing != 'none'))
            with _undisturbed(self.lm), torch.enable_grad(), captures[-1]:
                torch.func.functional_call(model, self._state, tie_weights=False, args=(
                    codes, inputs, valid, attributes, self.autocast))
        # handed over together: of passes the last of which fails, nothing counts
        return {name: gradient for capture in captures for name, gradient in capture.collect().items()}

    def batches(self, examples: tp.Sequence[Example], reducers: tp.Mapping[str, Reducer]
                ) -> tp.Iterator[tp.Tuple[tp.List[int], Gradients]]:
        """Gradients of any number of examples, in batches: which of them a batch holds, and [B, o', i'] per block.

        Examples of one kind and like length go together, longest first, so that little is padded; a batch holds as
        many frames as `batch_size` of the longest have. A pass for which memory does not suffice is taken up again in
        halves.

        Raises:
            LuminaError: when there is no memory for a single example.
        """
        return self._in_batches(examples, lambda batch: self.gradients(batch, reducers))

    def values(self, examples: tp.Sequence[Example], objective: tp.Optional[str] = None) -> torch.Tensor:
        """The objective of examples, without any gradient: [n], fp32, on the CPU.

        Args:
            objective (str, optional): Another one than the recipe's (its first channel's).
        Raises:
            LuminaError: when there is no memory for a single example.
        """
        model = _ScoredModel(self.lm, get_objective(objective)) if objective else next(iter(self._models.values()))

        def ask(batch: tp.Sequence[Example]) -> torch.Tensor:
            with _undisturbed(self.lm), torch.no_grad():
                return torch.func.functional_call(model, self._state, tie_weights=False, args=(
                    *self._inputs(batch), self.autocast))
        found = torch.zeros(len(examples))
        for index, values in self._in_batches(examples, ask):
            found[index] = values.float().cpu()
        return found

    def moved(self, offsets: tp.Mapping[str, torch.Tensor]) -> 'GradientModel':
        """The same model with some of its weights moved; this one, and the model itself, stay as they are.

        Args:
            offsets (mapping): By block name, what is added to its weight, [o, i].
        """
        other = copy.copy(self)
        other._state = dict(self._state)
        for name, offset in offsets.items():
            block = self.blocks[name]
            key = f'lm.{block.parameter}'
            if other._state[key] is self._state[key]:  # two blocks can lie in one parameter
                other._state[key] = self._state[key].clone()
            block.of(other._state, 'lm.').add_(offset)
        return other

    def weight(self, name: str) -> torch.Tensor:
        """A block's weight as it is lent, [o, i]: a view that must not be written to."""
        return self.blocks[name].of(self._state, 'lm.')

    def _inputs(self, examples: tp.Sequence[Example]
                ) -> tp.Tuple[torch.Tensor, torch.Tensor, torch.Tensor, tp.List[tp.Any]]:
        """A batch as the model takes it: codes and what is read of them, [B, K, T] each, valid [B, T], attributes."""
        length = max(self._read(example) for example in examples)
        codes = self._there(torch.stack([nn.functional.pad(e.codes[:, :length], (0, max(0, length - e.codes.shape[-1])))
                                         for e in examples]))  # [B, K, T]
        starts, stops = self._there(torch.tensor([[e.start, e.stop] for e in examples])).T[..., None]  # [B, 1] each
        frames = torch.arange(length, device=self.device)
        valid = (frames >= starts) & (frames < stops)  # [B, T]
        if any(e.counted is not None for e in examples):
            counted = [torch.ones(length, dtype=torch.bool) if e.counted is None else e.counted[:length].bool()
                       for e in examples]
            valid = valid & self._there(torch.stack([nn.functional.pad(one, (0, length - len(one)))
                                                     for one in counted]))
        # what follows the music is never read, as in training with `tokens.padding_with_special_token`
        after = (frames >= stops)[:, None].expand_as(codes)  # [B, K, T]
        inputs = codes.masked_fill(after, tp.cast(tp.Any, self.lm).special_token_id)
        return codes, inputs, valid, [e.attributes for e in examples]

    def _in_batches(self, examples: tp.Sequence[Example], ask: tp.Callable[[tp.Sequence[Example]], T]
                    ) -> tp.Iterator[tp.Tuple[tp.List[int], T]]:
        lengths = [self._read(example) for example in examples]
        kinds = self._kinds(examples)
        waiting = sorted(range(len(examples)), key=lambda index: (kinds[index], -lengths[index]))
        while waiting:
            count = max(1, self.batch_size * max(lengths) // lengths[waiting[0]])
            batch = [index for index in waiting[:min(count, self._at_most)] if kinds[index] == kinds[waiting[0]]]
            found = self._if_it_fits([examples[index] for index in batch], ask)
            if found is None:
                continue
            yield batch, found
            waiting = waiting[len(batch):]

    def _if_it_fits(self, batch: tp.Sequence[Example], ask: tp.Callable[[tp.Sequence[Example]], T]) -> tp.Optional[T]:
        """What was asked of a batch, or None and a smaller `batch_size` where memory ran out."""
        try:
            return ask(batch)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not _is_out_of_memory(error):
                raise
        gc.collect()  # what the failed pass held is in a traceback that has just ended
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        if len(batch) == 1:
            raise LuminaError(f"There is not enough memory on {self.device} for the gradients of a single chunk of "
                              f"{self._read(batch[0])} frames; use a device with more, or a recipe with a smaller "
                              "chunk_seconds or block_width.")
        self.batch_size, self._at_most = max(1, self.batch_size // 2), len(batch) // 2
        logger.warning("Memory on %s ran out with %d chunks at once; going on with at most %d and batch_size %d.",
                       self.device, len(batch), self._at_most, self.batch_size)
        return None

    def _kinds(self, examples: tp.Sequence[Example]) -> tp.List[int]:
        """Which examples may share a pass, as numbers: those that padding for the others' sake would not change.

        Their conditions have one shape, for the model attends to padded ones. Where codes end before all of them can be
        predicted (or a MAGNeT attends to what follows them), they have one length as well.
        """
        numbers: tp.Dict[tp.Hashable, int] = {}
        kinds = []
        with _undisturbed(self.lm):
            for example in examples:
                read, length = self._read(example), example.codes.shape[-1]
                kind = condition_shapes(self.lm, example.attributes), read if read == length else None
                kinds.append(numbers.setdefault(kind, len(numbers)))
        return kinds

    def _read(self, example: Example) -> int:
        """Frames of an example that the model must read: with a delay pattern, the last ones that count are predicted
        some steps after the music has ended. A MAGNeT reads all that there are."""
        if is_magnet(self.lm):
            return example.codes.shape[-1]
        provider: tp.Any = self.lm.pattern_provider
        return min(example.codes.shape[-1], example.stop + max(getattr(provider, 'delays', [0])))

    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the model's device; to a GPU from pinned memory, without waiting for it."""
        if self.device.type != 'cuda' or tensor.device.type != 'cpu':
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch's CPU allocator says so in a plain RuntimeError alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def add_to_songs(sums: Gradients, gradients: Gradients, rows: tp.Sequence[int], weights: tp.Sequence[float], songs: int
                 ) -> None:
    """Add a batch of gradients to those of whole songs, in place.

    Args:
        sums (dict): By block name, [songs, o', i']; made where it is missing. gradients (dict): [B, o', i'] each.
        rows (sequence of int): Of each of the batch, which song it is of. weights (sequence of float): What it counts.
        songs (int): n.
    """
    for name, gradient in gradients.items():
        if name not in sums:
            sums[name] = gradient.new_zeros(songs, *gradient.shape[1:])
        for place, (row, weight) in enumerate(zip(rows, weights, strict=True)):
            sums[name][row].add_(gradient[place], alpha=weight)


class _undisturbed:
    """Evaluation mode and a random state of its own for the duration of a pass; both are put back.

    Python's own starts over in every pass: demucs draws from it where it cuts a melody.
    """

    def __init__(self, lm: nn.Module):
        self.lm = lm

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self.lm.modules()]
        devices = [p.device for p in self.lm.parameters() if p.device.type == 'cuda'][:1]
        self._rng = torch.random.fork_rng(devices=devices)
        self._rng.__enter__()
        self._python = random.getstate()
        random.seed(0)
        self.lm.eval()

    def __exit__(self, *error: tp.Any) -> None:
        for module, training in self._modes:
            module.training = training
        random.setstate(self._python)
        self._rng.__exit__(*error)
