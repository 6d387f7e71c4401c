"""The catalogue of the standard suite: the first ten seconds of each embedded song.

Short songs make a short training, which can be repeated often enough to know what each song did.
"""

import json
import shutil
import typing as tp
from pathlib import Path

import soundfile

from ..atomic import write_atomic
from ..embedded import build_embedded
from ..embedded.build import SPLITS

SECONDS = 10.


def build_excerpts(folder: tp.Union[str, Path], seconds: float = SECONDS, extra: int = 0, jobs: int = 2) -> Path:
    """Cut the embedded catalogue's songs; what is there already is kept.

    Args:
        folder (path): Gets `embedded/` (whole songs) and `songs/` (their beginnings), each with `audio/<split>/` and
            audiocraft manifests `egs/<split>/`. seconds (float): Length of an excerpt; a shorter song stays whole.
        extra (int): So many further songs, as the split 'extra'. jobs (int): Processes that render.
    Returns:
        Path: The folder `songs`, which `LUMINA_CATALOGUE` takes.
    Raises:
        LuminaError: when the folder cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    whole = build_embedded(folder / 'embedded', jobs=jobs, extra=extra).folder
    for split in SPLITS:
        manifest = whole / 'egs' / split / 'data.jsonl'
        if not manifest.is_file():
            continue
        entries = [json.loads(line) for line in manifest.read_text(encoding='utf-8').splitlines()]
        cut = [_cut(entry, folder / 'songs' / 'audio' / split, seconds) for entry in entries]
        write_atomic(folder / 'songs' / 'egs' / split / 'data.jsonl', ''.join(json.dumps(e) + '\n' for e in cut))
    return folder / 'songs'


def _cut(entry: tp.Dict[str, tp.Any], folder: Path, seconds: float) -> tp.Dict[str, tp.Any]:
    """The manifest's entry of a song's beginning, which is written with its sidecar where it is not there yet."""
    source = Path(entry['path'])
    path = folder / source.name
    frames = min(int(seconds * entry['sample_rate']), round(entry['duration'] * entry['sample_rate']))
    fresh = path.is_file() and path.stat().st_mtime >= source.stat().st_mtime  # a song may be rendered anew
    if not fresh or soundfile.info(path).frames != frames:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.with_suffix('.json'), path.with_suffix('.json'))
        samples, rate = soundfile.read(source, frames=frames, dtype='int16')
        partial = path.with_suffix('.part')
        soundfile.write(partial, samples, rate, format='WAV', subtype='PCM_16')
        partial.replace(path)
    return {**entry, 'path': str(path), 'duration': frames / entry['sample_rate']}
