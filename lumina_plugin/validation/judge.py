"""`lumina validate lds`: methods against a ground truth, as a table, a picture and JSON."""

import dataclasses
import typing as tp
from pathlib import Path

import numpy as np

from ..atomic import write_atomic, write_json
from ..errors import LuminaError
from .lds import Interval, half_losses, interval, lds
from .methods import Method
from .truth import GroundTruth

FAMILIES = (('free', False, 'free generations'), ('continued', True, 'continuations, prompt masked'),
            ('continued', False, 'continuations, whole'), ('heldout', False, 'held-out songs'))


@dataclasses.dataclass(frozen=True)
class Row:
    """What one channel of one method reached: by family, the LDS with its interval; and what it costs."""
    method: str
    channel: str
    lds: tp.Dict[str, Interval]
    bytes_per_song: float
    seconds_per_song: tp.Optional[float]
    seconds_per_query: float


@dataclasses.dataclass(frozen=True)
class Table:
    """All methods on one ground truth.

    Args:
        rows (list of Row): One per method and channel. ceilings (dict): Noise ceiling by family; NaN where unknown.
        facts (dict): Of the ground truth.
    """
    rows: tp.List[Row]
    ceilings: tp.Dict[str, float]
    facts: tp.Dict[str, tp.Any]

    def markdown(self) -> str:
        """The table as text."""
        names = [title for _, _, title in FAMILIES]
        lines = ['| method | channel | ' + ' | '.join(names) + ' | bytes/song | s/song | s/query |',
                 '|---|---|' + '---|' * (len(names) + 3)]
        for row in self.rows:
            cells = [str(row.lds[name]) for name in names]
            song = '–' if row.seconds_per_song is None else f'{row.seconds_per_song:.2g}'
            lines.append(f"| {row.method} | {row.channel} | {' | '.join(cells)} | {row.bytes_per_song:.0f} | {song} | "
                         f"{row.seconds_per_query:.2g} |")
        ceilings = ['–' if np.isnan(self.ceilings[name]) else f'{self.ceilings[name]:.3f}' for name in names]
        lines.append(f"| *noise ceiling* | | {' | '.join(ceilings)} | | | |")
        return '\n'.join(lines) + '\n'

    def as_json(self) -> tp.Dict[str, tp.Any]:
        """The table as plain data."""
        rows = [{**dataclasses.asdict(row), 'lds': {name: one._asdict() for name, one in row.lds.items()}}
                for row in self.rows]
        return {'facts': self.facts, 'rows': rows,
                'ceilings': {name: None if np.isnan(value) else value for name, value in self.ceilings.items()}}

    def save(self, folder: tp.Union[str, Path]) -> Path:
        """Write `lds.md`, `lds.json` and `lds.png`."""
        folder = Path(folder)
        write_json(folder / 'lds.json', self.as_json())
        write_atomic(folder / 'lds.md', self.markdown())
        write_atomic(folder / 'lds.png', _picture(self))
        return folder


def judge(truth: GroundTruth, methods: tp.Sequence[Method], progress: tp.Callable[[tp.Iterable], tp.Iterable] = iter
          ) -> Table:
    """Score every method's foretelling of every family of queries.

    Raises:
        LuminaError: when a method orders the songs otherwise than the truth, or the truth holds too few halves.
    """
    halves = {title: half_losses(truth, truth.columns(family), masked) for family, masked, title in FAMILIES}
    rows: tp.List[Row] = []
    for method in progress(methods):
        if method.songs != truth.songs:
            raise LuminaError(f"{method.name} scores other songs than the ground truth knows, or in another order.")
        found: tp.Dict[str, tp.Dict[str, Interval]] = {}
        for family, masked, title in FAMILIES:
            queries = [truth.queries[column] for column in truth.columns(family)]
            for channel, scores in method.scores(queries, masked).items():
                found.setdefault(channel, {})[title] = interval(lds(scores, halves[title]))
        cost = method.cost()
        rows += [Row(method.name, channel, by_family, cost.bytes_per_song, cost.seconds_per_song,
                     cost.seconds_per_query) for channel, by_family in found.items()]
    ceilings = {title: float(half.ceiling[0]) for title, half in halves.items()}
    return Table(rows, ceilings, truth.facts)


def _picture(table: Table) -> bytes:
    """Dots with intervals, one panel per family, the noise ceiling as a line."""
    import io

    from matplotlib.figure import Figure
    names = [title for _, _, title in FAMILIES]
    figure = Figure(figsize=(11, 1.2 + 0.28 * len(table.rows)), layout='constrained')
    axes = figure.subplots(1, len(names), sharey=True)
    places = np.arange(len(table.rows))[::-1]
    for axis, name in zip(axes, names, strict=True):
        axis.axvline(0, color='0.8', linewidth=1)
        if not np.isnan(table.ceilings[name]):
            axis.axvline(table.ceilings[name], color='0.35', linewidth=1, linestyle='--')
        for place, row in zip(places, table.rows, strict=True):
            one = row.lds[name]
            axis.plot([one.low, one.high], [place, place], color='#4c6a92', linewidth=2)
            axis.plot(one.mean, place, 'o', color='#1d3557', markersize=5)
        axis.set_title(name, fontsize=9)
        axis.set_xlim(-0.3, 1.02)
        axis.tick_params(labelsize=8)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(places, [f'{row.method} · {row.channel}' for row in table.rows], fontsize=8)
    figure.supxlabel('LDS, mean over queries with 95 % interval; dashed: noise ceiling', fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    return buffer.getvalue()
