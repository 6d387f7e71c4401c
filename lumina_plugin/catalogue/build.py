"""A folder of recordings becomes a catalogue that audiocraft and this project can read.

    <out>/data.jsonl                       audiocraft manifest
    <out>/songs/<id>.<ext>, <id>.json      a link to each recording, and its sidecar

audiocraft looks for a song's metadata in one place only, beside the path that the manifest names and with the suffix
.json (`info_path` is for zip files, and its MusicDataset never reads it). The folder of recordings may be read-only
and is never written to; hence the links, which give every recording a place to have its sidecar beside.
"""
import hashlib
import json
import os
import shutil
import typing as tp
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..atomic import write_atomic, write_json
from ..audio import read_audio, silent
from ..errors import LuminaError
from .tracks import Catalogue, read_sidecar, unique_ids

EXTENSIONS = ('.wav', '.flac', '.ogg', '.oga', '.opus', '.mp3', '.m4a', '.mp4', '.aac', '.aif', '.aiff', '.webm')
# audiocraft requires every one of these keys of a sidecar unless told otherwise.
MUSIC_INFO = ('title', 'artist', 'key', 'bpm', 'genre', 'moods', 'keywords', 'description', 'name', 'instrument')


@dataclass
class BuildResult:
    """What came of a folder.

    Args:
        manifest (Path): The `data.jsonl` written.
        songs (int), hours (float): What is in it.
        skipped (dict): Why, by the path of each recording left out.
        silent (list of str): Ids of songs without sound: in the catalogue, but never fingerprinted.
        duplicates (list): Groups of ids whose audio is the same.
        warnings (list of str): Sentences for the user.
    """
    manifest: Path
    songs: int = 0
    hours: float = 0.
    skipped: tp.Dict[str, str] = field(default_factory=dict)
    silent: tp.List[str] = field(default_factory=list)
    duplicates: tp.List[tp.Tuple[str, ...]] = field(default_factory=list)
    warnings: tp.List[str] = field(default_factory=list)

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue.from_manifest(self.manifest)

    def summary(self) -> str:
        """Warnings, a line each, then one line with the counts."""
        counts = (f"{self.songs} songs, {self.hours:.2f} h, {len(self.skipped)} skipped, {len(self.silent)} silent, "
                  f"{len(self.duplicates)} with the same audio as another: {self.manifest}")
        return '\n'.join([*self.warnings, counts])


def build_catalogue(audio_folder: tp.Union[str, Path], out_folder: tp.Union[str, Path], strict: bool = False,
                    progress: bool = True) -> BuildResult:
    """Scan a folder and all below it, in sorted order, and write a catalogue of what can be read.

    Args:
        audio_folder (str or Path): Recordings, and sidecars `<name>.json` where there are any. Not written to.
        out_folder (str or Path): Where the catalogue goes; not inside `audio_folder`.
        strict (bool): Stop at the first recording that cannot be read, instead of skipping it.
        progress (bool): Show a progress bar on stderr.
    Returns:
        BuildResult: counts, and by name what was skipped, is silent, or occurs twice.
    Raises:
        LuminaError: no folder, no recordings, none readable, `out_folder` not writable; with `strict` any bad one.
    """
    source, out = Path(audio_folder).expanduser().resolve(), Path(out_folder).expanduser().resolve()
    if not source.is_dir():
        raise LuminaError(f"{audio_folder} is not a folder; name one that holds recordings.")
    if out == source or source in out.parents:
        raise LuminaError(f"the catalogue's folder {out} lies inside the recordings' folder {source}, which is never "
                          "written to; choose a folder elsewhere.")
    files = find_recordings(source)
    if not files:
        raise LuminaError(f"no recordings in {source}: none of its files ends in {', '.join(EXTENSIONS)}.")
    result = BuildResult(out / 'data.jsonl')
    hashes: tp.Dict[str, tp.List[str]] = {}
    lines: tp.List[str] = []
    from tqdm import tqdm  # type: ignore[import-untyped]
    pairs = list(zip(files, unique_ids(files), strict=True))
    for path, id in tqdm(pairs, desc='reading songs', unit='song', disable=not progress, delay=1):
        try:
            wav, rate = read_audio(path)
            info = _sidecar(path, id)
        except LuminaError as error:
            if strict:
                raise
            result.skipped[str(path)] = str(error)
            continue
        if silent(wav):
            info['silent'] = True
            result.silent.append(id)
        hashes.setdefault(content_hash(wav, rate), []).append(id)
        duration = wav.shape[-1] / rate
        result.hours += duration / 3600
        linked = _link(path, out / 'songs' / (id + path.suffix.lower()))
        write_json(linked.with_suffix('.json'), info)
        lines.append(json.dumps({'path': str(linked), 'duration': duration, 'sample_rate': rate, 'amplitude': None,
                                 'weight': None, 'info_path': None}))
    if not lines:
        name, reason = next(iter(result.skipped.items()))
        raise LuminaError(f"none of the {len(files)} recordings in {source} can be used; the first: {reason or name}")
    result.songs = len(lines)
    result.duplicates = [tuple(ids) for ids in hashes.values() if len(ids) > 1]
    result.warnings = _warnings(result)
    write_atomic(result.manifest, '\n'.join(lines) + '\n')
    return result


