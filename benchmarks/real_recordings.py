"""How well is the source of real recordings found? Runs the documented commands and writes docs/real_recordings.md.

    python benchmarks/real_recordings.py FOLDER [--run outputs/xps/SIGNATURE] [--draws 3] [--excerpts-only]
                                         [--at-least N]

FOLDER holds recordings of any common format. The quickstart's model is trained on them (`solver=lumina/finetune`); then
an excerpt of each (10 s, or 60 % of its length if that is shorter, at a random offset) is attributed, and each is
continued from a prompt of 3 s. Which song ranks first? `--draws` repeats that with other offsets and seeds.
"""

import dataclasses
import os
import platform
import subprocess
import sys
import tempfile
import typing as tp
from pathlib import Path

import torch
import typer

PROMPT_SECONDS, EXCERPT_SECONDS, CLIP_SECONDS = 3., 10., 10.


@dataclasses.dataclass(frozen=True)
class Row:
    """Rank of the source and its cosine, per channel, of one query."""
    song: str
    query: str
    ranks: tp.Dict[str, int]
    cosines: tp.Dict[str, float]
    shares: tp.Dict[str, float]


def row_of(song: str, query: str, channels: tp.Mapping[str, tp.Any]) -> Row:
    """Find the source's rows in a report's channels."""
    found = {channel: next(row for row in part.rows if row.track_id == song) for channel, part in channels.items()}
    return Row(song, query, {c: r.rank for c, r in found.items()}, {c: r.cosine for c, r in found.items()},
               {c: r.share for c, r in found.items()})


def train(folder: Path, quickstart: Path, out: Path, overrides: tp.Sequence[str]) -> tp.Tuple[Path, Path]:
    """`lumina catalogue build` and `dora run solver=lumina/finetune`; returns the manifest's folder and the run's."""
    songs = out / 'recordings'
    base = quickstart.resolve().parents[1]
    subprocess.run([sys.executable, '-m', 'lumina_plugin', 'catalogue', 'build', str(folder), '--out', str(songs)],
                   check=True)
    argv = ['solver=lumina/finetune', f'continue_from=//sig/{quickstart.name}', f'datasource.train={songs.resolve()}',
            f'datasource.valid={songs.resolve()}', *overrides]
    print('dora run', *argv)
    subprocess.run([sys.executable, '-m', 'dora', '-P', 'lumina_plugin', 'run', *argv], check=True,
                   env={**os.environ, 'LUMINA_DORA_DIR': str(base)})
    from lumina_plugin.train import main
    main.dora.dir = base
    return songs, main.get_xp(argv).folder


def excerpts(studio: tp.Any, catalogue: tp.Any, seed: int) -> tp.List[Row]:
    """Attribute an excerpt of each song, cut at a random offset and written to a file first, as a user would."""
    from lumina_plugin.audio import read_audio, save_audio
    generator = torch.Generator().manual_seed(seed)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for track in catalogue:
            wav, rate = read_audio(track.path)
            length = int(min(EXCERPT_SECONDS * rate, 0.6 * wav.shape[-1]))
            offset = int(torch.randint(0, wav.shape[-1] - length + 1, (1,), generator=generator))
            path = Path(temporary) / f'{track.id}.wav'
            save_audio(path, wav[:, offset:offset + length], rate)
            report = studio.attribute(path)
            rows.append(row_of(track.id, f'{length / rate:.1f} s from {offset / rate:.1f} s', report.channels))
    return rows


def continuations(studio: tp.Any, catalogue: tp.Any, seed: int, out: Path) -> tp.Tuple[tp.List[Row], tp.List[Row]]:
    """Continue each song from a prompt at a random offset; read without the prompt's frames, and with them."""
    from lumina_plugin.workflows import Prompt
    generator = torch.Generator().manual_seed(seed)
    without, counted = [], []
    for index, track in enumerate(catalogue):
        offset = float(torch.rand(1, generator=generator)) * max(track.duration - PROMPT_SECONDS, 0)
        prompt = Prompt(Path(track.path), PROMPT_SECONDS, track.id, offset)
        clip = studio.generate(out / f'draw-{seed}', f'continues-{track.id}', prompt=prompt, seconds=CLIP_SECONDS,
                               seed=seed + index)[0]
        query = f'prompt from {offset:.1f} s'
        without.append(row_of(track.id, query, clip.report.channels))
        counted.append(row_of(track.id, query, clip.report.other_reading.channels))
    return without, counted


