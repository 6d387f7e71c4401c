"""A composition played in a production: notes in, samples out."""
import typing as tp

import numpy as np

from . import drums, effects, voices
from .composition import Composition, Note
from .production import Production
from .voices import SAMPLE_RATE

_LEVELS = {'melody': .85, 'chords': .5, 'bass': .8, 'drums': .85}
_FADE = .35  # seconds in which the last sounds die away


def render(composition: Composition, production: Production, duration: float, seed: int) -> np.ndarray:
    """Play a song.

    Args:
        composition (Composition): The notes.
        production (Production): The sound.
        duration (float): Seconds; the piece repeats its form until then and fades in the last third of a second.
        seed (int): Small human unevenness of timing and touch, and the noise floor: what differs between two takes.
    Returns:
        np.ndarray: `[duration * 16000]` float32 in [-1, 1], at -17 LUFS. The same for the same arguments.
    """
    size = int(round(duration * SAMPLE_RATE))
    rng = np.random.default_rng(np.random.SeedSequence([0x5E, seed]))
    events = composition.events(duration)
    mix = np.zeros(size)
    for part in ('melody', 'chords', 'bass'):
        notes = [n for n in events if n.part == part]
        track = _pitched(notes, composition.step_seconds, production, part, size, rng)
        mix += _LEVELS[part] * track
    if production.kit is not None:
        mix += _LEVELS['drums'] * _drums([n for n in events if n.part == 'drums'], composition.step_seconds,
                                         production, size, rng)
    mix = effects.chorus(mix, production.master.chorus)
    mix = effects.reverberate(mix, production.room, production.seed)
    mix = effects.colour(mix, production.master, seed)
    fade = min(size, int(_FADE * SAMPLE_RATE))
    mix[size - fade:] *= .5 + .5 * np.cos(np.pi * np.arange(fade) / fade)
    return effects.normalise(mix).astype(np.float32)


def _place(track: np.ndarray, sound: np.ndarray, start: int, gain: float) -> None:
    """Add `sound` into `track` from sample `start` on, cutting what hangs over the end."""
    end = min(len(track), start + len(sound))
    if end > start:
        track[start:end] += gain * sound[:end - start]


def _onset(note: Note, step_seconds: float, rng: np.random.Generator) -> int:
    late = abs(rng.normal(0., .0025))
    return int((note.start * step_seconds + late) * SAMPLE_RATE)


def _pitched(notes: tp.Sequence[Note], step_seconds: float, production: Production, part: str, size: int,
             rng: np.random.Generator) -> np.ndarray:
    """One part as a track at unit rms; equal notes are computed once: `[size]`."""
    voice = production.voice(part)
    track = np.zeros(size)
    made: tp.Dict[tp.Tuple[int, int], np.ndarray] = {}
    for event in notes:
        length = max(400, int(event.length * step_seconds * SAMPLE_RATE))
        key = (event.pitch, length)
        if key not in made:
            made[key] = voices.note(voice, event.pitch, length, production.seed)
        gain = event.velocity * (1 + .05 * rng.standard_normal())
        _place(track, made[key], _onset(event, step_seconds, rng), gain)
    track = effects.saturate(track, voice.drive)
    # A part's loudness should not depend on how many of its voices overlap: bring its sounding passages to one level.
    power = (track[:size - size % 800] ** 2).reshape(-1, 800).mean(axis=1) if size >= 800 else track ** 2
    sounding = power[power > 1e-3 * (power.max() + 1e-12)]
    level = np.sqrt(sounding.mean()) if len(sounding) else 1.
    return track * (.2 * voice.gain ** .5 / max(level, 1e-9))


def _drums(notes: tp.Sequence[Note], step_seconds: float, production: Production, size: int,
           rng: np.random.Generator) -> np.ndarray:
    """The drum track: `[size]`."""
    assert production.kit is not None
    sounds = drums.hits(production.kit, production.seed)
    track = np.zeros(size)
    for event in notes:
        gain = event.velocity * (1 + .06 * rng.standard_normal())
        _place(track, sounds[event.hit], _onset(event, step_seconds, rng), .55 * gain)
    return track
