"""`lumina validate soak`: thousands of generate-and-attribute cycles in one process, watched for faults and memory.

A leak of a kilobyte per query, a report that does not add up once in a thousand times, a gate that opens now and then:
none shows in a test of a few queries. What was done is on disk after every few cycles, and the next call goes on there.
"""

import dataclasses
import io
import json
import math
import time
import typing as tp
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm

from ..atomic import write_atomic, write_json
from ..errors import LuminaError
from ..report.schema import AttributionReport

WARM_UP, GROWTH = 500, .05  # cycles of a process before its memory is the measure, and what it may grow by
SAMPLES = 5  # readings of the memory whose median stands for the beginning, or the end
FORMAT = 2  # 1 counted the gate that decides alone


@dataclasses.dataclass
class Gate:
    """What one gate did in one channel, over all cycles: reports that pay somebody, songs paid, what was paid."""
    paying: int = 0
    songs: int = 0
    paid: float = 0.


@dataclasses.dataclass
class Soak:
    """What has been found so far.

    Args:
        setting (dict): Store, recipe, seconds and number of clips at once: a soak goes on with the same ones.
        cycles (int): Done. seconds (float): They took.
        failures (list of str): One line each.
        memory (list): Per process, (cycle, bytes of resident memory).
        gates (dict): By 'gate, channel'.
    """
    setting: tp.Dict[str, tp.Any]
    cycles: int = 0
    seconds: float = 0.
    failures: tp.List[str] = dataclasses.field(default_factory=list)
    memory: tp.List[tp.List[tp.Tuple[int, int]]] = dataclasses.field(default_factory=list)
    gates: tp.Dict[str, Gate] = dataclasses.field(default_factory=dict)

    @property
    def growth(self) -> tp.Optional[float]:
        """How much the memory of a process grew at most, after its warm-up; None where none lasted long enough."""
        found = [_growth(readings) for readings in self.memory]
        return max((one for one in found if one is not None), default=None)

    def save(self, folder: Path) -> None:
        """Write `soak.json`."""
        write_json(folder / 'soak.json', {'format': FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, folder: Path, setting: tp.Dict[str, tp.Any]) -> 'Soak':
        """Where an earlier call ended; a fresh one where there is none.

        Raises:
            LuminaError: when what lies there is of another store or other settings.
        """
        path = folder / 'soak.json'
        if not path.is_file():
            return cls(setting)
        try:
            data = json.loads(path.read_text(encoding='utf-8'))
            if data.pop('format') != FORMAT:
                raise ValueError('of another version')
            found = cls(**{**data, 'gates': {name: Gate(**gate) for name, gate in data['gates'].items()}})
        except (ValueError, TypeError, KeyError) as error:
            raise LuminaError(f"{path} is no soak's record ({error}); remove it, or choose another folder.") from None
        if found.setting != setting:
            differing = next((key for key in setting if found.setting.get(key) != setting[key]), 'together')
            raise LuminaError(f"{path} is of another soak ({differing} {found.setting.get(differing)}, not "
                              f"{setting[differing]}); choose another folder, or remove it.")
        return found


def _growth(readings: tp.Sequence[tp.Sequence[int]]) -> tp.Optional[float]:
    settled = [size for cycle, size in readings if cycle >= readings[0][0] + WARM_UP]
    if len(settled) < 2 * SAMPLES:
        return None
    return float(np.median(settled[-SAMPLES:]) / np.median(settled[:SAMPLES])) - 1


def soak(musicgen: tp.Any, folder: tp.Union[str, Path], cycles: int, seconds: float = 1., together: int = 16,
         every: int = 100) -> Soak:
    """Generate and attribute until so many cycles are done, those of earlier calls included.

    Args:
        musicgen: audiocraft `MusicGen` with a store attached (`lumina_plugin.attach`).
        folder (path): For `soak.json`, which is written every so many cycles.
        cycles (int): One generated clip with its report each. seconds (float): Length of a clip.
        together (int): Clips of one call of `generate`. every (int): Cycles between two readings of the memory.
    Raises:
        LuminaError: for numbers that cannot be, or the record of another soak.
    """
    if cycles < 1 or together < 1 or not 0 < seconds <= musicgen.max_duration:
        raise LuminaError(f"{cycles} cycles of {seconds:g} s, {together} at once, cannot be run; ask for at least one, "
                          f"of up to {musicgen.max_duration:g} s.")
    folder = Path(folder)
    attributor = musicgen.detach.__self__.attributor
    setting = {'store': attributor.store.hash, 'recipe': attributor.recipe.hash, 'seconds': seconds,
               'together': together}
    found = Soak.load(folder, setting)
    if found.cycles >= cycles:  # nothing is left to do: no further process
        return found
    found.memory.append([(found.cycles, psutil.Process().memory_info().rss)])
    musicgen.set_generation_params(duration=seconds, top_k=min(250, musicgen.lm.card))
    with tqdm(total=cycles, initial=found.cycles, desc='soak', unit='cycle', dynamic_ncols=True) as bar:
        while found.cycles < cycles:
            begun, before = time.perf_counter(), found.cycles
            count = min(together, cycles - before)
            torch.manual_seed(before)
            try:
                musicgen.generate_unconditional(count)
                reports = musicgen.last_attributions
            except Exception as error:  # a fault is what is looked for; it must not end the search
                reports = []
                found.failures.append(f'cycles {before} to {before + count - 1}: {type(error).__name__}: {error}')
            for place, report in enumerate(reports):
                found.failures += [f'cycle {before + place}: {fault}' for fault in faults(report)]
                _count(found.gates, report)
            found.cycles += count
            found.seconds += time.perf_counter() - begun
            if found.cycles // every > before // every or found.cycles >= cycles:
                found.memory[-1].append((found.cycles, psutil.Process().memory_info().rss))
                found.save(folder)
            bar.update(count)
    return found


def faults(report: AttributionReport) -> tp.List[str]:
    """What is wrong with a report beyond what it checks itself when it is made; one line each."""
    found = []
    for name, channel in report.channels.items():
        if len({row.track_id for row in channel.rows}) != report.store.songs:
            found.append(f'channel {name} has {len(channel.rows)} songs, the store {report.store.songs}')
        numbers = [value for row in channel.rows for value in (row.cosine, row.score, row.z, row.sts, row.share)]
        if not all(map(math.isfinite, numbers)):
            found.append(f'channel {name} holds a number that is not finite')
        if len(channel.rows) > 1 and all(row.score == channel.rows[0].score for row in channel.rows):
            found.append(f'channel {name} scores all songs alike')
    return found


def _count(gates: tp.Dict[str, Gate], report: AttributionReport) -> None:
    for name, channel in report.channels.items():
        for kind, paid in verdicts(channel).items():
            gate = gates.setdefault(f'{kind}, {name}', Gate())
            gate.paying += bool(paid)
            gate.songs += len(paid)
            gate.paid += sum(paid)


def verdicts(channel: tp.Any) -> tp.Dict[str, tp.List[float]]:
    """By gate, the shares of the songs that it would pay, whichever of them decides.

    The printed gate divides all among those that it lets through; the calibrated one leaves the others' weights
    unattributed. The latter is missing where the store has no outside songs.
    """
    paper = [row.weight for row in channel.rows if row.passes_gate and row.weight > 0]
    found = {'paper': [weight / sum(paper) for weight in paper]}
    if channel.calibration is not None:
        every = sum(row.weight for row in channel.rows)
        found['calibrated'] = [row.weight / every for row in channel.rows
                               if row.passes_calibrated_gate and row.weight > 0]
    return found


def markdown(found: Soak) -> str:
    """The result as text."""
    growth = 'not yet known' if found.growth is None else f'{found.growth:+.1%}'
    lines = [f'{found.cycles} cycles of {found.setting["seconds"]:g} s, {found.setting["together"]} at once, in '
             f'{found.seconds:.0f} s and {len(found.memory)} processes: {len(found.failures)} failures, memory '
             f'{growth} after the first {WARM_UP} cycles of a process (at most {GROWTH:+.0%} is allowed).', '',
             '| gate, channel | reports that pay somebody | songs paid per report | paid per report |',
             '|---|---|---|---|']
    lines += [f'| {name} | {gate.paying / found.cycles:.1%} | {gate.songs / found.cycles:.2f} | '
              f'{gate.paid / found.cycles:.1%} |' for name, gate in found.gates.items()]
    lines += ['', *found.failures[:20]]
    return '\n'.join(lines).rstrip() + '\n'


def passed(found: Soak) -> bool:
    """Whether nothing failed and the memory did not grow, as far as it is known."""
    return not found.failures and (found.growth is None or found.growth <= GROWTH)


def save(folder: tp.Union[str, Path], found: Soak) -> Path:
    """Write `soak.md` and `soak.png` beside `soak.json`."""
    folder = Path(folder)
    found.save(folder)
    write_atomic(folder / 'soak.md', markdown(found))
    write_atomic(folder / 'soak.png', _picture(found))
    return folder


def _picture(found: Soak) -> bytes:
    """Resident memory over cycles, one line per process, with what it may grow by."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 3.2), layout='constrained')
    axis = figure.subplots()
    for index, readings in enumerate(found.memory):
        cycles, sizes = zip(*readings, strict=True)
        axis.plot(cycles, np.array(sizes) / 2 ** 20, color='#1f5f8b', label='resident memory' if not index else None)
        settled = [size for cycle, size in readings if cycle >= readings[0][0] + WARM_UP][:SAMPLES]
        if settled:
            axis.hlines(float(np.median(settled)) * (1 + GROWTH) / 2 ** 20, readings[0][0], cycles[-1],
                        color='#b3541e', linestyle='--', label='' if index else 'limit')
    axis.set_xlabel('cycles')
    axis.set_ylabel('MiB')
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=9, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    return buffer.getvalue()
