"""`Track` and `Catalogue`: audiocraft manifests and their sidecars as the rest of the project sees them."""
import gzip
import hashlib
import json
import os
import re
import typing as tp
from collections import Counter, abc
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..audio import file_sha256
from ..errors import LuminaError

MANIFESTS = ('data.jsonl', 'data.jsonl.gz')


class Share(tp.NamedTuple):
    """Somebody's part of a right, in percent."""
    name: str
    share: float


@dataclass(frozen=True)
class Track:
    """One catalogue entry.

    Args:
        id (str): Unique in its catalogue.
        path (Path): The audio file, absolute.
        duration (float): Seconds, as the manifest says.
        sample_rate (int): Hz, as the manifest says.
        title, artist, isrc, iswc, description (str, optional): From the sidecar.
        writers, masters (tuple of Share): Who owns the composition (channel P) and the recording (channel M).
        composition_id, production_id (str, optional): Known where the catalogue was made for measuring separation.
        silent (bool): The catalogue's builder found no sound in it.
    """
    id: str
    path: Path
    duration: float
    sample_rate: int
    title: tp.Optional[str] = None
    artist: tp.Optional[str] = None
    isrc: tp.Optional[str] = None
    iswc: tp.Optional[str] = None
    writers: tp.Tuple[Share, ...] = ()
    masters: tp.Tuple[Share, ...] = ()
    description: tp.Optional[str] = None
    composition_id: tp.Optional[str] = None
    production_id: tp.Optional[str] = None
    silent: bool = False

    @property
    def sha256(self) -> str:
        """SHA-256 of the audio file, read when first asked for; LuminaError where it cannot be read."""
        try:
            facts = self.path.stat()
        except OSError as error:
            raise LuminaError(f"{self.path} (song {self.id}) cannot be read: {error.strerror}; restore it, or build "
                              "the catalogue again.") from error
        return _known_sha256(str(self.path), facts.st_size, facts.st_mtime_ns)

    @property
    def sidecar(self) -> Path:
        """Where audiocraft looks for this song's metadata."""
        return self.path.with_suffix('.json')

    @property
    def extra(self) -> tp.Dict[str, tp.Any]:
        """What a store keeps beside a track's own columns: rights and design, as far as known, ready for JSON."""
        out = {'writers': [s._asdict() for s in self.writers], 'master_owners': [s._asdict() for s in self.masters],
               'composition_id': self.composition_id, 'production_id': self.production_id,
               'description': self.description}
        return {k: v for k, v in out.items() if v}


@lru_cache(maxsize=65536)
def _known_sha256(path: str, size: int, modified: int) -> str:
    """Size and time of change are part of the key, so that a replaced file is read again."""
    return file_sha256(path)


class Catalogue(abc.Sequence):
    """Songs in a fixed order.

    Args:
        tracks (iterable of Track): With ids that differ.
        source (Path, optional): The manifest they came from.
    """
    def __init__(self, tracks: tp.Iterable[Track], source: tp.Optional[Path] = None):
        self.tracks: tp.Tuple[Track, ...] = tuple(tracks)
        self.source = source
        self._by_id = {t.id: t for t in self.tracks}
        if len(self._by_id) != len(self.tracks):
            twice = next(id for id, count in Counter(t.id for t in self.tracks).items() if count > 1)
            raise LuminaError(f"the song id '{twice}' occurs twice in {source or 'the catalogue'}; give each song its "
                              "own `track_id` in its sidecar.")

    def __len__(self) -> int:
        return len(self.tracks)

    @tp.overload
    def __getitem__(self, index: int) -> Track: ...
    @tp.overload
    def __getitem__(self, index: slice) -> 'Catalogue': ...

    def __getitem__(self, index: tp.Union[int, slice]) -> tp.Union[Track, 'Catalogue']:
        if isinstance(index, slice):
            return Catalogue(self.tracks[index], self.source)
        return self.tracks[index]

    def __repr__(self) -> str:
        return f"Catalogue({len(self)} songs, {self.hours:.2f} h, {self.source})"

    @property
    def hours(self) -> float:
        return sum(t.duration for t in self.tracks) / 3600

    @property
    def hash(self) -> str:
        """SHA-256 over every song's id and audio, in order; a file that cannot be read counts as missing.

        Titles, paths and formats of the manifest do not count: the same songs elsewhere are the same catalogue.
        """
        digest = hashlib.sha256()
        for track in self.tracks:
            try:
                audio = track.sha256
            except LuminaError:
                audio = 'missing'
            digest.update(json.dumps([track.id, audio]).encode())
        return digest.hexdigest()

    def get(self, id: str) -> Track:
        """The song of that id; LuminaError if there is none."""
        if id not in self._by_id:
            near = [t.id for t in self.tracks if id.lower() in t.id.lower()][:3] or [t.id for t in self.tracks[:3]]
            where = self.source or 'the catalogue'
            raise LuminaError(f"no song '{id}' in {where}; its ids are like {', '.join(near)}.")
        return self._by_id[id]

    @classmethod
    def from_manifest(cls, path: tp.Union[str, Path]) -> 'Catalogue':
        """Read an audiocraft manifest and the sidecars beside its audio. The audio itself is not opened.

        Args:
            path (str or Path): A `.jsonl` or `.jsonl.gz`, or the folder of a `data.jsonl[.gz]`.
        Returns:
            Catalogue: Ids are the sidecars' `track_id`, else the files' names (with their folder's where two agree).
        Raises:
            LuminaError: the manifest is missing, empty or broken, or a sidecar is.
        """
        manifest = find_manifest(path)
        rows = _read_rows(manifest)
        paths = [_resolve(row['path'], manifest) for row in rows]
        infos = [read_sidecar(p.with_suffix('.json')) or {} for p in paths]
        names = unique_ids(paths)
        return cls([_track(_word(info, 'track_id') or name, p, row, info)
                    for name, p, row, info in zip(names, paths, rows, infos, strict=True)], manifest)


