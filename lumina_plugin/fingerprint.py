"""From chunks of codes to fingerprints: the pass over a catalogue and the very same route for a query."""

import contextlib
import dataclasses
import typing as tp

import torch
from torch import nn

from .capture import GradientCapture, Moments, Reducer
from .channels import Block, resolve_channels
from .errors import LuminaError
from .objectives import Objective, get_objective
from .projection import BlockReducers, ChannelProjection, FittedProjection, Projection, RandomProjection
from .recipe import Recipe

Gradients = tp.Dict[str, torch.Tensor]  # by block name, [n, o', i']
Projections = tp.Dict[str, ChannelProjection]  # by channel
Factory = tp.Callable[[], tp.Any]

FACTOR_CHUNKS = 64  # chunks whose second moments fit the two-sided factors
PROJECTED_TOGETHER, PROJECTED_BYTES = 16, 2 ** 28  # songs, and memory, that wait to be projected at once
FIT_BYTES = 2 * 2 ** 30  # memory for the joined gradients that a fit looks at


@dataclasses.dataclass(frozen=True)
class Example:
    """One chunk as the objective sees it.

    Args:
        codes (torch.Tensor): Shape [K, T].
        start (int): First frame that counts (later than 0 where a prompt is left out).
        stop (int): First frame that does not count any more (padding follows).
        attributes: audiocraft `ConditioningAttributes` of this chunk.
    """
    codes: torch.Tensor
    start: int
    stop: int
    attributes: tp.Any

    @property
    def weight(self) -> float:
        """Valid frames; chunks of a song are averaged with these weights."""
        return float(self.stop - self.start)


@dataclasses.dataclass(frozen=True)
class Song:
    """A catalogue song as a list of examples."""
    id: str
    examples: tp.List[Example]


class _ScoredModel(nn.Module):
    """A language model and its objective as one module, so that `functional_call` can lend it other weights."""

    def __init__(self, lm: nn.Module, objective: Objective):
        super().__init__()
        self.lm = lm
        self.objective = objective

    def forward(self, codes: torch.Tensor, inputs: torch.Tensor, valid: torch.Tensor, attributes: tp.List[tp.Any],
                autocast: tp.Optional[tp.Callable[[], tp.ContextManager]]) -> torch.Tensor:
        """Objective per example, [B], of codes [B, K, T] where valid [B, T], with its backward pass already done.

        The backward pass belongs in here: torch checkpointing recomputes layers in it, which must see the lent weights.
        """
        with autocast() if autocast is not None else contextlib.nullcontext():
            values = self._objective(codes, inputs, valid, attributes)
        values.sum().backward()
        return values.detach()

    def _objective(self, codes: torch.Tensor, inputs: torch.Tensor, valid: torch.Tensor,
                   attributes: tp.List[tp.Any]) -> torch.Tensor:
        with torch.no_grad():
            provider: tp.Any = self.lm.condition_provider
            conditions = provider(provider.tokenize(attributes))
        lm: tp.Any = self.lm
        out = lm.compute_predictions(inputs, [], conditions)
        return self.objective(out.logits, codes, out.mask & valid[:, None])


