"""Training batches straight from codes that are already known, so that a small training never encodes twice."""

import copy
import dataclasses
import typing as tp

import flashy
import numpy as np
import torch

from .tokens import TokenizedAudio


class TokenBatchLoader:
    """Random segments of tokenized songs in place of audiocraft's `CachedBatchLoader`, whose role it plays.

    Songs are drawn in proportion to their length, segments uniformly within them; draws depend on the seed, the epoch,
    the rank and the batch alone, so that a resumed training sees what an uninterrupted one would have seen.

    Args:
        infos (list): One audiocraft `MusicInfo` per song, as its dataset gives them (text and so on).
        tokens (list of TokenizedAudio): Codes of the same songs.
        segment_duration (float): Seconds. batch_size (int): Per rank. updates (int): Batches per epoch. seed (int).
    """

    def __init__(self, infos: tp.Sequence[tp.Any], tokens: tp.Sequence[TokenizedAudio], segment_duration: float,
                 batch_size: int, updates: int, seed: int):
        self.infos, self.codes = list(infos), [one.codes for one in tokens]
        self.frame_rate = tokens[0].frame_rate
        self.frames = round(segment_duration * self.frame_rate)
        self.batch_size, self.updates, self.seed = batch_size, updates, seed
        self.epoch = 0
        self.sampler = None  # a DataLoader has one
        self._weights = torch.tensor([float(codes.shape[-1]) for codes in self.codes])

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
        codes = self.codes[song]
        room = codes.shape[-1] - self.frames
        start = int(torch.randint(0, room + 1, (1,), generator=generator)) if room > 0 else 0
        piece = codes[:, start:start + self.frames]  # [K, <= frames]
        valid = piece.shape[-1]
        info = copy.copy(self.infos[song])
        samples = info.sample_rate / self.frame_rate  # per frame
        return dataclasses.replace(
            info, seek_time=start / self.frame_rate, n_frames=int(valid * samples),
            total_frames=int(self.frames * samples),
            audio_tokens=torch.nn.functional.pad(piece, (0, self.frames - valid)))
