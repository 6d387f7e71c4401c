"""`lumina explain`: one song's numbers in a report. Nothing heavy is imported before a command needs it."""

import dataclasses
import json
import re
import textwrap
import typing as tp
from pathlib import Path

import typer

from ..errors import LuminaError

if tp.TYPE_CHECKING:
    from ..explain import ChannelExplanation, Explanation
    from ..report.schema import AttributionReport
    from ..store import FingerprintStore

_WIDTH = 110


def explain(
    report: tp.Annotated[Path, typer.Argument(help="report.json, or the folder that holds it.")],
    track: tp.Annotated[str, typer.Option(
        '--track', '-t', help="Id of a song, or its title where only one song has it.")],
    channel: tp.Annotated[tp.Optional[str], typer.Option(
        '--channel', '-c', help="That channel alone: P (composition) or M (production).")] = None,
    store: tp.Annotated[tp.Optional[Path], typer.Option(
        '--store', '-s', help="The report's store, asked about songs that were not compared; the one beside the run's "
                              "checkpoints unless said.")] = None,
    json_: tp.Annotated[bool, typer.Option('--json', help="Print everything, as JSON.")] = False,
) -> None:
    """Why is a song paid, or not? Each number of the song from cosine to share, with its formula; any song may be
    asked about."""
    from .. import explain as explaining
    from ..report.schema import AttributionReport
    loaded = AttributionReport.load(report / 'report.json' if report.is_dir() else report)
    found = explaining.explain(loaded, track, channel)
    if found.standing == 'unknown' and (opened := _store_of(loaded, store)) is not None:
        found = explaining.explain(loaded, track, channel, opened)
    print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False) if json_ else _told(found))


def _told(found: 'Explanation') -> str:
    overall = [] if [found.answer] == [part.answer for part in found.channels] else [_wrapped(found.answer)]
    return '\n\n'.join([*overall, *map(_channel_told, found.channels)]).replace('\u00a0', ' ')


def _channel_told(part: 'ChannelExplanation') -> str:
    lines = [f'{part.key}  {part.name}', _wrapped(' '.join(filter(None, (part.answer, part.note))), '   ')]
    for step in part.steps:
        lines += ['', f'   {step.name:<17}{step.value.rjust(12)}   {step.formula}', _wrapped(step.words, ' ' * 35)]
        if not step.follows:
            lines.append(_wrapped(f'But the report’s other numbers give {step.again:.6g}: it has been changed, or its '
                                  'file is damaged.', ' ' * 35))
    return '\n'.join(lines)


def _wrapped(text: str, indent: str = '') -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _store_of(report: 'AttributionReport', named: tp.Optional[Path]) -> tp.Optional['FingerprintStore']:
    """The store that was named, else that of the run which the report's model comes from, if it lies here."""
    from ..models import run_folder
    from ..store import FingerprintStore
    if named is not None:
        return FingerprintStore.open(named)
    run = re.match(r'dora:([0-9a-f]{8})\b', report.model.id)
    try:
        folder = run_folder(run[1]) if run else None
    except LuminaError:  # trained elsewhere
        return None
    path = None if folder is None else folder / 'lumina' / report.store.name
    return FingerprintStore.open(path) if path is not None and FingerprintStore.exists(path) else None
