"""From an audio file, its sidecar or its report back to what was attributed, and whether all of it still fits."""

import dataclasses
import json
import typing as tp
from pathlib import Path

from .. import audio as recordings
from ..errors import LuminaError
from ..report.schema import AttributionReport
from . import signing
from .record import SUFFIX, Attribution, attribution_of, report_sha256, sidecar_path
from .sound import content_sha256
from .tags import read_tags

REPORT = 'report.json'
_LARGEST = 1 << 30  # bytes of a JSON file that is read: reports name every song of a catalogue


@dataclasses.dataclass(frozen=True)
class Source:
    """A place where a record was found. `name` is that of people: 'the tags', 'the sidecar', …"""
    name: str
    path: Path
    attribution: Attribution


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was compared, in a sentence; `ok` says whether it fits."""
    ok: bool
    sentence: str


@dataclasses.dataclass(frozen=True)
class Found:
    """What is known of one piece of audio.

    Attributes:
        audio: the file, where it is there. report: the whole report, where it lies beside.
        sources: those that say who is credited, the most trustworthy first: C2PA, tags, sidecar, report.
        checks: what was compared.
    """
    audio: tp.Optional[Path]
    report: tp.Optional[AttributionReport]
    sources: tp.List[Source]
    checks: tp.List[Check]

    @property
    def attribution(self) -> tp.Optional[Attribution]:
        return self.sources[0].attribution if self.sources else None

    @property
    def fits(self) -> bool:
        """Whether nothing was found changed."""
        return all(check.ok for check in self.checks)


def read_back(path: tp.Union[str, Path], trust: tp.Optional[tp.Union[str, Path]] = None) -> Found:
    """Read the attribution of an audio file, a sidecar, a report or a clip's folder; compare all that belongs to it.

    Args:
        trust (path, optional): PEM with the root certificates of C2PA signers that are trusted.
    Raises:
        LuminaError: there is no such file, or nothing that could be an attribution in it or beside it.
    """
    audio, report = _belonging(Path(path))
    sources: tp.List[Source] = []
    checks: tp.List[Check] = []
    if audio is not None:
        _look(lambda: _signed(audio, trust, checks), 'the C2PA manifest', audio, sources, checks)
        _look(lambda: read_tags(audio), 'the tags', audio, sources, checks)
    sidecar = _sidecar(Path(path), audio)
    if sidecar is not None:
        _look(lambda: Attribution.parse(_text(sidecar), str(sidecar)), 'the sidecar', sidecar, sources, checks)
    loaded = _report(report, audio, sources, checks)
    if not sources and not checks:
        raise LuminaError(f"{path} carries no attribution, neither inside nor beside it; make one with `lumina "
                          f"attribute {path} --sidecar`.")
    checks += [*_agreement(sources), *_sound(audio, sources, loaded)]
    return Found(audio, loaded, sources, checks)


def _belonging(path: Path) -> tp.Tuple[tp.Optional[Path], tp.Optional[Path]]:
    """The audio file and the report that go with a path, where they are there."""
    if path.is_dir():
        path = path / REPORT
    if not path.is_file():
        raise LuminaError(f"{path} does not exist; name an audio file, its {SUFFIX} or a report.")
    if path.suffix.lower() != '.json':
        beside = path.parent / REPORT
        return path, beside if beside.is_file() and _audio_of(beside) == path.name else None
    if path.name.endswith(SUFFIX):
        audio = path.with_name(path.name.removesuffix(SUFFIX))
        return (audio, _belonging(audio)[1]) if audio.is_file() else (None, None)
    name = _audio_of(path)
    found = path.parent / Path(name).name if name else None  # a name alone: no report leads out of its folder
    return (found if found is not None and found.is_file() else None), path


def _audio_of(report: Path) -> tp.Optional[str]:
    """What a report calls its audio file; None where it is damaged or names none."""
    try:
        name = _json(report).get('query', {}).get('audio_file')
    except (LuminaError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def _sidecar(path: Path, audio: tp.Optional[Path]) -> tp.Optional[Path]:
    if path.name.endswith(SUFFIX):
        return path
    beside = None if audio is None else sidecar_path(audio)
    return beside if beside is not None and beside.is_file() else None


def _look(reader: tp.Callable[[], tp.Optional[Attribution]], name: str, path: Path, sources: tp.List[Source],
          checks: tp.List[Check]) -> None:
    """Add what a reader finds to the sources; that it is damaged, to the checks."""
    try:
        found = reader()
    except LuminaError as error:
        checks.append(Check(False, str(error)))
        return
    if found is not None:
        sources.append(Source(name, path, found))


def _signed(audio: Path, trust: tp.Optional[tp.Union[str, Path]], checks: tp.List[Check]
            ) -> tp.Optional[Attribution]:
    """The record of a C2PA manifest; what the signature is worth goes to the checks."""
    if audio.suffix.lower() not in signing.MIMES or not signing.may_hold_manifest(audio):
        return None
    if not signing.installed():
        checks.append(Check(True, f"{audio.name} seems to hold a C2PA manifest, which cannot be read without "
                                  "c2pa-python: pip install 'lumina_plugin[c2pa]'."))
        return None
    manifest = signing.read_manifest(audio, trust)
    if manifest is None:
        return None
    if manifest.problems:
        checks.append(Check(False, f"The C2PA manifest does not hold: {audio.name} was changed after it was signed "
                                   f"({', '.join(manifest.problems)})."))
        return None
    known = 'whom you trust' if manifest.trusted else 'whom nothing here vouches for (name roots by --trust)'
    checks.append(Check(True, f"The C2PA manifest holds: {audio.name} is as it was signed by {manifest.signer}, "
                              f"{known}."))
    return manifest.attribution


def _report(path: tp.Optional[Path], audio: tp.Optional[Path], sources: tp.List[Source], checks: tp.List[Check]
            ) -> tp.Optional[AttributionReport]:
    """The report, and whether it is the one that the other sources name; alone, it is a source itself."""
    if path is None:
        return None
    try:
        report, digest = AttributionReport.load(path), report_sha256(_json(path))
    except LuminaError as error:
        checks.append(Check(False, str(error)))
        return None
    others = {source.name: source.attribution.report_sha256 == digest for source in sources}
    if others:
        names = _listed([name for name, same in others.items() if same])
        wrong = _listed([name for name, same in others.items() if not same])
        if names:
            checks.append(Check(True, f"{path.name} is the report named by {names}."))
        if wrong:
            checks.append(Check(False, f"{path.name} is not the report named by {wrong}: one of them was changed, or "
                                       "made again."))
    made = attribution_of(report)
    sources.append(Source('the report', path, made.model_copy(update={'report_sha256': digest})))
    return report


def _agreement(sources: tp.Sequence[Source]) -> tp.List[Check]:
    """Whether all records but the report's, which is compared by its hash, are the same."""
    records = [source for source in sources if source.name != 'the report']
    return [Check(False, f"What {source.name} and {records[0].name} say is not the same: one of them was changed.")
            for source in records[1:] if source.attribution != records[0].attribution]


