"""`lumina unlearn fisher`: what the songs hold on to, layer by layer, and what a step will make of that."""

import dataclasses
import re
import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..validation.results import png, save, table
from .fisher import Fisher
from .recipe import UnlearningRecipe

GROUPS = {  # of layers, each a line of the picture: names of MusicGen's weights and of diffusers' transformer
    'self attention, q k v': (r'\.self_attn\.(mha\.)?in_proj|\.attn1\.to_[qkv]\.', '#1d3557'),
    'self attention, out': (r'\.self_attn\.(mha\.)?out_proj|\.attn1\.to_out\.', '#3f86c4'),
    'cross attention, q k v': (r'\.cross_attention\.(mha\.)?in_proj|\.attn2\.to_[qkv]\.', '#6a3d8f'),
    'cross attention, out': (r'\.cross_attention\.(mha\.)?out_proj|\.attn2\.to_out\.', '#b06ac9'),
    'feed-forward': (r'\.linear[12]\.|\.ff\.', '#d9772b'),
    'output linears': (r'^linears\.|\.proj_out\.', '#2a8f5a'),
    'other': ('', '0.55')}
POINTS = 200  # of a line
SEEN, DECADES = 0.9, 12  # of a picture: part of each line at least, and powers of ten at most


@dataclasses.dataclass(frozen=True)
class Held:
    """How much the songs hold on to some weights.

    Args:
        name (str): Layer, or group of them. weights (int): How many numbers of information it has, one for each weight.
        mean, largest (float): Of them. share (float): Of the whole information.
        effective (float): Over how many weights it is spread evenly, were it: (Σf)²/Σf².
        below (float): Part of the weights of which the damping says more than the information does.
    """
    name: str
    weights: int
    mean: float
    largest: float
    share: float
    effective: float
    below: float


@dataclasses.dataclass(frozen=True)
class FisherReport:
    """Fisher information, told.

    Args:
        model (str): The run. songs (int): Of its training. recipe (UnlearningRecipe): Every key.
        mean (float): Of all numbers. damping (float): What a step adds to each of them: the recipe's part of the mean.
        layers, groups (list of Held): Per weight matrix in the model's order, and per group of `GROUPS`.
        spectra (dict): Of each group, `rank` and `value` of numbers in falling order, on even steps of log rank.
        kept (str): Its file.
    """
    model: str
    songs: int
    recipe: UnlearningRecipe
    mean: float
    damping: float
    layers: tp.List[Held]
    groups: tp.List[Held]
    spectra: tp.Dict[str, tp.Dict[str, tp.List[float]]]
    kept: str


def report(fisher: Fisher, names: tp.Iterable[str], recipe: UnlearningRecipe, model: str, songs: int, kept: str
           ) -> FisherReport:
    """Tell Fisher information.

    Args:
        fisher (Fisher): One with a number per weight: not that of `Identity`.
        names (iterable of str): Its layers, in the order of the model. Others as of `FisherReport`.
    """
    known = {name: fisher.values[name] for name in names}
    damping, total = recipe.damping * fisher.mean, sum(float(v.double().sum()) for v in known.values())
    members: tp.Dict[str, tp.List[torch.Tensor]] = {}
    for name, values in known.items():
        members.setdefault(group_of(name), []).append(values)
    ordered = {group: members[group] for group in GROUPS if group in members}
    return FisherReport(
        model, songs, recipe, fisher.mean, damping,
        [_held(name, [values], total, damping) for name, values in known.items()],
        [_held(group, values, total, damping) for group, values in ordered.items()],
        {group: _spectrum(values) for group, values in ordered.items()}, kept)


def group_of(name: str) -> str:
    """Which of `GROUPS` a weight belongs to."""
    return next(group for group, (pattern, _) in GROUPS.items() if re.search(pattern, name))


def _held(name: str, values: tp.Sequence[torch.Tensor], total: float, damping: float) -> Held:
    count = sum(one.numel() for one in values)
    first = sum(float(one.double().sum()) for one in values)
    second = sum(float(one.double().square().sum()) for one in values)
    return Held(name, count, first / count, max(float(one.max()) for one in values), first / total if total else 0.,
                first ** 2 / second if second else 0.,
                sum(int((one.double() < damping).sum()) for one in values) / count)


def _spectrum(values: tp.Sequence[torch.Tensor]) -> tp.Dict[str, tp.List[float]]:
    flat: npt.NDArray[np.float32] = np.concatenate([one.float().cpu().numpy().ravel() for one in values])
    flat.sort()
    ranks = np.unique(np.geomspace(1, len(flat), POINTS).round().astype(int))
    return {'rank': [float(rank) for rank in ranks], 'value': [float(flat[-rank]) for rank in ranks]}


