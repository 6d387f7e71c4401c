"""Kernel regression over up to a million songs: seconds to fit and to answer, memory beyond the mapped files.

    python benchmarks/scale.py [--songs 10000 --songs 100000 --songs 1000000] [--folder /tmp/scale]

Synthetic fp16 fingerprints of two channels, D = 512, one checkpoint, in files that are memory-mapped and warm. A query
is both channels: cosine and kernel regression against every song, the gate, all statistics, and the 20 highest songs;
one query alone makes the statistics of every song, a batch those of the highest songs and of all that qualify.
"""

import collections
import statistics
import tempfile
import threading
import time
import typing as tp
from pathlib import Path

import numpy as np
import torch
import typer

from lumina_plugin.scoring import Scorer, StackedRows, fit_scorers, highest, score_together
from lumina_plugin.statistics import ChannelStatistics, channel_statistics, measured_noise

DIM, CHANNELS, TOP, SHARD = 512, ('P', 'M'), 20, 1 << 16


class PeakMemory:
    """Highest anonymous memory of this process while the block runs, in bytes above what it was before."""

    def __enter__(self) -> 'PeakMemory':
        self.before = self.peak = _anonymous()
        self._running = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._running:
            self.peak = max(self.peak, _anonymous())
            time.sleep(0.005)

    def __exit__(self, *error: tp.Any) -> None:
        self._running = False
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self.peak - self.before


def _anonymous() -> int:
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith('RssAnon'))


def synthetic(folder: Path, songs: int, seed: int) -> StackedRows:
    """Songs around a common direction, [N, D] fp16 of length 1, as mapped shards."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(DIM, generator=generator)
    parts = []
    for first in range(0, songs, SHARD):
        count = min(SHARD, songs - first)
        path = folder / f'{seed}-{songs}-{first}.f16'
        if not path.exists():
            rows = torch.randn(count, DIM, generator=generator) + 0.2 * common
            rows /= rows.norm(dim=1, keepdim=True)
            path.write_bytes(rows.half().numpy().tobytes())
        parts.append(torch.from_file(str(path), shared=False, size=count * DIM, dtype=torch.half).view(count, DIM))
    return StackedRows(parts, DIM)


EVERY = ('z', 'confidence', 'sts', 'lip_percent', 'weight', 'share', 'passes_gate', 'qualified')


def answer(scorers: tp.Mapping[str, Scorer], queries: np.ndarray, noise: tp.Tuple[float, float], every: bool
           ) -> tp.Iterator[tp.Tuple[ChannelStatistics, np.ndarray]]:
    """Statistics of each query in one channel, of `every` song or of the highest ones and those that qualify, and the
    indices of the highest."""
    cosines, scores = score_together([scorers['cosine'], scorers['kernel']], queries)
    for cosine, score in zip(cosines, scores, strict=True):
        values = channel_statistics(cosine, score, noise[1], noise_mean=noise[0])
        best = highest(score, TOP)
        for some in (values,) if every else (values.at(best), values.at(values.candidates)):
            for name in EVERY:
                getattr(some, name)
        yield values, best


def measure(folder: Path, songs: int, rounds: int) -> str:
    """One row of the table."""
    stores = {channel: synthetic(folder, songs, seed) for seed, channel in enumerate(CHANNELS)}
    for rows in stores.values():
        for block in rows.blocks(SHARD):
            block.sum()  # warm the page cache
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(64, DIM)) + rows.take(np.array([1]))
    with PeakMemory() as memory:
        begun = time.perf_counter()
        fitted = {channel: fit_scorers(['cosine', 'kernel'], rows, 0.01) for channel, rows in stores.items()}
        fit = time.perf_counter() - begun
        noise = {channel: measured_noise([rows]) for channel, rows in stores.items()}
        single = []
        for index in range(rounds + 1):
            begun = time.perf_counter()
            for channel in CHANNELS:
                collections.deque(answer(fitted[channel], queries[index:index + 1], noise[channel], True), maxlen=0)
            single.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for channel in CHANNELS:
            for first in range(0, len(queries), 32):
                collections.deque(answer(fitted[channel], queries[first:first + 32], noise[channel], False), maxlen=0)
        batch = time.perf_counter() - begun
    return (f'| {songs:,} | {fit:.2f} | {statistics.median(single[1:]):.3f} | {batch:.2f} | '
            f'{memory.bytes / 2 ** 30:.2f} |')


def main(songs: tp.Optional[tp.List[int]] = None, folder: tp.Optional[Path] = None, rounds: int = 5) -> None:
    """Measure and print a Markdown table."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        print('| songs | fit, s | one query, s | 64 queries, s | GiB beyond the mapped files |')
        print('|---|---|---|---|---|')
        for count in songs or [10_000, 100_000, 1_000_000]:
            print(measure(place, count, rounds), flush=True)


if __name__ == '__main__':
    typer.run(main)
