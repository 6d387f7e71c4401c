"""`lumina validate leave-out`: what leaving groups out did, how well methods foretell it; tables and a picture."""

import dataclasses
import typing as tp
from pathlib import Path

from .leave_out import (
    FAMILIES,
    KINDS,
    MEASURES,
    Agreement,
    Losses,
    SourceGroup,
    agreement,
    chances,
    largest_losses,
    losses_without,
    source_groups,
)
from .methods import Method
from .queries import Query
from .ranking import Chance
from .results import Panel, dots, save, table
from .truth import FloatArray, GroundTruth

NAMED = 5  # losses that are named per family, in the text
RETRAINING = 'retraining'
Scores = tp.Callable[[Method, tp.Sequence[Query], bool], tp.Dict[str, FloatArray]]


@dataclasses.dataclass(frozen=True)
class LeaveOut:
    """All that was found, by family of queries where it is a dict.

    Args:
        losses (dict): What leaving groups out did. chances (dict): By kind of group and measure, what guessing reaches.
        rows (list of Agreement): How methods rank groups. sources (list of SourceGroup): Where sources' groups rank.
    """
    losses: tp.Dict[str, Losses]
    chances: tp.Dict[str, tp.Dict[str, tp.Dict[str, Chance]]]
    rows: tp.List[Agreement]
    sources: tp.List[SourceGroup]


def measure(truth: GroundTruth, methods: tp.Sequence[Method], scores: Scores) -> LeaveOut:
    """Compare methods with a ground truth's left-out groups, on every family that has queries.

    Args:
        scores (callable): A method's scores of queries with their prompts masked or not, e.g. kept ones.
    Raises:
        LuminaError: when the truth lacks the models that this needs.
    """
    result = LeaveOut({}, {}, [], [])
    for family, masked, title in FAMILIES:
        losses = losses_without(truth, family, masked)
        if not losses.queries:
            continue
        queries = [truth.queries[column] for column in truth.columns(family)]
        result.losses[title], result.chances[title] = losses, chances(losses)
        result.sources.extend(source_groups(title, RETRAINING, '', losses.delta, losses, truth.songs))
        for method in methods:
            for channel, found in scores(method, queries, masked).items():
                result.rows.extend(agreement(title, method.name, channel, found, losses))
                result.sources.extend(source_groups(title, method.name, channel, found @ losses.members.T, losses,
                                                    truth.songs))
    return result


def markdown(result: LeaveOut) -> str:
    """A section per family: who loses most, and how well the groups are ranked."""
    parts = []
    for title, losses in result.losses.items():
        parts.append(f"## {title[:1].upper()}{title[1:]}\n\n{len(losses.queries)} queries, {len(losses.groups)} groups "
                     "left out. What a loss rises by without a group, in nats per code: standard deviation "
                     f"{losses.delta.std():.5f}, of which chance alone makes {losses.noise:.5f}.\n")
        parts.append(table(['loses most', 'without', 'nats per code', 'in units of the noise'],
                           [[query, group, f'{delta:.5f}', f'{z:.1f}']
                            for query, group, delta, z in largest_losses(losses, NAMED)]))
        kinds = [kind for kind in KINDS if kind in result.chances[title]]
        rows = [row for row in result.rows if row.family == title]
        body = [[method, channel, *(row.measures[name] for kind in kinds for name in MEASURES for row in rows
                                    if (row.method, row.channel, row.kind) == (method, channel, kind))]
                for method, channel in dict.fromkeys((row.method, row.channel) for row in rows)]
        guess = ['*guessing*', '', *(result.chances[title][kind][name] for kind in kinds for name in MEASURES)]
        parts.append(table(['method', 'channel', *(f'{kind}: {name}' for kind in kinds for name in MEASURES)],
                           [*body, guess]))
        sources = [row for row in result.sources if row.family == title]
        if sources:
            parts.append("Where the group of the source ranks among the groups of its kind:\n")
            parts.append(table(['method', 'channel', 'kind', 'queries', 'groups', 'first', 'mean rank'],
                               [[row.method, row.channel, row.kind, row.queries, row.groups, row.first,
                                 f'{row.mean:.2f}'] for row in sources]))
    return '\n'.join(parts)


def save_leave_out(out: tp.Union[str, Path], result: LeaveOut, facts: tp.Mapping[str, tp.Any]) -> Path:
    """Write `leave-out.md`, `leave-out.json` and `leave-out.png`."""
    keys = list(dict.fromkeys((row.method, row.channel) for row in result.rows))
    found = {(row.family, row.method, row.channel, row.kind): row.measures['Spearman'] for row in result.rows}
    labels = [f'{method} · {channel} · {kind}' for method, channel in keys for kind in KINDS]
    panels = [Panel(title, [found.get((title, *key, kind)) for key in keys for kind in KINDS], [0.])
              for title in result.losses]
    picture = dots(labels, panels, "rank correlation over groups: summed scores with what retraining loses; mean over "
                   "queries, 95 % interval", (-1.02, 1.02))
    return save(out, 'leave-out', markdown(result), {'facts': facts, **vars(result)}, picture)