def _sound(audio: tp.Optional[Path], sources: tp.Sequence[Source], report: tp.Optional[AttributionReport]
           ) -> tp.List[Check]:
    """Whether the audio is that which was attributed: by its sound, or by the report's hash of its bytes."""
    if audio is None:
        return [Check(True, "The audio itself is not here, and was not compared.")]
    wanted = {source.attribution.content_sha256 for source in sources if source.attribution.content_sha256 is not None}
    if wanted:
        try:
            found = content_sha256(audio)
        except LuminaError as error:
            return [Check(False, str(error))]
        if wanted == {found}:
            return [Check(True, f"{audio.name} sounds as it did when it was attributed.")]
        return [Check(False, f"{audio.name} is not what was attributed: its sound was changed, cut or encoded anew.")]
    if report is None or report.query.sha256 is None:
        return []
    same = recordings.file_sha256(audio) == report.query.sha256
    return [Check(same, f"{audio.name} is the file that was attributed." if same else
                  f"{audio.name} is not, byte for byte, the file that was attributed.")]


def _listed(names: tp.Sequence[str]) -> str:
    return ' and '.join(names) if len(names) < 3 else ', '.join(names[:-1]) + ' and ' + names[-1]


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise LuminaError(f"{path} is too large for an attribution; name another file.")
        return path.read_text(encoding='utf-8')
    except OSError as error:
        raise LuminaError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    except UnicodeDecodeError:
        raise LuminaError(f"{path} is no text, and so no attribution; attribute the audio again.") from None


def _json(path: Path) -> tp.Dict[str, tp.Any]:
    try:
        data = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise LuminaError(f"{path} is not readable JSON ({error}); attribute the audio again.") from None
    if not isinstance(data, dict):
        raise LuminaError(f"{path} holds JSON but no attribution; attribute the audio again.")
    return data
