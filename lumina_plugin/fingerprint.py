"""From chunks of codes to fingerprints: the pass over a catalogue and the very same route for a query."""

import dataclasses
import sys
import typing as tp

import torch
from torch import nn

from .capture import Moments, Reducer
from .channels import Block
from .errors import LuminaError
from .gradients import Example, GradientModel, Gradients, add_to_songs
from .projection import BlockReducers, ChannelProjection, FittedProjection, RandomProjection
from .recipe import Recipe
from .separation import RANK, RECORDINGS, TIMES

Projections = tp.Dict[str, ChannelProjection]  # by channel
Progress = tp.Callable[[tp.Iterable, str, int], tp.Iterable]

FACTOR_CHUNKS = 64  # chunks whose second moments fit the two-sided factors
WINDOW_SONGS, WINDOW_BYTES = 32, 2 ** 28  # songs, and memory of gradients, that wait to be projected at once
FIT_BYTES = 2 * 2 ** 30  # memory for the joined gradients that a fit looks at


@dataclasses.dataclass(frozen=True)
class Song:
    """A catalogue song as examples, which may be read from disk when they are asked for."""
    id: str
    examples: tp.Sequence[Example]


@dataclasses.dataclass(frozen=True)
class Window:
    """A few songs in a row, whose gradients were computed together.

    Args:
        songs (list of str): Their ids.
        rows (dict): By channel, their joined gradients [n, R], of length 1.
        norms (dict): By channel, lengths [n] of their gradients before any scaling.
        chunk_norms (list of dict): For each song, by channel, the same of each of its chunks, [chunks].
    """
    songs: tp.List[str]
    rows: tp.Dict[str, torch.Tensor]
    norms: tp.Dict[str, torch.Tensor]
    chunk_norms: tp.List[tp.Dict[str, torch.Tensor]]

    def cpu(self) -> 'Window':
        """The same in the processor's memory, as a process tells it to another."""
        rows, norms = ({channel: values.cpu() for channel, values in by_channel.items()}
                       for by_channel in (self.rows, self.norms))
        return Window(self.songs, rows, norms, self.chunk_norms)


class Fingerprint(tp.NamedTuple):
    """A song's fingerprint.

    Args:
        song (str): Its id. vectors (dict): By channel, [D]. norms (dict): By channel, length of its raw gradient.
        chunk_norms (dict): By channel, the same of each of its chunks, [chunks].
    """
    song: str
    vectors: tp.Dict[str, torch.Tensor]
    norms: tp.Dict[str, float]
    chunk_norms: tp.Dict[str, torch.Tensor]


