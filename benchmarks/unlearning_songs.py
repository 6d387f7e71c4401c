"""A model of many songs for `unlearning.py`: rendered, trained, fingerprinted; what is there already is kept."""

import typing as tp
from pathlib import Path

from lumina_plugin.atomic import write_atomic
from lumina_plugin.embedded import training_songs
from lumina_plugin.validation.excerpts import build_excerpts
from lumina_plugin.validation.suite import dora_run

# As the quickstart, which sees each of these songs four times, fingerprinted at two checkpoints. Recordings of outside
# songs would be fingerprinted for chance, which nothing here asks about.
TRAINING = ['lumina.token_phases=1', 'fingerprint.every=4', 'fingerprint.outside=none', 'num_threads=1']


def many_songs(out: Path, songs: int, jobs: int) -> Path:
    """A manifest's folder: ten seconds of each of the embedded catalogue's songs, and of as many further ones as bring
    them to `songs`."""
    folder = build_excerpts(out, extra=songs - len(training_songs()), jobs=jobs)
    lines = [line for split in ('train', 'extra')
             for line in (folder / 'egs' / split / 'data.jsonl').read_text(encoding='utf-8').splitlines()]
    chosen = folder / 'egs' / f'first-{songs}'
    write_atomic(chosen / 'data.jsonl', '\n'.join(lines[:songs]) + '\n')
    return chosen


def many_songs_run(out: Path, songs: int, jobs: int = 1, overrides: tp.Sequence[str] = ()) -> Path:
    """Folder of a run that was trained on them, with its store, by `dora run`."""
    chosen = many_songs(out.resolve(), songs, jobs)
    argv = ['solver=lumina/quickstart', f'datasource.train={chosen}', *TRAINING, *overrides]
    return dora_run(argv, out.resolve(), chosen.parents[1])