def firsts(rows: tp.Sequence[Row], channel: str) -> int:
    return sum(row.ranks[channel] == 1 for row in rows)


def table(title: str, rows: tp.Sequence[Row]) -> tp.List[str]:
    """One query a line, and how often the source ranks first."""
    lines = [f'### {title}', '', '| source | query | rank P | cosine P | share P | rank M | cosine M | share M |',
             '|---|---|---|---|---|---|---|---|']
    for row in rows:
        cells = [cell for c in ('P', 'M')
                 for cell in (str(row.ranks[c]), f'{row.cosines[c]:.3f}', f'{100 * row.shares[c]:.0f} %')]
        lines.append(f"| {row.song} | {row.query} | {' | '.join(cells)} |")
    return [*lines, '',
            f"Source first: P {firsts(rows, 'P')} of {len(rows)}, M {firsts(rows, 'M')} of {len(rows)}.", '']


def summary(families: tp.Mapping[str, tp.Sequence[tp.Sequence[Row]]], songs: int) -> tp.List[str]:
    """How often the source ranks first, for each draw of offsets and seeds."""
    draws = max(map(len, families.values()))
    heads = ' | '.join(f'draw {draw + 1}: P / M' for draw in range(draws))
    lines = [f'### Source first, of {songs}', '', f'| | {heads} | all |', '|---|' + '---|' * (draws + 1)]
    for title, drawn in families.items():
        counts = [[firsts(rows, channel) for channel in ('P', 'M')] for rows in drawn]
        if counts:
            total = [sum(column) for column in zip(*counts, strict=True)]
            cells = [f'{p} / {m}' for p, m in counts]
            lines.append(f"| {title} | {' | '.join(cells)} | {total[0]} / {total[1]} of {songs * len(drawn)} |")
    return [*lines, '']


def main(
    folder: Path, run: tp.Optional[Path] = None, out: Path = Path('outputs/real'), seed: int = 0, draws: int = 1,
    excerpts_only: bool = False, at_least: int = 0, docs: bool = False, override: tp.Optional[tp.List[str]] = None,
) -> None:
    """Measure, print, and with --docs write docs/real_recordings.md; --at-least N exits with 1 when a channel
    finds fewer excerpts, --override KEY=VALUE goes to `dora run` (with a label, to keep the other training)."""
    from lumina_plugin.catalogue import Catalogue
    from lumina_plugin.workflows import Studio, quickstart_run
    quickstart = run or quickstart_run()
    songs, tuned = train(folder, quickstart, out, override or [])
    catalogue = Catalogue.from_manifest(songs)
    studio = Studio(tuned)
    families: tp.Dict[str, tp.List[tp.List[Row]]] = {title: [] for title in (
        'Excerpts', 'Continuations, prompt frames left out of the query (the default)',
        'The same continuations, prompt frames counted')}
    for draw in range(seed, seed + draws):
        found = [excerpts(studio, catalogue, draw)]
        if not excerpts_only:
            found += continuations(studio, catalogue, draw, out / 'clips')
        for rows, family in zip(found, families.values(), strict=False):
            family.append(rows)
    lines = summary(families, len(catalogue))
    for title, drawn in families.items():
        lines += table(title, drawn[0]) if drawn else []
    print('\n'.join(lines))
    if docs:
        head = Path(__file__).with_name('real_recordings_head.md').read_text()
        machine = (f'{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, '
                   f'torch {torch.__version__}')
        Path('docs/real_recordings.md').write_text(head.replace('{machine}', machine) + '\n' + '\n'.join(lines))
    worst = min(firsts(families['Excerpts'][0], channel) for channel in ('P', 'M'))
    if worst < at_least:
        print(f"A channel finds the source of {worst} excerpts only, not of {at_least}.", file=sys.stderr)
        raise SystemExit(1)


if __name__ == '__main__':
    typer.run(main)
