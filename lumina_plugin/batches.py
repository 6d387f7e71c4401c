"""Training batches straight from codes that are already known, so that a small training never encodes twice."""

import copy
import dataclasses
import math
import typing as tp

import flashy
import numpy as np
import torch


class TokenBatchLoader:
    """Random segments of tokenized songs in place of audiocraft's `CachedBatchLoader`, whose role it plays.

    Songs are drawn in proportion to their length, segments uniformly within them; draws depend on the seed, the epoch,
    the rank and the batch alone, so that a resumed training sees what an uninterrupted one would have seen.

    Args:
        infos (list): One audiocraft `MusicInfo` per song, as its dataset gives them (text and so on).
        streams (list): Per song one or more code sequences [K, T] of it, of which a draw takes any.
        frame_rate (float): Frames per second.
        segment_duration (float): Seconds. batch_size (int): Per rank. updates (int): Batches per epoch. seed (int).
    """

    def __init__(self, infos: tp.Sequence[tp.Any], streams: tp.Sequence[tp.Sequence[torch.Tensor]],
                 frame_rate: float, segment_duration: float, batch_size: int, updates: int, seed: int):
        self.infos, self.streams, self.frame_rate = list(infos), list(streams), frame_rate
        self.frames = round(segment_duration * self.frame_rate)
        self.batch_size, self.updates, self.seed = batch_size, updates, seed
        self.epoch = 0
        self.sampler = None  # a DataLoader has one
        self._weights = torch.tensor([float(one[0].shape[-1]) for one in self.streams])

    def __len__(self) -> int:
        return self.updates

    def start_epoch(self, epoch: int) -> None:
        """Called by the solver at the beginning of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> tp.Iterator[tp.Tuple[tp.List[tp.Any]]]:
        for update in range(self.updates):
            sequence = np.random.SeedSequence([self.seed, self.epoch, flashy.distrib.rank(), update])
            state = int(sequence.generate_state(1, np.uint64)[0])
            generator = torch.Generator().manual_seed(state & (2**63 - 1))
            songs = torch.multinomial(self._weights, self.batch_size, replacement=True, generator=generator)
            yield ([self._segment(int(song), generator) for song in songs],)

    def _segment(self, song: int, generator: torch.Generator) -> tp.Any:
        ways = self.streams[song]
        codes = ways[int(torch.randint(0, len(ways), (1,), generator=generator))]  # [K, T]
        room = codes.shape[-1] - self.frames
        start = int(torch.randint(0, room + 1, (1,), generator=generator)) if room > 0 else 0
        piece = codes[:, start:start + self.frames]  # [K, <= frames]
        valid = piece.shape[-1]
        info = copy.copy(self.infos[song])
        samples = info.sample_rate / self.frame_rate  # per frame
        total = int(self.frames * samples)
        return dataclasses.replace(
            info, seek_time=start / self.frame_rate, n_frames=min(math.ceil(valid * samples) + 1, total),
            total_frames=total,
            audio_tokens=torch.nn.functional.pad(piece, (0, self.frames - valid)))