class Fingerprinter(GradientModel):
    """Compute fingerprints of one model under one recipe.

    Args:
        lm (nn.Module): audiocraft `LMModel`.
        recipe (Recipe): Objective, channels, projection.
        weights (mapping, optional): State dict to use in place of the model's own (EMA weights, an earlier checkpoint).
        projections (mapping, optional): By channel; without them `fit` must run before a fingerprint is asked for.
        batch_size (int): Chunks per forward pass; halved when memory runs out.
        autocast (callable, optional): Makes a context for the forward pass (half precision on a GPU).
    """

    def __init__(self, lm: nn.Module, recipe: Recipe, weights: tp.Optional[tp.Mapping[str, torch.Tensor]] = None,
                 projections: tp.Optional[Projections] = None, batch_size: int = 8,
                 autocast: tp.Optional[tp.Callable[[], tp.ContextManager]] = None):
        super().__init__(lm, recipe, weights, batch_size, autocast)
        self.projections = projections

    def alone(self, channel: str) -> 'Fingerprinter':
        """The same for one channel: what the others would cost is not computed. Without projections."""
        recipe = self.recipe.model_copy(update={'channels': {channel: self.recipe.channels[channel]}})
        weights = {name.removeprefix('lm.'): tensor for name, tensor in self._state.items()}
        return Fingerprinter(self.lm, recipe, weights, batch_size=self.batch_size, autocast=self.autocast)

    # -- gradients of songs -----------------------------------------------------------------------------------------

    def windows(self, songs: tp.Sequence[Song], reducers: tp.Mapping[str, BlockReducers]) -> tp.Iterator[Window]:
        """Joined gradients of songs, a few songs at a time, in order.

        A window's songs share their batches, and no two windows do: what a song yields does not depend on the songs of
        other windows at all, and on those of its own by rounding alone.
        """
        for group in self.grouped(songs, reducers):
            gradients, chunk_norms = self.song_gradients([song.examples for song in group], _union(reducers))
            joined = {channel: reducer.join(gradients) for channel, reducer in reducers.items()}
            yield Window([song.id for song in group], {channel: rows for channel, (rows, _) in joined.items()},
                         {channel: norms for channel, (_, norms) in joined.items()}, chunk_norms)

    def grouped(self, songs: tp.Sequence[Song], reducers: tp.Mapping[str, BlockReducers]
                ) -> tp.Iterator[tp.Sequence[Song]]:
        """Songs as windows hold them: as many in a row as memory takes."""
        each = 4 * sum(reducer.dim for reducer in reducers.values())
        together = max(1, min(WINDOW_SONGS, WINDOW_BYTES // each))
        for first in range(0, len(songs), together):
            yield songs[first:first + together]

    def song_gradients(self, songs: tp.Sequence[tp.Sequence[Example]], reducers: tp.Mapping[str, Reducer]
                       ) -> tp.Tuple[Gradients, tp.List[tp.Dict[str, torch.Tensor]]]:
        """Gradients of whole songs, each the mean over its chunks weighted by valid frames.

        Returns:
            dict: By block name, [n, o', i'] for n songs.
            list of dict: For each song, by channel, the lengths of its chunks' gradients, [chunks].
        """
        flat = [(row, example) for row, song in enumerate(songs) for example in song]
        totals = [sum(example.weight for example in song) for song in songs]
        sums: Gradients = {}
        squares = {channel: torch.zeros(len(flat)) for channel in self.channels}
        for batch, gradients in self.batches([example for _, example in flat], reducers):
            parts = [flat[index] for index in batch]
            add_to_songs(sums, gradients, [row for row, _ in parts],
                         [example.weight / totals[row] for row, example in parts], len(songs))
            for channel, blocks in self.channels.items():
                found = sum(gradients[block.name].flatten(1).norm(dim=1).square() for block in blocks)
                squares[channel][batch] = tp.cast(torch.Tensor, found).float().cpu()
            gradients.clear()  # not to be held beside those of the next batch
        sizes = [len(song) for song in songs]
        split = {channel: values.sqrt().split(sizes) for channel, values in squares.items()}
        return sums, [{channel: parts[row] for channel, parts in split.items()} for row in range(len(songs))]

    # -- fitting --------------------------------------------------------------------------------------------------

    def fit(self, songs: tp.Sequence[Song], progress: Progress = lambda items, *_: items
            ) -> tp.Tuple[Projections, tp.List[Window]]:
        """Fit or build the projections, from a spread sample of the songs where they depend on data.

        Args:
            songs (sequence of Song): The catalogue without its silent songs.
            progress (callable): Wraps an iterable with a label and its length.
        Returns:
            Projections: By channel; also kept in `self.projections`.
            list of Window: Gradients of the songs that were used, in order; none when nothing was fitted.
        Raises:
            LuminaError: for a separated channel, which recordings are needed for.
        """
        if self.separated:
            raise LuminaError(f"Channel {self.separated[0]} is to be separated, which songs as codes are not enough "
                              "for; fingerprint by `passes.run_pass`, or pass projections from "
                              "`pairs.fit_separations`.")
        reducers = self.fit_reducers(songs, progress)
        sample = self.fit_sample(songs, reducers)
        windows = list(self.windows(sample, reducers))
        self.projections = self.fit_projections(reducers, windows)
        return self.projections, windows

    def fit_reducers(self, songs: tp.Sequence[Song], progress: Progress = lambda items, *_: items
                     ) -> tp.Dict[str, BlockReducers]:
        """The first stage of the projections, by channel; fitted on second moments of a few chunks where the recipe
        says so."""
        config, norm = self.recipe.projection, self.recipe.block_norm
        widths = {channel: config.width_of(channel) for channel in self.channels}
        if config.factor_kind == 'random' and config.block_width is not None:
            return {channel: BlockReducers.random(blocks, tp.cast(int, widths[channel]), config.seed, norm, self.device)
                    for channel, blocks in self.channels.items()}
        moments = {name: Moments() for name in self.blocks}
        if any(max(b.out_features, b.in_features) > (widths[channel] or sys.maxsize)
               for channel, blocks in self.channels.items() for b in blocks):
            chunks = [(song, index) for song in spread(songs, FACTOR_CHUNKS) for index in range(len(song.examples))]
            sample = [song.examples[index] for song, index in spread(chunks, FACTOR_CHUNKS)]
            for _ in progress(self.batches(sample, moments), 'second moments', -(-len(sample) // self.batch_size)):
                pass
        return {channel: BlockReducers.fit(blocks, moments, widths[channel], norm)
                for channel, blocks in self.channels.items()}

    def fit_sample(self, songs: tp.Sequence[Song], reducers: tp.Mapping[str, BlockReducers]) -> tp.List[Song]:
        """The songs that the second stage of the projections is fitted on: none where it depends on no data."""
        if all(self.recipe.projection.kind_of(channel) != 'fitted' for channel in self.channels):
            return []
        return spread(songs, self._fit_songs(sum(reducer.dim for reducer in reducers.values())))

    def fit_projections(self, reducers: tp.Mapping[str, BlockReducers], windows: tp.Sequence[Window]) -> Projections:
        """Both stages of these channels, none of them separated, from the gradients of `fit_sample`."""
        config = self.recipe.projection
        projections: Projections = {}
        for channel, reducer in reducers.items():
            if config.kind_of(channel) == 'random':
                projections[channel] = ChannelProjection(
                    reducer, RandomProjection(reducer.dim, config.dim, config.seed))
                continue
            rows = torch.cat([window.rows[channel].to(self.device) for window in windows])
            projections[channel] = ChannelProjection(reducer, FittedProjection.fit(
                rows, config.dim, config.residual_dim, config.center, config.seed))
        return projections

    def _fit_songs(self, joined_dim: int) -> int:
        """How many songs' joined gradients a fit may hold at once."""
        return min(self.recipe.projection.fit_songs, max(2, FIT_BYTES // (4 * joined_dim)))

    @property
    def separated(self) -> tp.List[str]:
        """The channels that are to be separated."""
        return [channel for channel in self.channels if self.recipe.projection.kind_of(channel) == 'separated']

    def songs_to_change(self, songs: int, joined_dim: int) -> int:
        """Of so many songs, how many are changed to separate a channel of so many numbers: as a fit has room for their
        recordings."""
        recordings = min(RECORDINGS, FIT_BYTES // (4 * joined_dim))
        return min(songs, self.recipe.projection.fit_songs, max(2, recordings // (1 + TIMES)))

    def recordings(self, songs: int) -> tp.Dict[str, int]:
        """By separated channel, how many recordings a pass over so many songs fits it on."""
        kept = self._kept()
        return {channel: (1 + TIMES) * self.songs_to_change(songs, sum(o * i for o, i, _ in kept[channel]))
                for channel in self.separated}

    def _kept(self) -> tp.Dict[str, tp.List[tp.Tuple[int, int, Block]]]:
        """By channel, its blocks with what is kept of both sides of their gradients, [o', i']."""
        width = self.recipe.projection.width_of
        return {channel: [(min(b.out_features, width(channel) or b.out_features),
                           min(b.in_features, width(channel) or b.in_features), b) for b in blocks]
                for channel, blocks in self.channels.items()}

    def fit_bytes(self, songs: int) -> tp.Tuple[int, int]:
        """What a pass over so many songs will need: bytes of the projections that are fitted, and of the gradients that
        are held at once (those that a fit looks at, twice as they may be centred; or else a few batches)."""
        config, kept, recordings = self.recipe.projection, self._kept(), self.recordings(songs)
        factors = sum(rows * b.out_features + columns * b.in_features
                      for blocks in kept.values() for rows, columns, b in blocks) if config.block_width else 0
        stored = factors if config.factor_kind == 'fitted' else 0  # random ones are made again from their seed
        numbers = {channel: sum(rows * columns for rows, columns, _ in blocks) for channel, blocks in kept.items()}
        joined = sum(numbers.values())
        used = min(songs, self._fit_songs(joined))
        rank, held, made = min(used - config.center, config.dim - (config.residual_dim or 0)), [0], stored
        for channel, size in numbers.items():  # separated ones are fitted one after the other, before all others
            if channel in recordings:
                made += size * (min(RANK, config.dim, recordings[channel]) + 1)
                held.append(2 * recordings[channel] * size)
            elif config.kind_of(channel) == 'fitted':
                made += size * (rank + 1)
                held.append(2 * used * joined)
        # without any fit: a batch, its parts of songs, and joined rows with signs
        return 4 * made, 4 * (factors - stored + (max(held) or joined * (2 * self.batch_size + 4)))

    # -- fingerprints ---------------------------------------------------------------------------------------------

    def fingerprints(self, songs: tp.Sequence[Song]) -> tp.Iterator[Fingerprint]:
        """Fingerprints of songs, in order."""
        projections = self._ready()
        for window in self.windows(songs, {channel: p.reducers for channel, p in projections.items()}):
            yield from self.project(window)

    def project(self, window: Window) -> tp.Iterator[Fingerprint]:
        """Fingerprints from the gradients of a window's songs."""
        vectors = {channel: p.projection(window.rows[channel]).cpu() for channel, p in self._ready().items()}
        norms = {channel: values.cpu() for channel, values in window.norms.items()}
        for index, song in enumerate(window.songs):
            yield Fingerprint(song, {channel: rows[index] for channel, rows in vectors.items()},
                              {channel: float(values[index]) for channel, values in norms.items()},
                              window.chunk_norms[index])

    def query(self, examples: tp.Sequence[Example], parts: tp.Optional[tp.Sequence[int]] = None,
              groups: tp.Optional[tp.Sequence[int]] = None
              ) -> tp.Tuple[tp.Dict[str, torch.Tensor], tp.Dict[str, torch.Tensor]]:
        """Fingerprint of a query and of each of its parts.

        Args:
            examples (sequence of Example): n of them.
            parts (sequence of int, optional): Which part, counted from 0, each example belongs to: a part that several
                ways of encoding it stand for is their mean. Every example is a part of its own unless said.
            groups (sequence of int, optional): Which of G groups, counted from 0, each example belongs to, where these
                have a fingerprint each instead of the whole query.
        Returns:
            dict: By channel, the query's fingerprint of shape [D]; with `groups` theirs, [G, D].
            dict: By channel, one fingerprint per part, of shape [parts, D].
        """
        projections = self._ready()
        weights = torch.tensor([example.weight for example in examples])
        whole = _means(weights, [0] * len(examples) if groups is None else groups)  # [1 or G, n]
        mixture = torch.cat([whole, _means(weights, range(len(examples)) if parts is None else parts)])
        mixed = self._mixed(examples, mixture)
        vectors = {channel: projection(mixed)[0].cpu() for channel, projection in projections.items()}
        return ({channel: rows[0] if groups is None else rows[:len(whole)] for channel, rows in vectors.items()},
                {channel: rows[len(whole):] for channel, rows in vectors.items()})

    def _mixed(self, examples: tp.Sequence[Example], mixture: torch.Tensor) -> Gradients:
        """Weighted sums of the n examples' gradients, with weights [m, n]: [m, o', i'] per block; no more than one
        batch of gradients is held beside them."""
        sums: Gradients = {}
        for batch, gradients in self.batches(examples, self._reducers()):
            for name, gradient in gradients.items():
                part = torch.einsum('mn,noi->moi', mixture[:, batch].to(gradient), gradient)
                sums[name] = sums[name].add_(part) if name in sums else part
        return sums

    def _ready(self) -> Projections:
        if self.projections is None:
            raise LuminaError("This Fingerprinter has no projection yet; call fit(songs) or pass projections from a "
                              "store.")
        return self.projections

    def _reducers(self) -> tp.Dict[str, Reducer]:
        return _union({channel: projection.reducers for channel, projection in self._ready().items()})


def _means(weights: torch.Tensor, of: tp.Sequence[int]) -> torch.Tensor:
    """What the mean of each of m sets takes of the n examples with these weights, which belong to one set each: [m, n].
    """
    member = weights * (torch.tensor(of) == torch.arange(max(of) + 1)[:, None])
    return member / member.sum(1, keepdim=True)


def spread(items: tp.Sequence, count: int) -> tp.List:
    """`count` items at equal distances, all of them when there are no more."""
    if count >= len(items):
        return list(items)
    return [items[int((index + 0.5) * len(items) / count)] for index in range(count)]


def _union(reducers: tp.Mapping[str, BlockReducers]) -> tp.Dict[str, Reducer]:
    return {name: reducer for one in reducers.values() for name, reducer in one.reducers().items()}
