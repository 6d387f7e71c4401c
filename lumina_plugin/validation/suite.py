"""The standard suite: songs, a pretrained model and the fine-tuned one whose attributions are measured."""

import json
import os
import subprocess
import sys
import typing as tp
from pathlib import Path

from omegaconf import OmegaConf

from ..atomic import write_atomic
from ..errors import LuminaError
from .excerpts import build_excerpts

PRETRAINING, CALIBRATION, STRANGERS = 400, 100, 100  # further songs: to pretrain on, to set gates by, to test them with


def build_songs(work: Path, jobs: int = 2) -> Path:
    """The suite's songs below a folder: `songs/egs/{train,heldout,pretraining,calibration,strangers}`.

    The first two and those to calibrate by are excerpts of ten seconds, the others whole songs. No song is in two.
    """
    extra = PRETRAINING + CALIBRATION + STRANGERS
    songs = build_excerpts(work, extra=extra, jobs=jobs)
    whole = _lines(work / 'embedded' / 'egs' / 'extra' / 'data.jsonl')
    cut = _lines(songs / 'egs' / 'extra' / 'data.jsonl')
    first, second = PRETRAINING, PRETRAINING + CALIBRATION
    for split, lines in (('pretraining', whole[:first]), ('calibration', cut[first:second]),
                         ('strangers', whole[second:extra])):
        write_atomic(songs / 'egs' / split / 'data.jsonl', '\n'.join(lines) + '\n')
    return songs


def standard_run(work: Path, songs: Path, overrides: tp.Sequence[str] = ()) -> tp.Tuple[Path, Path]:
    """Pretrain and fine-tune by `dora run`; what is finished is kept.

    Args:
        work (Path): Becomes dora's folder. songs (Path): Of `build_songs`. overrides (sequence of str): Of the
            fine-tuning.
    Returns:
        Path: Folder of the fine-tuned run. Path: Of the pretrained one.
    Raises:
        LuminaError: when a training fails.
    """
    pretrained = dora_run(['solver=lumina/validation_pretraining'], work, songs)
    tuned = dora_run(['solver=lumina/validation', f'continue_from=//sig/{pretrained.name}', *overrides], work, songs)
    return tuned, pretrained


def finished_run(work: Path, preset: str = 'validation') -> tp.Optional[Path]:
    """The run of `solver=lumina/<preset>` below a folder, if it was trained to its end; the latest of several."""
    found = []
    for config in (work / 'xps').glob('*/.hydra/overrides.yaml'):
        folder = config.parent.parent
        if f'solver=lumina/{preset}' in OmegaConf.load(config) and \
                _epochs(folder) >= int(OmegaConf.load(folder / '.hydra' / 'config.yaml').optim.epochs):
            found.append(folder)
    return max(found, key=lambda folder: (folder / 'history.json').stat().st_mtime, default=None)


def memorised_run(work: Path, songs: Path) -> Path:
    """The second model, which knows its songs by heart: folder of the run; trained by `dora run` unless it is there.

    It starts from nothing, so that it is told by whose generations its own are judged: the pretrained model's, if that
    is finished.
    """
    other = finished_run(work, 'validation_pretraining')
    judged_by = [] if other is None else [f'fingerprint.generations_of={other}']
    return dora_run(['solver=lumina/validation_memorised', *judged_by], work, songs)


def other_run(work: Path, songs: Path) -> Path:
    """A model of other songs that sets no gate: folder of the run; trained by `dora run` unless it is there."""
    return dora_run(['solver=lumina/validation_other'], work, songs)


def dora_run(argv: tp.Sequence[str], work: Path, songs: Path) -> Path:
    """`dora run` with overrides in a process of its own, unless that run is complete: its folder.

    Raises:
        LuminaError: when it fails.
    """
    os.environ.update(LUMINA_DORA_DIR=str(work), LUMINA_CATALOGUE=str(songs))
    os.environ.pop('AUDIOCRAFT_DORA_DIR', None)
    from ..train import main
    main.dora.dir = work
    xp = main.get_xp(argv)
    if _epochs(xp.folder) < int(xp.cfg.optim.epochs):
        done = subprocess.run([sys.executable, '-m', 'dora', '-P', 'lumina_plugin', 'run', *argv], check=False)
        if done.returncode or _epochs(xp.folder) < int(xp.cfg.optim.epochs):
            raise LuminaError(f"dora run {' '.join(argv)} ended with exit code {done.returncode}; its log is "
                              f"{xp.folder}/solver.log.0. Mend what it names and call this again: it resumes.")
    return xp.folder


def _epochs(run: Path) -> int:
    history = run / 'history.json'
    return len(json.loads(history.read_text())) if history.is_file() else 0


def _lines(manifest: Path) -> tp.List[str]:
    return manifest.read_text(encoding='utf-8').splitlines()
