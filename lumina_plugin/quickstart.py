"""The main job from nothing: render the catalogue, train and fingerprint, generate with attributions attached.

Every stage leaves files behind and is skipped when they are there: a second call only reads.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
import typing as tp
from pathlib import Path

from . import compat
from .errors import LuminaError
from .report.schema import AttributionReport
from .store import FingerprintStore

SOLVER = 'lumina/quickstart'
SECONDS, PROMPT_SECONDS = 10., 3.


@dataclasses.dataclass(frozen=True)
class Plan:
    """One clip of the quickstart: continues `song` where that is given (`heldout` songs are not in the catalogue)."""
    name: str
    seed: int
    song: tp.Optional[str] = None
    heldout: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """What the quickstart made. `reused` names the stages whose files were there already."""
    run: Path
    store: Path
    clips: tp.List[Path]
    reports: tp.List[AttributionReport]
    reused: tp.List[str]
    seconds: tp.Dict[str, float]


def run_quickstart(out: tp.Union[str, Path] = 'outputs', overrides: tp.Sequence[str] = (), jobs: int = 2) -> Result:
    """Run the main job below a folder.

    Args:
        out (path): Everything goes below it: `embedded/` (songs), `xps/<signature>/` (the run with `lumina/` beside its
            checkpoints), `clips/<signature>/` (generations).
        overrides (sequence of str): Passed to `dora run`, e.g. `optim.epochs=2`. jobs (int): Processes that render.
    Raises:
        LuminaError: when a stage fails for a reason that a user can mend.
    """
    out = Path(out).resolve()
    seconds: tp.Dict[str, float] = {}
    reused: tp.List[str] = []

    def staged(name: str, begun: float, skipped: bool) -> None:
        seconds[name] = time.perf_counter() - begun
        if skipped:
            reused.append(name)
        print(f"[{name}] {'reused' if skipped else 'done'} in {seconds[name]:.1f} s", file=sys.stderr, flush=True)

    begun = time.perf_counter()
    songs, skipped = _catalogue(out / 'embedded', jobs)
    staged('catalogue', begun, skipped)
    begun = time.perf_counter()
    run, skipped = _train(out, songs, overrides)
    staged('training and fingerprints', begun, skipped)
    store = run / 'lumina' / 'default'
    begun = time.perf_counter()
    clips, skipped = _clips(out / 'clips' / run.name, run, store, songs)
    staged('generations', begun, skipped)
    reports = [AttributionReport.load(clip / 'report.json') for clip in clips]
    return Result(run, store, clips, reports, reused, seconds)


def _catalogue(folder: Path, jobs: int) -> tp.Tuple[Path, bool]:
    from .embedded import build_embedded
    before = _newest(folder)
    build_embedded(folder, jobs=jobs)
    return folder, before is not None and _newest(folder) == before


def _newest(folder: Path) -> tp.Optional[float]:
    return max((path.stat().st_mtime for path in folder.rglob('*.wav')), default=None)


def _train(out: Path, songs: Path, overrides: tp.Sequence[str]) -> tp.Tuple[Path, bool]:
    """`dora run solver=lumina/quickstart` in a process of its own; nothing to do where that run is complete."""
    os.environ.update(LUMINA_DORA_DIR=str(out), LUMINA_CATALOGUE=str(songs))
    os.environ.pop('AUDIOCRAFT_DORA_DIR', None)
    from .train import main
    argv = [f'solver={SOLVER}', *overrides]
    main.dora.dir = out
    xp = main.get_xp(argv)
    epochs = int(xp.cfg.optim.epochs)
    if _finished(xp.folder, epochs):
        return xp.folder, True
    done = subprocess.run([sys.executable, '-m', 'dora', '-P', 'lumina_plugin', 'run', *argv], check=False)
    if done.returncode or not _finished(xp.folder, epochs):
        raise LuminaError(f"dora run {' '.join(argv)} ended with exit code {done.returncode}; its log is "
                          f"{xp.folder}/solver.log.0. Mend what it names and call the quickstart again: it resumes.")
    return xp.folder, False


def _finished(run: Path, epochs: int) -> bool:
    history, store = run / 'history.json', run / 'lumina' / 'default'
    if not history.is_file() or len(json.loads(history.read_text())) < epochs or not FingerprintStore.exists(store):
        return False
    return any(info.complete and info.epoch == epochs for info in FingerprintStore.open(store).checkpoints)


def _clips(folder: Path, run: Path, store: Path, songs: Path) -> tp.Tuple[tp.List[Path], bool]:
    """A free generation, two continuations of catalogue songs, one of a song that is not in the catalogue."""
    compat.install()
    plans = _plans(store)
    stamp = folder / 'stamp.json'
    state = json.dumps([_sha256(store / 'manifest.json'), SECONDS, PROMPT_SECONDS,
                        [dataclasses.asdict(p) for p in plans]])
    paths = [folder / plan.name for plan in plans]
    if stamp.is_file() and stamp.read_text() == state and all((path / 'report.html').is_file() for path in paths):
        return paths, True
    from .catalogue import Catalogue
    from .workflows import Prompt, Studio
    studio = Studio(run, store)
    for plan in plans:
        prompt = None
        if plan.song is not None:
            catalogue = Catalogue.from_manifest(songs / 'egs' / ('heldout' if plan.heldout else 'train'))
            track = catalogue.get(plan.song)
            prompt = Prompt(Path(track.path), PROMPT_SECONDS, track.id)
        studio.generate(folder, plan.name, prompt=prompt, seconds=SECONDS, seed=plan.seed)
    stamp.write_text(state)
    return paths, False


def _plans(store: Path) -> tp.List[Plan]:
    from .embedded import heldout_songs
    tracks = [track.id for track in FingerprintStore.open(store).tracks if (track.duration or 0) >= SECONDS]
    first, second = tracks[len(tracks) // 4], tracks[3 * len(tracks) // 4]
    stranger = heldout_songs()[0].id
    return [Plan('free', 1), Plan(f'continues-{first}', 2, first), Plan(f'continues-{second}', 3, second),
            Plan(f'continues-{stranger}', 4, stranger, heldout=True)]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
