"""Writes the embedded catalogue to disk: WAV files, sidecars and manifests that audiocraft reads.

    <folder>/audio/<split>/<id>.wav, <id>.json     songs and their MusicInfo sidecars
    <folder>/egs/<split>/data.jsonl                audiocraft manifests (absolute paths: audiocraft resolves relative
                                                   ones against the working directory, not against the manifest)
    <folder>/embedded.json                         stamp: seed, code version, files and sizes

| what a crash leaves | what the next call does |
|---|---|
| no stamp | starts afresh |
| a stamp without `complete`, some songs | renders the songs that are missing: each file is written atomically |
| a complete stamp | checks the sizes and returns |
| a stamp of another seed or code version | renders everything again |
"""
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import typing as tp
import wave
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..atomic import write_atomic, write_json
from ..errors import LuminaError
from .songs import DEFAULT_SEED, SongSpec, songs_of
from .voices import SAMPLE_RATE

STAMP = 'embedded.json'
SPLITS = ('train', 'heldout', 'extra')
_HEADER = 44  # bytes of a plain WAV header


@dataclass(frozen=True)
class EmbeddedCatalogue:
    """Where the catalogue lies.

    Args:
        folder (Path): Its root, absolute.
        train, heldout (Path): Manifests `data.jsonl`; a dora `datasource` is their parent folder.
        extra (Path, optional): Manifest of the additional songs, if any were asked for.
        rendered (int): Songs that this call had to render.
    """
    folder: Path
    train: Path
    heldout: Path
    extra: tp.Optional[Path]
    rendered: int


def code_version() -> str:
    """Hash of the sources that decide how the songs sound: a changed line means a new catalogue."""
    digest = hashlib.sha256()
    for name in ('figures', 'composition', 'production', 'voices', 'drums', 'effects', 'render', 'songs'):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def audio_path(folder: Path, song: SongSpec) -> Path:
    return folder / 'audio' / song.split / f"{song.id}.wav"


def write_song(folder: Path, song: SongSpec) -> None:
    """Render one song and write its audio (16-bit PCM, mono, 16 kHz) and its sidecar, the audio last."""
    path = audio_path(folder, song)
    write_json(path.with_suffix('.json'), song.sidecar())
    pcm = np.round(song.render().astype(np.float64) * 32767.).astype('<i2')
    buffer = io.BytesIO()
    with wave.open(buffer, 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())
    write_atomic(path, buffer.getvalue())


def build_embedded(folder: tp.Union[str, Path], jobs: int = 2, progress: bool = True, force: bool = False,
                   extra: int = 0, seed: int = DEFAULT_SEED) -> EmbeddedCatalogue:
    """Make the embedded catalogue in `folder`, or find it there.

    Args:
        folder (str or Path): Made if missing. Songs already there and whole are kept.
        jobs (int): Processes that render; 1 renders in this one. The bytes do not depend on it.
        progress (bool): Show a progress bar on stderr.
        force (bool): Render everything again.
        extra (int): Also make this many songs of `endless_songs`, as the split 'extra'.
        seed (int): Another seed makes another catalogue of the same design.
    Returns:
        EmbeddedCatalogue: paths of the manifests.
    Raises:
        LuminaError: the folder cannot be written, or a rendering process failed.
    """
    folder = Path(folder).expanduser().absolute()
    if jobs < 1 or extra < 0:
        raise LuminaError(f"jobs must be at least 1 and extra at least 0, got jobs={jobs}, extra={extra}.")
    version = {'seed': seed, 'code': code_version()}
    if not force and (found := _cached(folder, version, extra)) is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LuminaError(f"cannot make the folder {folder} for the embedded catalogue: {error.strerror}; "
                          "choose another folder.") from error
    with _locked(folder):
        if not force and (found := _cached(folder, version, extra)) is not None:
            return found  # another process made it while this one waited
        return _build(folder, version, jobs, progress, force, extra)


def _build(folder: Path, version: tp.Dict[str, tp.Any], jobs: int, progress: bool, force: bool,
           extra: int) -> EmbeddedCatalogue:
    stamp = _read_stamp(folder)
    fresh = force or any(stamp.get(k) != v for k, v in version.items())
    if fresh:
        for old in (folder / 'audio').rglob('*.wav'):
            old.unlink()
    extra = max(extra, 0 if fresh else int(stamp.get('extra', 0)))
    write_json(folder / STAMP, {**version, 'complete': False, 'extra': extra})
    songs = {split: songs_of(split, version['seed'], extra) for split in SPLITS}
    todo = [s for group in songs.values() for s in group if not _is_whole(folder, s)]
    _render_all(folder, todo, min(jobs, max(1, len(todo))), version['seed'], extra, progress)
    files: tp.Dict[str, int] = {}
    for split, group in songs.items():
        if group:
            manifest = folder / 'egs' / split / 'data.jsonl'
            write_atomic(manifest, ''.join(json.dumps(_meta(folder, s)) + '\n' for s in group))
            paths = [manifest] + [audio_path(folder, s).with_suffix(e) for s in group for e in ('.wav', '.json')]
            files.update({str(p.relative_to(folder)): p.stat().st_size for p in paths})
    write_json(folder / STAMP, {**version, 'complete': True, 'extra': extra, 'folder': str(folder), 'files': files})
    return _describe(folder, extra, len(todo))