class Fingerprinter:
    """Compute fingerprints of one model under one recipe.

    The model is left as it was: its weights are lent, detached, to each pass, its training mode is put back, its
    gradients are never touched and the random state is kept.

    Args:
        lm (nn.Module): audiocraft `LMModel`.
        recipe (Recipe): Objective, channels, projection.
        weights (mapping, optional): State dict to use in place of the model's own (EMA weights, an earlier checkpoint).
        projections (mapping, optional): By channel; without them `fit` must run before a fingerprint is asked for.
        batch_size (int): Chunks per forward pass.
        autocast (callable, optional): Makes a context for the forward pass (half precision on a GPU).
    """

    def __init__(self, lm: nn.Module, recipe: Recipe, weights: tp.Optional[tp.Mapping[str, torch.Tensor]] = None,
                 projections: tp.Optional[Projections] = None, batch_size: int = 8,
                 autocast: tp.Optional[tp.Callable[[], tp.ContextManager]] = None):
        self.lm, self.recipe, self.batch_size, self.autocast = lm, recipe, batch_size, autocast
        self.channels: tp.Dict[str, tp.List[Block]] = resolve_channels(lm, recipe.channels)
        self.projections = projections
        state = dict(lm.state_dict()) if weights is None else dict(weights)
        device = next(lm.parameters()).device
        self.device = device
        # always fp32: a mean over thousands of codes makes gradients that half precision would round to zero
        self._state = {f'lm.{name}': tensor.detach().to(device, torch.float32 if tensor.is_floating_point() else None)
                       for name, tensor in state.items()}
        self._model = _ScoredModel(lm, get_objective(recipe.objective))

    @property
    def blocks(self) -> tp.Dict[str, Block]:
        """Every tapped weight of any channel, by name."""
        return {block.name: block for blocks in self.channels.values() for block in blocks}

    # -- gradients ------------------------------------------------------------------------------------------------

    def gradients(self, examples: tp.Sequence[Example], reducers: tp.Mapping[str, Reducer]) -> Gradients:
        """Reduced per-example gradients of one batch, by block name, each [B, o', i']."""
        device = next(self.lm.parameters()).device
        length = max(example.codes.shape[-1] for example in examples)
        codes = torch.stack([nn.functional.pad(e.codes, (0, length - e.codes.shape[-1])) for e in examples]).to(device)
        frames = torch.arange(length, device=device)
        valid = torch.stack([(frames >= e.start) & (frames < e.stop) for e in examples])  # [B, T]
        # what follows the music is never read, as in training with `tokens.padding_with_special_token`
        after = torch.stack([frames >= e.stop for e in examples])[:, None].expand_as(codes)  # [B, K, T]
        inputs = codes.masked_fill(after, tp.cast(tp.Any, self.lm).special_token_id)
        weights = {name: block.of(self._state, 'lm.') for name, block in self.blocks.items()}
        checkpointing = getattr(getattr(self.lm, 'transformer', None), 'checkpointing', 'none')
        capture = GradientCapture(weights, reducers, from_embeddings=checkpointing != 'none')
        with _undisturbed(self.lm), torch.enable_grad(), capture:
            torch.func.functional_call(self._model, self._state, tie_weights=False, args=(
                codes, inputs, valid, [e.attributes for e in examples], self.autocast))
        return capture.collect()

    def song_gradients(self, songs: tp.Sequence[Song], reducers: tp.Mapping[str, Reducer]
                       ) -> tp.Iterator[tp.Tuple[Song, Gradients]]:
        """Gradients of whole songs, each the mean over its chunks weighted by valid frames, in the songs' order.

        Batches may span songs; what a song yields, [1, o', i'] per block, does not depend on its neighbours beyond
        rounding.
        """
        flat = ((song, index) for song in songs for index in range(len(song.examples)))
        sums: Gradients = {}
        for batch in _batches(flat, self.batch_size):
            gradients = self.gradients([song.examples[index] for song, index in batch], reducers)
            for row, (song, index) in enumerate(batch):
                share = song.examples[index].weight / sum(example.weight for example in song.examples)
                for name, tensor in gradients.items():
                    part = tensor[row:row + 1] * share
                    sums[name] = part if index == 0 else sums[name] + part
                if index == len(song.examples) - 1:
                    yield song, sums
                    sums = {}

    # -- fitting --------------------------------------------------------------------------------------------------

    def fit(self, songs: tp.Sequence[Song],
            progress: tp.Callable[[tp.Iterable, str, int], tp.Iterable] = lambda it, *_: it
            ) -> tp.Tuple[Projections, tp.Dict[str, tp.Tuple[torch.Tensor, torch.Tensor]]]:
        """Fit or build the projections, from a spread sample of the songs where they depend on data.

        Args:
            songs (sequence of Song): The catalogue without its silent songs.
            progress (callable): Wraps an iterable with a label and its length.
        Returns:
            Projections: By channel; also kept in `self.projections`.
            dict: By channel, joined rows [n, R] and raw lengths [n] of the songs used, empty when nothing was fitted.
        """
        config = self.recipe.projection
        reducers = self._fit_reducers(songs, progress)
        if config.kind == 'random':
            self.projections = {
                channel: ChannelProjection(reducer, RandomProjection(reducer.dim, config.dim, config.seed))
                for channel, reducer in reducers.items()}
            return self.projections, {}
        total = sum(r.dim for r in reducers.values())
        sample = spread(songs, self._fit_songs(total))
        joined: tp.Dict[str, tp.List[tp.Tuple[torch.Tensor, torch.Tensor]]] = {channel: [] for channel in reducers}
        passes = self.song_gradients(sample, _union(reducers))
        for _, gradients in progress(passes, 'song gradients', len(sample)):
            for channel, reducer in reducers.items():
                joined[channel].append(reducer.join(gradients))
        rows = {channel: (torch.cat([r for r, _ in parts]), torch.cat([n for _, n in parts]))
                for channel, parts in joined.items()}
        projections: tp.Dict[str, Projection] = {
            channel: FittedProjection.fit(r, config.dim, config.residual_dim, config.center, config.seed)
            for channel, (r, _) in rows.items()}
        self.projections = {c: ChannelProjection(reducers[c], projections[c]) for c in reducers}
        return self.projections, rows if len(sample) == len(songs) else {}

    def _fit_songs(self, joined_dim: int) -> int:
        """How many songs' joined gradients a fit may hold at once."""
        return min(self.recipe.projection.fit_songs, max(2, FIT_BYTES // (4 * joined_dim)))

    def fit_bytes(self, songs: int) -> tp.Tuple[int, int]:
        """What a pass over so many songs will need: bytes of the projections that `fit` makes, and of the gradients
        that are held at once (those that it looks at, twice as they may be centred; or else a few batches)."""
        config = self.recipe.projection
        kept = {channel: [(min(b.out_features, config.block_width or b.out_features),
                           min(b.in_features, config.block_width or b.in_features), b) for b in blocks]
                for channel, blocks in self.channels.items()}
        factors = sum(rows * b.out_features + columns * b.in_features
                      for blocks in kept.values() for rows, columns, b in blocks) if config.block_width else 0
        stored = factors if config.factor_kind == 'fitted' else 0  # random ones are made again from their seed
        joined = [sum(rows * columns for rows, columns, _ in blocks) for blocks in kept.values()]
        if config.kind == 'random':  # a batch, its parts of songs, and joined rows with signs
            return 4 * stored, 4 * (factors - stored + sum(joined) * (2 * self.batch_size + 4))
        used = min(songs, self._fit_songs(sum(joined)))
        rank = min(used - config.center, config.dim - config.residual_dim)
        return 4 * (stored + sum(joined) * (rank + 1)), 4 * (factors - stored + 2 * used * sum(joined))

    def _fit_reducers(self, songs: tp.Sequence[Song], progress: tp.Callable) -> tp.Dict[str, BlockReducers]:
        config, norm = self.recipe.projection, self.recipe.block_norm
        width = config.block_width
        if width is not None and config.factor_kind == 'random':
            return {channel: BlockReducers.random(blocks, width, config.seed, norm, self.device)
                    for channel, blocks in self.channels.items()}
        moments = {name: Moments() for name in self.blocks}
        if width is not None and any(max(b.out_features, b.in_features) > width for b in self.blocks.values()):
            chunks = [(song, index) for song in spread(songs, FACTOR_CHUNKS) for index in range(len(song.examples))]
            sample = spread(chunks, FACTOR_CHUNKS)
            batches = list(_batches(sample, self.batch_size))
            for batch in progress(batches, 'second moments', len(batches)):
                self.gradients([song.examples[index] for song, index in batch], moments)
        return {channel: BlockReducers.fit(blocks, moments, width, norm) for channel, blocks in self.channels.items()}

    # -- fingerprints ---------------------------------------------------------------------------------------------

    def fingerprints(self, songs: tp.Sequence[Song]
                     ) -> tp.Iterator[tp.Tuple[Song, tp.Dict[str, torch.Tensor], tp.Dict[str, float]]]:
        """Each song with its fingerprint [D] and its raw gradient length, by channel, in the songs' order."""
        projections = self._ready()
        # several at once: a projection is far larger than what it projects, and is read once for all of them
        each = 4 * sum(projection.reducers.dim for projection in projections.values())
        together = max(1, min(PROJECTED_TOGETHER, PROJECTED_BYTES // each))
        for group in _batches(self.song_gradients(songs, self._reducers()), together):
            joined = {name: torch.cat([gradients[name] for _, gradients in group]) for name in self.blocks}
            done = {channel: projection(joined) for channel, projection in projections.items()}
            rows = {channel: (vectors.cpu(), norms.cpu()) for channel, (vectors, norms) in done.items()}
            for index, (song, _) in enumerate(group):
                yield song, {c: vectors[index] for c, (vectors, _) in rows.items()}, \
                    {c: float(norms[index]) for c, (_, norms) in rows.items()}

    def query(self, examples: tp.Sequence[Example], parts: tp.Optional[tp.Sequence[int]] = None
              ) -> tp.Tuple[tp.Dict[str, torch.Tensor], tp.Dict[str, torch.Tensor]]:
        """Fingerprint of a query and of each of its parts.

        Args:
            examples (sequence of Example): n of them.
            parts (sequence of int, optional): Which part, counted from 0, each example belongs to: a part that several
                ways of encoding it stand for is their mean. Every example is a part of its own unless said.
        Returns:
            dict: By channel, the query's fingerprint of shape [D].
            dict: By channel, one fingerprint per part, of shape [parts, D].
        """
        projections = self._ready()
        index = torch.arange(len(examples)) if parts is None else torch.tensor(parts)
        weights = torch.tensor([example.weight for example in examples])
        member = weights * (index == torch.arange(int(index.max()) + 1)[:, None])  # [parts, n]
        whole, each = self._mixed(examples, [(weights / weights.sum())[None], member / member.sum(1, keepdim=True)])
        return ({channel: projection(whole)[0][0].cpu() for channel, projection in projections.items()},
                {channel: projection(each)[0].cpu() for channel, projection in projections.items()})

    def _mixed(self, examples: tp.Sequence[Example], mixtures: tp.Sequence[torch.Tensor]) -> tp.List[Gradients]:
        """Weighted sums of the examples' gradients: for each [m, n] of weights, [m, o', i'] per block; no more than one
        batch of gradients is held beside them."""
        sums: tp.List[Gradients] = [{} for _ in mixtures]
        first = 0
        for batch in _batches(examples, self.batch_size):
            for name, gradient in self.gradients(batch, self._reducers()).items():
                for total, mixture in zip(sums, mixtures, strict=True):
                    share = mixture[:, first:first + len(batch)].to(gradient)
                    part = torch.einsum('pn,noi->poi', share, gradient)
                    total[name] = part if first == 0 else total[name].add_(part)
            first += len(batch)
        return sums

    def _ready(self) -> Projections:
        if self.projections is None:
            raise LuminaError("This Fingerprinter has no projection yet; call fit(songs) or pass projections from a "
                              "store.")
        return self.projections

    def _reducers(self) -> tp.Dict[str, Reducer]:
        return _union({channel: projection.reducers for channel, projection in self._ready().items()})


def spread(items: tp.Sequence, count: int) -> tp.List:
    """`count` items at equal distances, all of them when there are no more."""
    if count >= len(items):
        return list(items)
    return [items[int((index + 0.5) * len(items) / count)] for index in range(count)]


def _union(reducers: tp.Mapping[str, BlockReducers]) -> tp.Dict[str, Reducer]:
    return {name: reducer for one in reducers.values() for name, reducer in one.reducers().items()}


def _batches(items: tp.Iterable, size: int) -> tp.Iterator[tp.List]:
    batch: tp.List = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class _undisturbed:
    """Evaluation mode and a random state of its own for the duration of a pass; both are put back."""

    def __init__(self, lm: nn.Module):
        self.lm = lm

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self.lm.modules()]
        devices = [p.device for p in self.lm.parameters() if p.device.type == 'cuda'][:1]
        self._rng = torch.random.fork_rng(devices=devices)
        self._rng.__enter__()
        self.lm.eval()

    def __exit__(self, *error: tp.Any) -> None:
        for module, training in self._modes:
            module.training = training
        self._rng.__exit__(*error)
