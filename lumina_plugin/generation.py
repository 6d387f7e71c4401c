"""Many clips by one command: each by a seed of its own, each written whole, and none of them made twice."""

import dataclasses
import json
import typing as tp
from pathlib import Path

from . import audio
from .atomic import write_json
from .catalogue.build import EXTENSIONS
from .errors import LuminaError
from .explain import nearest
from .provenance import Signing, read_back
from .provenance.signing import MIMES
from .report.schema import AttributionReport
from .store import FingerprintStore
from .workflows import JSON_NAME, Clip, Prompt, Studio

REQUEST = 'request.json'


@dataclasses.dataclass(frozen=True)
class Request:
    """What a clip is made of, besides model and store: the same one gives the same clip.

    Args:
        text (str, optional): Description. prompt (Prompt, optional): What to continue.
        melody (path, optional): Recording whose melody to follow.
        seconds (float): Length, prompt included. seed (int): Of the first clip; the next have the next ones.
        top_k (int), temperature (float), cfg_coef (float): As in MusicGen.
        kind (str): wav, flac, mp3 or ogg.
    """
    text: tp.Optional[str] = None
    prompt: tp.Optional[Prompt] = None
    melody: tp.Optional[Path] = None
    seconds: float = 10.
    seed: int = 0
    top_k: int = 250
    temperature: float = 1.
    cfg_coef: float = 3.
    kind: str = 'wav'


@dataclasses.dataclass(frozen=True)
class Made:
    """A clip, and whether it was there already."""
    clip: Clip
    reused: bool


def generate_clips(studio: Studio, request: Request, out: tp.Union[str, Path], name: str = 'clip', count: int = 1,
                   signing: tp.Optional[Signing] = None, progress: bool = True) -> tp.Iterator[Made]:
    """Generate `count` clips one after the other into `<out>/<name>[-i]/`, and yield each when it is finished.

    Clip i has seed `request.seed + i` and depends on no other, so that more of them can be asked for later. A clip that
    is there, whole and made by the same request, model and store, is kept; of a run that was stopped, the others are
    made by the same call.

    Raises:
        LuminaError: what `Studio.generate` raises, or for a certificate that cannot sign (told first).
    """
    if count < 1:
        raise LuminaError(f"{count} clips cannot be generated; ask for at least 1.")
    if request.kind not in audio.WRITTEN:
        raise LuminaError(f"Clips cannot be written as {request.kind}; choose one of {', '.join(audio.WRITTEN)}.")
    if signing is not None:
        if f'.{request.kind}' not in MIMES:
            raise LuminaError(f"{request.kind} cannot hold a C2PA manifest; choose one of "
                              f"{', '.join(kind.removeprefix('.') for kind in MIMES)}, or leave the certificate out.")
        signing.check()
    for index in range(count):
        one = dataclasses.replace(request, seed=request.seed + index)
        called = name if count == 1 else f'{name}-{index + 1}'
        folder = Path(out) / called
        wanted = _record(studio, one, signing)
        kept = _kept(folder, wanted)
        if kept is not None:
            yield Made(kept, True)
            continue
        keys = {key: getattr(one, key) for key in (field.name for field in dataclasses.fields(one))}
        (clip,) = studio.generate(out, called, signing=signing, progress=progress, **keys)
        write_json(folder / REQUEST, wanted)  # last: where it is, the clip is whole
        yield Made(clip, False)


def _record(studio: Studio, request: Request, signing: tp.Optional[Signing]) -> tp.Dict[str, tp.Any]:
    """All that a clip depends on, as JSON; recordings and certificate by their hashes."""
    keys = {key: value for key, value in dataclasses.asdict(request).items() if key not in ('prompt', 'melody')}
    prompt = request.prompt
    return {**keys,
            'prompt': None if prompt is None else {'sha256': audio.file_sha256(prompt.path), 'song_id': prompt.song_id,
                                                   'seconds': prompt.seconds, 'offset': prompt.offset},
            'melody': None if request.melody is None else audio.file_sha256(request.melody),
            'signed_by': None if signing is None else audio.file_sha256(signing.certificate),
            'model': studio.attributor.live.model_hash, 'store': studio.store.hash,
            'recipe': studio.attributor.recipe.hash}


def _kept(folder: Path, wanted: tp.Dict[str, tp.Any]) -> tp.Optional[Clip]:
    """The clip in a folder, if it was made by that request and is whole."""
    try:
        if json.loads((folder / REQUEST).read_text(encoding='utf-8')) != wanted:
            return None
        found = read_back(folder)
    except (OSError, ValueError, LuminaError):
        return None
    if found.audio is None or found.report is None or not found.fits:
        return None
    return Clip(folder, AttributionReport.load(folder / JSON_NAME), found.audio)


def prompt_of(store: FingerprintStore, named: str, seconds: float = 3., offset: float = 0.) -> Prompt:
    """The recording to continue, named by its path, or by the id of a song of the store.

    Raises:
        LuminaError: for a name that is neither, or a song whose recording is not here any more.
    """
    path = Path(named)
    if path.is_file():
        digest = audio.file_sha256(path)
        song = next((track.id for track in store.tracks if track.sha256 == digest), None)
        return Prompt(path, seconds, song, offset)
    slot = store.slot_if_any(named)
    if slot is None and (path.exists() or path.suffix.lower() in EXTENSIONS or '/' in named):
        audio.expect_file(path)
    if slot is None:
        close = [song for song, _ in nearest(named, {track.id: track.title or track.id for track in store.tracks})]
        hint = f"; did you mean {' or '.join(close)}?" if close else '.'
        raise LuminaError(f"'{named}' is neither a recording nor a song of the store {store.path.name}{hint}")
    track = store.slots[slot]
    if track.path is None or not Path(track.path).is_file():
        raise LuminaError(f"The recording of song {named} is not at {track.path} any more; name the file instead.")
    return Prompt(Path(track.path), seconds, named, offset)
