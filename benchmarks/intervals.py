"""Intervals on the shares of one query in one channel, over up to a million songs: processor time and memory by gate.

    python benchmarks/intervals.py [--songs 10000 --songs 100000 --songs 1000000] [--rounds 3]

Synthetic scores of a query of three chunks at four checkpoints (a clip of 30 s), against songs of which some are found
by everything and thirty are its sources; 64 outside songs. Scores are fp64 as the library gives them. Everything that
intervals take is timed: 200 resamples, all songs in each. Seconds are the processor's, of all threads.
"""

import statistics
import time
import typing as tp

import numpy as np
import typer
from scale import PeakMemory

from lumina_plugin.calibration import Null
from lumina_plugin.intervals import Parts, share_intervals
from lumina_plugin.statistics import channel_statistics

CHUNKS, CHECKPOINTS, OUTSIDE, SOURCES, DIM = 3, 4, 64, 30, 512


def synthetic(songs: int) -> tp.Tuple[Parts, np.ndarray, Null]:
    """A query's parts, its scores [N], and what chance scores."""
    rng = np.random.default_rng(0)
    hub, spread = 0.1 * rng.exponential(size=songs), 0.05 + 0.1 * rng.random(songs)
    own = hub + spread * rng.normal(size=songs)
    own[:SOURCES] += np.linspace(2., 0.2, SOURCES)
    scores = [own + 0.5 * spread * rng.normal(size=(CHUNKS, songs)) for _ in range(CHECKPOINTS)]
    vectors = [rng.normal(size=DIM) + 0.5 * rng.normal(size=(CHUNKS, DIM)) for _ in range(CHECKPOINTS)]
    outside = np.empty((OUTSIDE, songs), dtype=np.float32)
    for row in outside:
        row[:] = hub + spread * rng.normal(size=songs) + 0.3 * rng.normal()
    parts = Parts(vectors, [rows.mean(axis=0) for rows in vectors], np.full(CHUNKS, 250.), scores, scores,
                  (False, False))
    return parts, np.mean([rows.mean(axis=0) for rows in scores], axis=0), Null(outside)


def measure(songs: int, rounds: int) -> tp.Iterator[str]:
    """The table's rows for a catalogue."""
    parts, score, null = synthetic(songs)
    for gate, calibrated in ('calibrated', null), ('printed', None):
        values = channel_statistics(score, score, float(score.std()), noise_mean=float(score.mean()), null=calibrated)
        values.share.sum()  # made when first asked for, by whoever it is
        took = []
        with PeakMemory() as memory:
            for _ in range(rounds):
                begun = time.process_time()
                found = share_intervals(values, calibrated, parts, 1)
                took.append(time.process_time() - begun)
        assert found is not None
        yield (f'| {songs:,} | {gate} | {int(values.qualified.sum()):,} | {int((found.high > 0).sum()):,} | '
               f'{statistics.median(took):.2f} | {memory.bytes / 2 ** 30:.2f} |')


def main(songs: tp.Optional[tp.List[int]] = None, rounds: int = 3) -> None:
    """Measure and print a Markdown table."""
    print('| songs | gate | paid | paid in any resample | intervals, CPU s | GiB |')
    print('|---|---|---|---|---|---|')
    for count in songs or [100, 10_000, 100_000, 1_000_000]:
        for row in measure(count, rounds):
            print(row, flush=True)


if __name__ == '__main__':
    typer.run(main)