def find_recordings(folder: Path) -> tp.List[Path]:
    """All files with an audio suffix in and below `folder`, sorted by path; hidden ones are passed over."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith('.')]
        found += [Path(root) / n for n in names if Path(n).suffix.lower() in EXTENSIONS and not n.startswith('.')]
    return sorted(found, key=lambda p: p.relative_to(folder).parts)


def _warnings(result: BuildResult) -> tp.List[str]:
    out = [f"skipped {Path(path).name}: {reason}" for path, reason in result.skipped.items()]
    out += [f"{id} is silent: it is recorded as such and will not be fingerprinted." for id in result.silent]
    out += [f"{', '.join(ids)} hold the same audio: what one of them earns cannot be told from the others'."
            for ids in result.duplicates]
    return out


def content_hash(wav: torch.Tensor, rate: int) -> str:
    """Hash of what is heard, `[C, T]` at 16 bits: the same for a WAV file and the FLAC made from it."""
    pcm = (wav * 32767.).round().clamp(-32768, 32767).short()
    return hashlib.sha256(f"{rate} {tuple(pcm.shape)} ".encode() + pcm.numpy().tobytes()).hexdigest()


def _sidecar(path: Path, id: str) -> tp.Dict[str, tp.Any]:
    """What is known of a recording: its own sidecar first, then its tags, then its file name."""
    known = read_sidecar(path.with_suffix('.json')) or {}
    tags = _tags(path)
    info: tp.Dict[str, tp.Any] = {key: None for key in MUSIC_INFO}
    info.update(title=tags.get('title') or path.stem.replace('_', ' '), artist=tags.get('artist'),
                genre=tags.get('genre'), isrc=tags.get('isrc') or tags.get('tsrc'), iswc=tags.get('iswc'))
    info.update({key: value for key, value in known.items() if value is not None and key != 'silent'})
    # The file's name, made unique, stays the id: two sidecars may claim the same one.
    return {**info, 'name': info['name'] or id, 'track_id': id, 'source': str(path)}


def _tags(path: Path) -> tp.Dict[str, str]:
    """Tags of the container and its first audio stream, keys in lower case; nothing where there are none."""
    import av
    try:
        with av.open(str(path)) as container:
            found = dict(container.metadata)
            if container.streams.audio:
                found.update(container.streams.audio[0].metadata)
    except (av.FFmpegError, ValueError, UnicodeDecodeError):
        return {}
    return {key.lower(): value.strip() for key, value in found.items() if value.strip()}


def _link(source: Path, link: Path) -> Path:
    """Make `link` point to `source`; where the file system has no symbolic links, copy."""
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{link.name}.part")
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(source)
        except (OSError, NotImplementedError):
            shutil.copyfile(source, temporary)
        os.replace(temporary, link)
    except OSError as error:
        raise LuminaError(f"cannot write into {link.parent}: {error.strerror or error}; choose a folder that can be "
                          "written to and has room.") from error
    return link
