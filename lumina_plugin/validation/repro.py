"""`lumina validate repro`: how far a fingerprint moves when nothing but the machine's way of computing it changes.

Reference: one chunk per pass, one thread, fp32. Everything else should give the same fingerprint: repeats to the bit,
other batches and threads but for rounding; half precision is another matter, and this says how much of one.
"""

import contextlib
import dataclasses
import typing as tp
from pathlib import Path

import numpy as np
import torch

from ..attribution import Attributor
from ..fingerprint import spread
from ..scoring import unit_rows
from ..store import FingerprintStore
from .opened import KEPT, Opened, query_facts
from .queries import Query
from .results import kept_parts, png, save, table
from .truth import FloatArray

SONGS, REPEATS = 8, 20
BATCHES, THREADS = (2, 4, 8), (2,)
Vectors = tp.Dict[tp.Tuple[str, str], FloatArray]  # by channel and checkpoint, [songs, D]


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to compute fingerprints: chunks per pass, threads, and the type of a forward pass (fp32, bf16, fp16)."""
    batch_size: int = 1
    threads: int = 1
    dtype: str = 'fp32'

    def __str__(self) -> str:
        differing = [text for text, differs in ((f'batch {self.batch_size}', self.batch_size != 1),
                                                (f'{self.threads} threads', self.threads != 1),
                                                (self.dtype, self.dtype != 'fp32')) if differs]
        return ', '.join(differing) or 'repeat'

    def autocast(self, device: str) -> tp.Optional[tp.Callable[[], tp.ContextManager]]:
        """What a forward pass runs in."""
        if self.dtype == 'fp32':
            return None
        dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}[self.dtype]
        return lambda: torch.autocast(device, dtype)


@dataclasses.dataclass(frozen=True)
class Moved:
    """How far fingerprints moved.

    Args:
        run, store, way, channel, checkpoint (str): Whose, and how they were computed.
        compared (int): Fingerprints. equal (int): Those that are the same to the bit.
        mean, largest (float): Of 1 - cosine with the reference; NaN where fingerprints were not finite.
    """
    run: str
    store: str
    way: str
    channel: str
    checkpoint: str
    compared: int
    equal: int
    mean: float
    largest: float


def ways(device: str, repeats: int = REPEATS) -> tp.List[Way]:
    """All ways that a device can: fp16 on GPUs alone, whose arithmetic has it."""
    types = ['bf16', *(['fp16'] if device == 'cuda' else [])]
    return [*[Way()] * repeats, *(Way(batch_size=n) for n in BATCHES), *(Way(threads=n) for n in THREADS),
            *(Way(dtype=name) for name in types)]


@contextlib.contextmanager
def _threads(count: int) -> tp.Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fingerprints(opened: Opened, store: FingerprintStore, songs: tp.Sequence[Query], way: Way) -> Vectors:
    """Fingerprints of songs, computed in one way."""
    musicgen = opened.musicgen
    device = next(musicgen.lm.parameters()).device.type
    attributor = Attributor(musicgen.lm, musicgen.compression_model, store, codec_hash=opened.tokenizer.codec_hash,
                            batch_size=way.batch_size, autocast=way.autocast(device))
    with _threads(way.threads):
        parts = attributor.fingerprint_parts([song.example(musicgen.lm, False) for song in songs])
    return {(channel, checkpoint.name): rows for channel, found in parts.items()
            for checkpoint, rows in zip(attributor.checkpoints, found, strict=True)}


def distances(vectors: FloatArray, reference: FloatArray) -> FloatArray:
    """1 - cosine of each row with the same row of the reference, [n, D] twice -> [n]; NaN where one is not finite.

    As half the squared distance of the unit vectors: a difference from 1 would lose what rounding leaves.
    """
    finite = np.isfinite(vectors).all(1) & np.isfinite(reference).all(1)
    found = np.full(len(vectors), np.nan)
    found[finite] = np.square(unit_rows(vectors[finite]) - unit_rows(reference[finite])).sum(1) / 2
    return found


def measure(opened: Opened, count: int = SONGS, repeats: int = REPEATS) -> tp.List[Moved]:
    """Compute the fingerprints of some songs in every way, for every store of a run."""
    device = next(opened.musicgen.lm.parameters()).device.type
    songs = spread(opened.songs, count)
    return [row for store in opened.stores for row in _of_store(opened, store, songs, ways(device, repeats), device)]


def _of_store(opened: Opened, store: FingerprintStore, songs: tp.Sequence[Query], every: tp.Sequence[Way], device: str
              ) -> tp.List[Moved]:
    reference: Vectors = {}

    def compare(some: tp.Sequence[Way]) -> tp.Dict[str, FloatArray]:
        if not reference:  # not before something is missing
            reference.update(fingerprints(opened, store, songs, Way()))
        found = [fingerprints(opened, store, songs, way) for way in some]
        return {f'{what}/{channel}/{checkpoint}': np.stack([measure(one[channel, checkpoint], expected)
                                                            for one in found])
                for (channel, checkpoint), expected in reference.items()
                for what, measure in (('moved', distances), ('equal', _equal))}

    facts = ['repro', store.hash, query_facts(songs), [dataclasses.astuple(way) for way in every], device,
             torch.__version__]
    arrays = kept_parts(opened.out / KEPT, facts, every, compare, f'{store.path.name}, {opened.title}', part=1)
    rows = []
    for way in dict.fromkeys(every):
        index = [number for number, one in enumerate(every) if one == way]
        for name, values in arrays.items():
            what, channel, checkpoint = name.split('/')
            if what == 'moved':
                moved, equal = values[index], arrays[f'equal/{channel}/{checkpoint}'][index]
                rows.append(Moved(opened.title, store.path.name, str(way), channel, checkpoint, moved.size,
                                  int(equal.sum()), float(moved.mean()), float(moved.max())))
    order = {str(way): number for number, way in enumerate(dict.fromkeys(every))}
    return sorted(rows, key=lambda row: (order[row.way], store.channels.index(row.channel)))


def _equal(vectors: FloatArray, reference: FloatArray) -> FloatArray:
    return (np.asarray(vectors) == np.asarray(reference)).all(1).astype(np.float64)


def markdown(rows: tp.Sequence[Moved], device: str) -> str:
    """One table per run and store, over all checkpoints; the JSON tells them apart."""
    parts = []
    for run, store in dict.fromkeys((row.run, row.store) for row in rows):
        parts.append(f"## {run}, store {store}\n\nOn {device}, against one chunk per pass, one thread and fp32.\n")
        own = [row for row in rows if (row.run, row.store) == (run, store)]
        lines = []
        for way, channel in dict.fromkeys((row.way, row.channel) for row in own):
            found = [row for row in own if (row.way, row.channel) == (way, channel)]
            lines.append([way, channel, f'{np.mean([row.mean for row in found]):.1e}',
                          f'{max(row.largest for row in found):.1e}',
                          f'{sum(row.equal for row in found)} of {sum(row.compared for row in found)}'])
        parts.append(table(['computed with', 'channel', 'mean of 1 − cosine', 'largest', 'equal to the bit'], lines))
    return '\n'.join(parts)


def save_repro(out: tp.Union[str, Path], rows: tp.Sequence[Moved], device: str) -> Path:
    """Write `repro.md`, `repro.json` and `repro.png`."""
    return save(out, 'repro', markdown(rows, device), {'device': device, 'rows': rows}, _picture(rows))


def _picture(rows: tp.Sequence[Moved], least: float = 1e-16) -> bytes:
    """Largest distance of each way, logarithmic, a dot per channel and checkpoint."""
    from matplotlib.figure import Figure
    keys = list(dict.fromkeys((row.run, row.store, row.way) for row in rows))
    channels = list(dict.fromkeys(row.channel for row in rows))
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(keys)), layout='constrained')
    axis = figure.subplots()
    for number, channel in enumerate(channels):
        some = [row for row in rows if row.channel == channel and np.isfinite(row.largest)]
        axis.plot([max(row.largest, least) for row in some],
                  [len(keys) - keys.index((row.run, row.store, row.way)) + 0.12 * number for row in some], 'o',
                  markersize=4, label=f'channel {channel}')
    axis.set_xscale('log')
    axis.set_yticks(range(len(keys), 0, -1), [' · '.join(key) for key in keys], fontsize=8)
    axis.set_xlabel(f"largest 1 − cosine with the reference, per checkpoint (0 is drawn at {least:g})", fontsize=9)
    axis.legend(fontsize=8)
    return png(figure)
