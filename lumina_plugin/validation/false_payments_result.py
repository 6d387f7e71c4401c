"""False payments as tables, a picture and JSON."""

import typing as tp
from pathlib import Path

from .false_payments import ANY, COUNTED, MASKED, OWN, SOURCES, Paid
from .results import Panel, dots, save, table


def markdown(rows: tp.Sequence[Paid], refused: tp.Sequence[str] = ()) -> str:
    """Two tables per run: what is paid where nothing is owed, and how often the source of a continuation is."""
    parts = []
    for run in dict.fromkeys(row.run for row in rows):
        own = [row for row in rows if row.run == run]
        nothing = [row for row in own if row.prompt == OWN]
        parts.append(f"## {run}\n\nQueries that owe nothing; a gate at 95 % that keeps its word pays somebody for 5 % "
                     "of them.\n")
        parts.append(table(
            ['store', 'gate', 'queries', 'number', 'channel', 'somebody is paid', 'mean sum of shares', 'songs paid'],
            [[row.store, row.gate, row.family, row.queries, row.channel, row.paid, f'{row.amount:.3f}',
              f'{row.songs:.2f}'] for row in nothing]))
        parts.append("Continuations of the model's own songs:\n")
        parts.append(table(
            ['store', 'gate', 'prompt', 'number', 'channel', 'source is paid', 'its mean share', 'somebody is paid'],
            [[row.store, row.gate, row.prompt, row.queries, row.channel, row.source, f'{row.source_share:.3f}',
              row.paid] for row in own if row.prompt != OWN]))
    parts += [f'Not measured: {sentence}\n' for sentence in refused]
    return '\n'.join(parts)


def save_false_payments(out: tp.Union[str, Path], rows: tp.Sequence[Paid], refused: tp.Sequence[str]) -> Path:
    """Write `false-payments.md`, `false-payments.json` and `false-payments.png`."""
    keys = list(dict.fromkeys((row.run, row.store, row.gate, row.channel) for row in rows if row.channel != ANY))
    found = {(row.run, row.store, row.gate, row.channel, row.family, row.prompt): row for row in rows}
    allowed = sorted({row.allowed for row in rows})
    families = list(dict.fromkeys(row.family for row in rows if row.prompt == OWN))
    panels = [Panel(_title(family), [_paid(found.get((*key, family, OWN))) for key in keys], allowed)
              for family in families]
    panels += [Panel(f'continuations, prompt {reading}:\nsource is paid',
                     [_source(found.get((*key, SOURCES, reading))) for key in keys])
               for reading in (MASKED, COUNTED)]
    picture = dots([' · '.join(key) for key in keys], panels,
                   "share of the queries, with 95 % interval; dashed: what the gate allows where nothing is owed")
    return save(out, 'false-payments', markdown(rows, refused), {'rows': rows, 'refused': refused}, picture)


def _title(family: str) -> str:
    """Over a narrow panel: a line for what, and one for whose."""
    what = family.replace(', ', ',\n')
    return f'{what}:\nsomebody is paid'


def _paid(row: tp.Optional[Paid]) -> tp.Any:
    return row.paid if row is not None else None


def _source(row: tp.Optional[Paid]) -> tp.Any:
    return row.source if row is not None else None