# -- files ------------------------------------------------------------------------------------------------------------

def summary(found: FisherReport) -> str:
    """What it comes to, by groups of layers."""
    numbers = sum(layer.weights for layer in found.layers)
    what = _numbers(found)
    return (f'# Fisher information of {found.model}\n\n'
            f'{found.recipe.fisher}, {found.recipe.layers}: {numbers:,} {what}, {found.songs} songs, mean '
            f'{found.mean:.3g}. A step divides by (F + {found.damping:.3g})^{found.recipe.power:g}, which is damping '
            f'{found.recipe.damping:g} of the mean; {_percent(_below(found))} of the {what} have less than that, and '
            f'move nearly as if nothing held them.\n\n{_table("layers", found.groups)}')


def markdown(found: FisherReport) -> str:
    """The summary, how to read it, and every layer."""
    return (f'{summary(found)}\nThe effective number is (Σf)²/Σf²: over how many it is spread evenly, were it. '
            f'Kept in {found.kept}.\n\n## Layer by layer\n\n{_table("layer", found.layers)}')


def save_report(out: Path, found: FisherReport) -> Path:
    """Write fisher.md, fisher.json and fisher.png: the folder."""
    data = {**vars(found), 'recipe': found.recipe.model_dump()}
    return save(out, 'fisher', markdown(found), data, _picture(found))


def _table(what: str, rows: tp.Sequence[Held]) -> str:
    head = [what, 'weights', 'mean', 'largest', 'share of all information', 'effective number', 'below the damping']
    return table(head, [
        [row.name, f'{row.weights:,}', f'{row.mean:.3g}', f'{row.largest:.3g}', _percent(row.share),
         f'{row.effective:,.0f}', _percent(row.below)] for row in rows])


def _percent(part: float) -> str:
    return f'{100 * part:.1f} %'


def _numbers(found: FisherReport) -> str:
    """What there is a number of information for."""
    return 'directions' if found.recipe.fisher == 'kronecker' else 'weights'


def _below(found: FisherReport) -> float:
    return sum(layer.below * layer.weights for layer in found.layers) / sum(layer.weights for layer in found.layers)


def _picture(found: FisherReport) -> bytes:
    """A spectrum per group of layers, and beside them what each group has of the weights and of the information."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4.6), layout='constrained')
    lines, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    highest = max(row.largest for row in found.groups) or 1.
    # nearly all of every group is seen; what is smaller still, down to rounding, says no more
    tails = [line['value'][int(np.searchsorted(line['rank'], SEEN * line['rank'][-1]))]
             for line in found.spectra.values()]
    lowest = max(min([found.damping, *tails]) / 10, highest * 10. ** -DECADES)
    for group, line in found.spectra.items():
        lines.plot(line['rank'], np.maximum(line['value'], 1e-45), color=GROUPS[group][1], linewidth=1.8, label=group)
    lines.set(xscale='log', yscale='log', ylim=(lowest, highest * 3))
    if found.damping > 0:
        lines.axhline(found.damping, color='0.35', linewidth=1, linestyle='--')
        lines.annotate('damping: below, little holds', (0.01, found.damping), fontsize=8, color='0.35',
                       xycoords=('axes fraction', 'data'), xytext=(0, -10), textcoords='offset points')
    lines.set_xlabel(f'{_numbers(found)} of the layers, most held first', fontsize=9)
    lines.set_ylabel('Fisher information', fontsize=9)
    _shares(bars, found)
    for axis in (lines, bars):
        axis.tick_params(labelsize=8)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    figure.suptitle(f'What the {found.songs} songs of {found.model} hold on to (Fisher information: '
                    f'{found.recipe.fisher})', fontsize=10)
    return png(figure)


def _shares(axis: tp.Any, found: FisherReport) -> None:
    """Bars; their labels name the lines as well, by colour."""
    numbers = sum(layer.weights for layer in found.layers)
    places = np.arange(len(found.groups))[::-1]
    axis.barh(places + 0.18, [100 * row.share for row in found.groups], 0.34,
              color=[GROUPS[row.name][1] for row in found.groups])
    axis.barh(places - 0.18, [100 * row.weights / numbers for row in found.groups], 0.34, color='0.85')
    axis.set_yticks(places, [row.name for row in found.groups], fontsize=8)
    for label, row in zip(axis.get_yticklabels(), found.groups, strict=True):
        label.set_color(GROUPS[row.name][1])
    axis.set_ylim(-0.6, len(found.groups) - 0.4)
    axis.set_xlabel('colour: % of the information\ngrey: % of the weights', fontsize=9)