def find_manifest(path: tp.Union[str, Path]) -> Path:
    """The manifest that a path means: itself or a folder's `data.jsonl[.gz]`."""
    path = Path(path).expanduser()
    if path.is_dir():
        for name in MANIFESTS:
            if (path / name).is_file():
                return (path / name).absolute()
        below = sorted({str(p.parent) for name in MANIFESTS for p in path.glob(f'egs/*/{name}')})
        hint = f"did you mean {' or '.join(below)}?" if below else "make one with `lumina catalogue build`."
        raise LuminaError(f"the folder {path} holds no data.jsonl or data.jsonl.gz; {hint}")
    if not path.is_file():
        raise LuminaError(f"the manifest {path} does not exist; make one with `lumina catalogue build`.")
    return path.absolute()


def _read_rows(manifest: Path) -> tp.List[tp.Dict[str, tp.Any]]:
    """The manifest's lines, each with at least a path, a duration and a sample rate."""
    try:
        raw = gzip.open(manifest).read() if manifest.suffix == '.gz' else manifest.read_bytes()
        lines = raw.decode('utf-8').splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise LuminaError(f"the manifest {manifest} cannot be read ({error}); make it again.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row = {**row, 'path': str(row['path']), 'duration': float(row['duration']),
                   'sample_rate': int(row['sample_rate'])}
        except (ValueError, TypeError, KeyError) as error:
            reason = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise LuminaError(f"line {number} of the manifest {manifest} is not an audiocraft entry ({reason}); each "
                              'line looks like {"path": ..., "duration": ..., "sample_rate": ...}.') from error
        rows.append(row)
    if not rows:
        raise LuminaError(f"the manifest {manifest} is empty; make it again from a folder with songs.")
    return rows


def _resolve(path: str, manifest: Path) -> Path:
    """Absolute path: audiocraft takes relative ones from the working directory; the manifest's folder comes second."""
    given = Path(path)
    if given.is_absolute():
        return given
    here = Path(os.path.abspath(given))
    beside = Path(os.path.abspath(manifest.parent / given))
    return beside if not here.exists() and beside.exists() else here


def read_sidecar(path: Path) -> tp.Optional[tp.Dict[str, tp.Any]]:
    """A sidecar's content, None if there is none; LuminaError if it is not a JSON object."""
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise LuminaError(f"the sidecar {path} is not valid JSON ({error}); mend or remove it.") from error
    if not isinstance(info, dict):
        raise LuminaError(f"the sidecar {path} holds no JSON object; mend or remove it.")
    return info


def unique_ids(paths: tp.Sequence[Path]) -> tp.List[str]:
    """An id for each file from its name; where names agree, the folder's name goes before and a number after it."""
    def clean(text: str) -> str:
        return re.sub(r'[^\w.+-]+', '-', text).strip('-.') or 'song'

    names = [clean(p.stem) for p in paths]
    counts = Counter(names)
    taken = {n for n in names if counts[n] == 1}
    out = []
    for path, name in zip(paths, names, strict=True):
        if counts[name] > 1:
            base = candidate = f"{clean(path.parent.name)}-{name}"
            number = 1
            while candidate in taken:
                number += 1
                candidate = f"{base}-{number}"
            name = candidate
            taken.add(name)
        out.append(name)
    return out


def _word(info: tp.Mapping[str, tp.Any], key: str) -> tp.Optional[str]:
    value = info.get(key)
    return str(value).strip() or None if isinstance(value, (str, int, float)) else None


def _shares(info: tp.Mapping[str, tp.Any], key: str, path: Path) -> tp.Tuple[Share, ...]:
    splits = info.get('splits') or {}
    try:
        return tuple(Share(str(s['name']), float(s['share'])) for s in splits.get(key) or ())
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise LuminaError(f"`splits.{key}` in the sidecar {path.with_suffix('.json')} is not a list of "
                          '{"name": ..., "share": ...}; mend it.') from error


def _track(id: str, path: Path, row: tp.Mapping[str, tp.Any], info: tp.Mapping[str, tp.Any]) -> Track:
    return Track(
        id, path, row['duration'], row['sample_rate'], _word(info, 'title'), _word(info, 'artist'), _word(info, 'isrc'),
        _word(info, 'iswc'), _shares(info, 'writers', path), _shares(info, 'master_owners', path),
        _word(info, 'description'), _word(info, 'composition_id'), _word(info, 'production_id'),
        info.get('silent') is True)
