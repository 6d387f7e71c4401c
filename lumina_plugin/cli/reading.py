"""`lumina explain` and `lumina show`: what a report says of a song, and what an audio file says of itself.

Nothing heavy is imported before a command needs it.
"""

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
    from ..provenance import Attribution, Found
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


def show(
    file: tp.Annotated[Path, typer.Argument(
        help="Audio with tags or a C2PA manifest, its sidecar (.lumina.json), a report.json, or a clip's folder.")],
    trust: tp.Annotated[tp.Optional[Path], typer.Option(
        help="PEM with root certificates of C2PA signers whom you trust.")] = None,
    json_: tp.Annotated[bool, typer.Option('--json', help="Print everything, as JSON.")] = False,
) -> None:
    """Read an attribution back from audio, sidecar or report, and say whether it still fits. Exit code 2 where it does
    not."""
    from ..provenance import read_back
    found = read_back(file, trust)
    if json_:
        print(json.dumps({'attribution': found.attribution and found.attribution.model_dump(mode='json'),
                          'sources': [source.name for source in found.sources],
                          'checks': [dataclasses.asdict(check) for check in found.checks]}, indent=2,
                         ensure_ascii=False))
    else:
        print(_shown(found).replace('\u00a0', ' '))
    if not found.fits:
        raise LuminaError(next(check.sentence for check in found.checks if not check.ok))


def _shown(found: 'Found') -> str:
    blocks = [] if found.attribution is None else [_credits(found.attribution)]
    if found.sources:
        blocks.append('Found in\n' + '\n'.join(f'   {source.name} ({source.path.name})' for source in found.sources))
    blocks.append('\n'.join(f"{'ok' if check.ok else '!!'} {_wrapped(check.sentence, '   ')[3:]}"
                            for check in found.checks))
    return '\n\n'.join(blocks)


def _credits(found: 'Attribution') -> str:
    from ..report import words
    lines = [words.clean(found.title, 200), f'   attributed {found.created:%d %B %Y} with {words.clean(found.model)}, '
             f'recipe {words.clean(found.recipe)}', f'   report {found.report_sha256}']
    for key, part in found.channels.items():
        lines += ['', f'{words.clean(key)}  {words.channel_words(key).name}']
        shares = [(credit.share, ' '.join(filter(None, (
            words.clean(credit.title), f'by {words.clean(credit.artist)}' if credit.artist else '',
            f'({words.clean(credit.track_id)})')))) for credit in part.credits]
        rest = [(part.others, 'other songs')] if part.others > 0 else []
        lines += [f'   {words.percent(share):>8}  {text}' for share, text in
                  (*shares, *rest, (part.unattributed, 'unattributed'))]
    return '\n'.join(lines)


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
