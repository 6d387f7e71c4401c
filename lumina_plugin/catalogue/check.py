"""Looks over a catalogue before a long run depends on it."""
import typing as tp
from dataclasses import dataclass, field
from pathlib import Path

from ..audio import read_audio, silent
from ..errors import LuminaError
from .build import content_hash
from .tracks import Catalogue

_TOLERANCE = .5  # seconds by which a manifest's duration may be off: containers round


@dataclass
class CheckResult:
    """What was found.

    Args:
        catalogue (Catalogue): What was checked.
        missing (list of str): Ids whose file does not exist.
        bad (dict): Why a file cannot be used, by id.
        silent (list of str): Ids without sound.
        duplicates (list): Groups of ids whose audio is the same.
        warnings (list of str): What a run survives: missing sidecars, wrong durations, splits that miss 100 %.
        hours (float): Of what can be read.
    """
    catalogue: Catalogue
    missing: tp.List[str] = field(default_factory=list)
    bad: tp.Dict[str, str] = field(default_factory=dict)
    silent: tp.List[str] = field(default_factory=list)
    duplicates: tp.List[tp.Tuple[str, ...]] = field(default_factory=list)
    warnings: tp.List[str] = field(default_factory=list)
    hours: float = 0.

    @property
    def songs(self) -> int:
        return len(self.catalogue)

    @property
    def ok(self) -> bool:
        """Nothing is missing and nothing bad."""
        return not self.missing and not self.bad

    def summary(self) -> str:
        """What was found, a line each, then one line with the counts."""
        lines = [f"{id}: its file {self.catalogue.get(id).path} does not exist." for id in self.missing]
        lines += [f"{id}: {reason}" for id, reason in self.bad.items()] + [f"{id}: is silent." for id in self.silent]
        return '\n'.join([*lines, *self.warnings, (
            f"{self.songs} songs, {self.hours:.2f} h; {len(self.missing)} missing, {len(self.bad)} bad, "
            f"{len(self.silent)} silent, {len(self.duplicates)} with the same audio as another")])


def check_catalogue(path: tp.Union[str, Path], progress: bool = True) -> CheckResult:
    """Read every song of a manifest to its end.

    Args:
        path (str or Path): As in `Catalogue.from_manifest`.
        progress (bool): Show a progress bar on stderr.
    Returns:
        CheckResult: by id what is missing, bad, silent or there twice.
    Raises:
        LuminaError: the manifest itself cannot be used.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]
    result = CheckResult(Catalogue.from_manifest(path))
    hashes: tp.Dict[str, tp.List[str]] = {}
    for track in tqdm(result.catalogue, desc='checking songs', unit='song', disable=not progress, delay=1):
        for name, shares in (('writers', track.writers), ('master owners', track.masters)):
            total = sum(s.share for s in shares)
            if shares and abs(total - 100) > .01:
                result.warnings.append(f"{track.id}: its {name}' shares sum to {total:g} %, not 100 %.")
        if not track.path.exists():
            result.missing.append(track.id)
            continue
        try:
            wav, rate = read_audio(track.path)
        except LuminaError as error:
            result.bad[track.id] = str(error)
            continue
        duration = wav.shape[-1] / rate
        result.hours += duration / 3600
        hashes.setdefault(content_hash(wav, rate), []).append(track.id)
        if silent(wav):
            result.silent.append(track.id)
        if abs(duration - track.duration) > _TOLERANCE:
            result.warnings.append(f"{track.id}: lasts {duration:.1f} s, its manifest says {track.duration:.1f} s.")
        if not track.sidecar.is_file():
            result.warnings.append(f"{track.id}: has no sidecar {track.sidecar.name}: title and owners are unknown.")
    result.duplicates = [tuple(ids) for ids in hashes.values() if len(ids) > 1]
    result.warnings += [f"{', '.join(ids)} hold the same audio." for ids in result.duplicates]
    return result
