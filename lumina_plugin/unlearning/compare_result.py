"""What `lumina unlearn compare` found: tables, pictures and JSON."""

import dataclasses
import textwrap
import typing as tp
from pathlib import Path

import numpy as np

from ..atomic import write_atomic
from ..validation.lds import Interval
from ..validation.results import png, save, table
from .compare import TOP, TRUTHS, Agreements, Matrix, Scores, agreements
from .concentration import KINDS, TOPS, Concentration, concentration
from .concentration import picture as curves_picture

NAME = 'compare'
DRAWN = 'Unlearning, LPIPS and RPS ask at {} fixed draws of timestep and noise.'


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Methods on one family of queries.

    Args:
        family (str): Of the queries. masked (bool): Whether prompts were left out. queries, songs, top (int): How many.
        agreements (Agreements): Of each method with each. concentration (dict): By method and kind of mass.
        truths (dict): By method and measure, where there is a ground truth.
        facts (dict): Which run it was.
    """
    family: str
    masked: bool
    queries: int
    songs: int
    top: int
    agreements: Agreements
    concentration: tp.Dict[str, tp.Dict[str, Concentration]]
    truths: tp.Dict[str, tp.Dict[str, Interval]]
    facts: tp.Dict[str, tp.Any]


def compared(scores: Scores, family: str, masked: bool, truths: tp.Mapping[str, tp.Dict[str, Interval]],
             facts: tp.Mapping[str, tp.Any], top: int = TOP) -> Comparison:
    """All that is told of methods' scores [Q, N].

    Raises:
        LuminaError: as `agreements`.
    """
    found = agreements(scores, top)
    queries, songs = next(iter(scores.values())).shape
    spread = {name: {kind: concentration(one, centred) for kind, centred in KINDS.items()}
              for name, one in scores.items()}
    return Comparison(family, masked, queries, songs, top, found, spread, dict(truths), dict(facts))


def markdown(result: Comparison) -> str:
    """Truth, agreement and concentration, as tables."""
    prompt = ', prompts masked' if result.masked else ''
    parts = [f"{result.queries} queries ({result.family}{prompt}) against {result.songs} songs; means over queries "
             "with 95 % bootstrap intervals, of agreement in `compare.json`.\n"]
    if 'draws' in result.facts:
        parts.append(f"{DRAWN.format(result.facts['draws'])}\n")
    known = [measure for measure in TRUTHS if any(measure in one for one in result.truths.values())]
    if known:
        parts.append("## What retraining says of each method\n")
        parts.append(table(['method', *known], [[name, *(one.get(measure, '–') for measure in known)]
                                                for name, one in result.truths.items()]))
    steps = result.facts.get('steps')
    if steps:
        parts.append(table(['method', 'lr', '‖θ-θ0‖/‖θ0‖', "query's loss +"], [
            [name, f"{one['lr']:.2g}", f"{one['relative']:.2g}", f"{one['rise']:.2g}"] for name, one in steps.items()]))
    titles = {'Pearson correlation': result.agreements.pearson, 'Spearman correlation': result.agreements.spearman,
              f'Part of the first {result.top} songs in common (by chance {result.top / result.songs:.3f})':
                  result.agreements.overlap}
    names = result.agreements.methods
    for title, matrix in titles.items():
        parts.append(f"## {title}, ± {_widest(matrix):.2f} at most\n")
        parts.append(table(['', *names], [[name, *(row[:place] + ['1'] + row[place + 1:])] for place, (name, row) in
                                          enumerate(zip(names, _cells(matrix), strict=True))]))
    parts.append("## Concentration: share of the positive scores on the first songs\n")
    head = ['method', *(f'{kind}: {what}' for kind in KINDS for what in (*(f'top {k}' for k in TOPS), 'Gini'))]
    parts.append(table(head, [[name, *(_cell(one) for kind in KINDS for one in
                                       (*found[kind].tops.values(), found[kind].gini))]
                              for name, found in result.concentration.items()]))
    return '\n'.join(parts)


def _cells(matrix: Matrix) -> tp.List[tp.List[str]]:
    return [[f'{one.mean:.2f}' for one in row] for row in matrix]


def _widest(matrix: Matrix) -> float:
    """How far an interval reaches from its mean."""
    return max((max(one.high - one.mean, one.mean - one.low) for row in matrix for one in row
                if np.isfinite(one.mean)), default=0.)


def _cell(one: Interval) -> str:
    return '–' if np.isnan(one.mean) else str(one)


def save_comparison(out: tp.Union[str, Path], result: Comparison) -> Path:
    """Write `compare.md`, `compare.json`, `compare.png` and `concentration.png`: the folder."""
    folder = save(out, NAME, markdown(result), result, picture(result))
    write_atomic(folder / 'concentration.png', curves_picture(result.concentration))
    return folder


def picture(result: Comparison) -> bytes:
    """The three matrices side by side, each cell with its mean; PNG."""
    from matplotlib.figure import Figure
    names, found = result.agreements.methods, result.agreements
    labels, size = [textwrap.fill(name, 24) for name in names], .52 * len(names)
    figure = Figure(figsize=(3.4 + 3 * size, 2.3 + size), layout='constrained')
    panels = {'Pearson': found.pearson, 'Spearman': found.spearman,
              f'first {result.top} in common': found.overlap}
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, matrix) in zip(axes, panels.items(), strict=True):
        values = np.array([[one.mean for one in row] for row in matrix])
        itself = np.eye(len(names), dtype=bool)
        axis.set_facecolor('0.93')  # shows where a method meets itself
        shown = axis.imshow(np.ma.masked_array(values, itself), cmap='RdBu_r', vmin=-1, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            text = '' if i == j else f'{value:.2f}'.replace('0.', '.', 1)
            axis.text(j, i, text, ha='center', va='center', fontsize=7.5, color='white' if abs(value) > .6 else '0.15')
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(names)), labels, fontsize=8, rotation=40, ha='right', rotation_mode='anchor')
        axis.set_yticks(range(len(names)), labels, fontsize=8)
        axis.tick_params(length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    bar = figure.colorbar(shown, ax=axes, shrink=.7, aspect=25, pad=.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f'How far methods agree: mean over {result.queries} queries ({result.family}), '
                    f'{result.songs} songs', fontsize=10)
    return png(figure)
