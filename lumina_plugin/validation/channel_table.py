"""What the channels of a run find, as a table, a picture and JSON."""

import dataclasses
import typing as tp
from pathlib import Path

import numpy as np

from .. import separation
from ..atomic import write_atomic, write_json
from ..separation import KEEPS, ChannelFigures
from .lds import Interval

OWN, RENDERED = 'own songs changed', 'rendered songs'
STANDING, BEST = "the store's fingerprints", f'gradients, separated by {OWN}'


@dataclasses.dataclass(frozen=True)
class Row:
    """What one way of one channel finds.

    Args:
        way (str): How songs are compared. channel (str): 'P' or 'M'. figures (ChannelFigures): On crossed songs.
        itself (float): Share of the catalogue's songs that an excerpt of theirs finds first among all of these.
        lds (dict): By family of queries, where there is a ground truth.
    """
    way: str
    channel: str
    figures: ChannelFigures
    itself: float
    lds: tp.Dict[str, Interval]

    @property
    def ratio(self) -> float:
        """How many times better it finds what it is to find; infinite where the other is not found at all."""
        other = self.figures.other.mean
        return self.figures.kept.mean / other if other > 0 else float('inf')


@dataclasses.dataclass(frozen=True)
class Table:
    """All ways of both channels, with facts of what was measured."""
    rows: tp.List[Row]
    facts: tp.Dict[str, tp.Any]

    def figures(self, way: str) -> tp.Dict[str, ChannelFigures]:
        """By channel, what `separation.verdict` takes."""
        return {row.channel: row.figures for row in self.rows if row.way == way}

    @property
    def verdict(self) -> str:
        """What may be said of the channels as the store serves them."""
        return separation.verdict(self.figures(STANDING))

    def markdown(self) -> str:
        """The table as text, and what it means."""
        families = list(self.rows[0].lds)
        titles = ['channel', 'compared by', 'same composition', 'same production', 'ratio', 'separated', 'itself first',
                  *(f'LDS, {family}' for family in families)]
        lines = [f"| {' | '.join(titles)} |", '|---' * len(titles) + '|']
        for row in self.rows:
            kept, other = str(row.figures.kept), str(row.figures.other)
            first, second = (kept, other) if KEEPS[row.channel] == 'composition' else (other, kept)
            lines.append(f"| {row.channel} | {row.way} | {first} | {second} | {row.ratio:.2g} | "
                         f"{'yes' if row.figures.separated else 'no'} | {row.itself:.0%} | "
                         + ''.join(f'{row.lds[family]} | ' for family in families))
        told = '\n'.join(f'- {name}: {value}' for name, value in self.facts.items())
        ways = [(way, self.figures(way)) for way in (STANDING, BEST)]
        words = '\n\n'.join(f'With {way}: {separation.verdict(found)}' for way, found in ways if found)
        return '\n'.join(lines) + f'\n\n{words}\n\n{told}\n'

    def as_json(self) -> tp.Dict[str, tp.Any]:
        """The table as plain data."""
        def plain(figures: ChannelFigures) -> tp.Dict[str, tp.Dict[str, float]]:
            return {name: one._asdict() for name, one in figures._asdict().items()}
        rows = [{'way': row.way, 'channel': row.channel, 'keeps': KEEPS[row.channel], **plain(row.figures),
                 'separated': row.figures.separated, 'itself': row.itself,
                 'lds': {family: one._asdict() for family, one in row.lds.items()}} for row in self.rows]
        return {'facts': self.facts, 'rows': rows,
                'verdict': {way: separation.verdict(self.figures(way)) for way in (STANDING, BEST)}}

    def save(self, folder: tp.Union[str, Path]) -> Path:
        """Write `channels.md`, `channels.json` and `channels.png`."""
        folder = Path(folder)
        write_json(folder / 'channels.json', self.as_json())
        write_atomic(folder / 'channels.md', self.markdown())
        write_atomic(folder / 'channels.png', _picture(self))
        return folder


def _picture(table: Table) -> bytes:
    """Both APs of each way with their intervals, one panel per channel."""
    import io

    from matplotlib.figure import Figure
    channels = list(dict.fromkeys(row.channel for row in table.rows))
    ways = list(dict.fromkeys(row.way for row in table.rows))
    figure = Figure(figsize=(11, 1.2 + 0.5 * len(ways)), layout='constrained')
    axes = np.atleast_1d(figure.subplots(1, len(channels), sharey=True))
    for axis, channel in zip(axes, channels, strict=True):
        axis.axvline(0, color='0.8', linewidth=1)
        for row in (row for row in table.rows if row.channel == channel):
            place = len(ways) - 1 - ways.index(row.way)
            for one, shift, colour, label in ((row.figures.kept, .12, '#1d3557', KEEPS[channel]),
                                              (row.figures.other, -.12, '#c8553d',
                                               separation.OTHER[KEEPS[channel]])):
                axis.plot([one.low, one.high], [place + shift] * 2, color=colour, linewidth=2)
                axis.plot(one.mean, place + shift, 'o', color=colour, markersize=5,
                          label=f'same {label}' if row.way == ways[0] else None)
        axis.set_title(f'Channel {channel}', fontsize=10, loc='left', pad=22)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8, loc='lower left', bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(ways) - 1, -1, -1), ways, fontsize=8)
    figure.supxlabel('average precision, 0: chance, 1: perfect; with 95 % interval', fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    return buffer.getvalue()