def _describe(folder: Path, extra: int, rendered: int) -> EmbeddedCatalogue:
    manifests = {split: folder / 'egs' / split / 'data.jsonl' for split in SPLITS}
    return EmbeddedCatalogue(folder, manifests['train'], manifests['heldout'], manifests['extra'] if extra else None,
                             rendered)


def _meta(folder: Path, song: SongSpec) -> tp.Dict[str, tp.Any]:
    """A line of an audiocraft manifest."""
    size = audio_path(folder, song).stat().st_size
    return {'path': str(audio_path(folder, song)), 'duration': (size - _HEADER) / 2 / SAMPLE_RATE,
            'sample_rate': SAMPLE_RATE, 'amplitude': None, 'weight': None, 'info_path': None}


def _is_whole(folder: Path, song: SongSpec) -> bool:
    path = audio_path(folder, song)
    size = _HEADER + 2 * int(round(song.duration * SAMPLE_RATE))
    return path.is_file() and path.stat().st_size == size and path.with_suffix('.json').is_file()


def _read_stamp(folder: Path) -> tp.Dict[str, tp.Any]:
    try:
        stamp = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _cached(folder: Path, version: tp.Dict[str, tp.Any], extra: int) -> tp.Optional[EmbeddedCatalogue]:
    """The catalogue as it lies there, or None if anything about it is not as stamped (a moved folder included)."""
    stamp = _read_stamp(folder)
    expected = {**version, 'complete': True, 'folder': str(folder)}
    if any(stamp.get(k) != v for k, v in expected.items()) or not extra <= stamp.get('extra', 0):
        return None
    for name, size in stamp['files'].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return None
    return _describe(folder, stamp['extra'], 0)


def _render_all(folder: Path, todo: tp.Sequence[SongSpec], jobs: int, seed: int, extra: int, progress: bool) -> None:
    """Render songs, in this process or in `jobs` others.

    The others are started as commands of their own rather than with multiprocessing: that needs no guard in the
    caller's script and does not fork a process in which torch has started threads.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]
    with tqdm(total=len(todo), desc='rendering songs', disable=not progress or not todo, unit='song') as bar:
        if jobs == 1:
            for song in todo:
                write_song(folder, song)
                bar.update()
            return
        root = str(Path(__file__).parents[2])
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1',
               'PYTHONPATH': os.pathsep.join(p for p in (root, os.environ.get('PYTHONPATH')) if p)}
        workers: tp.List[subprocess.Popen] = []
        try:
            for k in range(jobs):
                task = {'folder': str(folder), 'seed': seed, 'extra': extra, 'ids': [s.id for s in todo[k::jobs]]}
                worker = subprocess.Popen([sys.executable, '-m', f'{__package__}.worker'], env=env, text=True,
                                          stdin=subprocess.PIPE, stderr=subprocess.PIPE)
                assert worker.stdin is not None
                workers.append(worker)
                worker.stdin.write(json.dumps(task))
                worker.stdin.close()
            while any(w.poll() is None for w in workers):
                time.sleep(.1)
                bar.update(sum(_is_whole(folder, s) for s in todo) - bar.n)
            bar.update(len(todo) - bar.n)
            for worker in workers:
                if worker.returncode:
                    assert worker.stderr is not None
                    lines = worker.stderr.read().strip().splitlines() or ['no message']
                    raise LuminaError(f"a process that renders songs into {folder} stopped with code "
                                      f"{worker.returncode}: {lines[-1]}; run again with jobs=1 to see all of it.")
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.terminate()
                worker.wait()
                if worker.stderr is not None:
                    worker.stderr.close()


@contextmanager
def _locked(folder: Path) -> tp.Iterator[None]:
    """Lets one process at a time build in a folder; where the system has no such locks, does nothing."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        handle = open(folder / '.lock', 'w')
    except OSError as error:
        raise LuminaError(f"cannot write into {folder}: {error.strerror}; choose another folder.") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
