"""What a ground truth is worth: how much its models learnt, and how much of what they lose is not chance."""

import dataclasses
import io
import typing as tp
from pathlib import Path

import numpy as np

from ..atomic import write_atomic, write_json
from .judge import FAMILIES
from .lds import half_losses
from .truth import FloatArray, GroundTruth

NAME = 'ground-truth'


@dataclasses.dataclass(frozen=True)
class Family:
    """Losses of one family of queries under the halves, in nats per code.

    Args:
        queries (int): How many. loss (float): Mean. between_halves (float): Mean over queries of the standard deviation
            between halves, each the mean of its seeds. between_seeds (float): Between two seeds of one half.
        ceiling (float): LDS that perfect knowledge of the expected losses would reach; NaN with one seed per half.
    """
    queries: int
    loss: float
    between_halves: float
    between_seeds: float
    ceiling: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Facts of a ground truth.

    Args:
        songs, halves, seeds, whole, without (int): How many, of each kind of model.
        known, unknown (float): Mean loss of a song under models that were trained on it, and on others, nats per code.
        families (dict): By title.
    """
    songs: int
    halves: int
    seeds: int
    whole: int
    without: int
    known: float
    unknown: float
    families: tp.Dict[str, Family]


def summarise(truth: GroundTruth) -> Summary:
    """Summarise a ground truth with at least two halves."""
    rows = truth.rows('half')
    groups = {truth.models[row].group for row in rows}
    columns = truth.columns('songs')
    losses, members = truth.losses(rows, columns, masked=False), truth.members(rows)  # [M, N] both
    place = {song: index for index, song in enumerate(truth.songs)}
    inside = members[:, [place[str(truth.queries[column].source)] for column in columns]] > 0
    families = {title: _family(truth, family, masked) for family, masked, title in FAMILIES}
    return Summary(len(truth.songs), len(groups), round(len(rows) / len(groups)), len(truth.rows('whole')),
                   len(truth.rows('without')), float(losses[inside].mean()), float(losses[~inside].mean()), families)


def _family(truth: GroundTruth, family: str, masked: bool) -> Family:
    columns = truth.columns(family)
    found = half_losses(truth, columns, masked)
    pair = _pair(truth, columns, masked)
    apart = float('nan') if pair is None else float(np.std(pair[0] - pair[1], axis=0).mean() / np.sqrt(2))
    return Family(len(columns), float(found.losses.mean()), float(found.losses.std(0).mean()), apart,
                  float(found.ceiling.mean()))


def _pair(truth: GroundTruth, columns: tp.Sequence[int], masked: bool
          ) -> tp.Optional[tp.Tuple[FloatArray, FloatArray]]:
    """Losses of two models of each half, [H, Q] each; None where halves were trained once."""
    by_half: tp.Dict[tp.Optional[str], tp.List[int]] = {}
    for row in truth.rows('half'):
        by_half.setdefault(truth.models[row].group, []).append(row)
    twice = [rows for rows in by_half.values() if len(rows) > 1]
    if len(twice) < 3:
        return None
    return (truth.losses([rows[0] for rows in twice], columns, masked),
            truth.losses([rows[1] for rows in twice], columns, masked))


def markdown(found: Summary) -> str:
    """The summary as text."""
    lines = [f'{found.halves} random halves of {found.songs} songs with {found.seeds} seeds each, {found.whole} models '
             f'of all songs and {found.without} without a group. A song has a loss of {found.known:.2f} nats per code '
             f'under models that were trained on it, and of {found.unknown:.2f} under the others.', '',
             '| queries | number | loss | its spread between halves | between seeds of a half | noise ceiling of LDS |',
             '|---|---|---|---|---|---|']
    for title, one in found.families.items():
        values = [f'{one.loss:.3f}', f'{one.between_halves:.4f}',
                  *('–' if np.isnan(value) else form.format(value)
                    for value, form in ((one.between_seeds, '{:.4f}'), (one.ceiling, '{:.3f}')))]
        lines.append(f"| {title} | {one.queries} | {' | '.join(values)} |")
    return '\n'.join(lines) + '\n'


def save(out: tp.Union[str, Path], truth: GroundTruth, found: Summary) -> Path:
    """Write `ground-truth/ground-truth.md`, `.json` and `.png`."""
    folder = Path(out) / NAME
    plain = dataclasses.asdict(found)
    for family in plain['families'].values():
        family.update({key: None for key in ('between_seeds', 'ceiling') if np.isnan(family[key])})
    write_json(folder / f'{NAME}.json', plain)
    write_atomic(folder / f'{NAME}.md', markdown(found))
    write_atomic(folder / f'{NAME}.png', _picture(truth))
    return folder


def _picture(truth: GroundTruth) -> bytes:
    """Two seeds of each half against each other, every query centred: on the diagonal nothing is chance."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 3.1), layout='constrained')
    axes = np.atleast_1d(figure.subplots(1, len(FAMILIES)))
    for axis, (family, masked, title) in zip(axes, FAMILIES, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel('loss, one seed (nats, centred)', fontsize=8)
        axis.set_ylabel('another seed', fontsize=8)
        axis.tick_params(labelsize=7)
        pair = _pair(truth, truth.columns(family), masked)
        if pair is None:
            axis.text(.5, .5, 'one seed per half', ha='center', transform=axis.transAxes, fontsize=8)
            continue
        first, second = (losses - losses.mean(0) for losses in pair)
        axis.plot(first.ravel(), second.ravel(), '.', markersize=2, color='#1f5f8b', alpha=.5)
        reach = float(np.abs(first).max())
        axis.plot([-reach, reach], [-reach, reach], color='#999999', linewidth=.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120)
    return buffer.getvalue()
