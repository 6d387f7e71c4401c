"""A recording with another production, or another composition: pairs that a separation of channels is fitted on.

Nobody's catalogue holds the same piece in a dozen productions. What it holds can be changed: `change_production` keeps
pitches and onsets and changes the sound, `change_composition` keeps the sound and changes pitches, tempo and order.
Both work on `[T]` float arrays of any rate, keep the length and the level, and give the same for the same seed.
"""

import typing as tp

import numpy as np
import numpy.typing as npt
from scipy import signal

from .resynthesis import resynthesise

Wave = npt.NDArray[np.float64]

ANEW = 0.5  # of the productions that are changed, so many are played anew rather than only coloured


def change_production(wave: npt.ArrayLike, rate: int, seed: int) -> Wave:
    """The same notes with another sound: played anew by other voices, or as they are, then coloured.

    Args:
        wave (array): Samples `[T]`, mono. rate (int): Samples per second. seed (int): Chooses what is done.
    Returns:
        array: `[T]`, at the level of `wave`; silence stays silence.
    """
    rng = _generator(0xA1, seed)
    given = np.asarray(wave, dtype=np.float64)
    if not given.any():
        return given.copy()
    changed = resynthesise(given, rate, rng) if rng.random() < ANEW else given
    return like(colour(changed, rate, rng), given)


def change_composition(wave: npt.ArrayLike, rate: int, seed: int) -> Wave:
    """The same sound with other notes: moved in pitch, in tempo, or cut into pieces of about a beat that are put in
    another order; one of these, or all.

    Args and returns: as `change_production`.
    """
    rng = _generator(0xA2, seed)
    changed = given = np.asarray(wave, dtype=np.float64)
    if not given.any():
        return given.copy()
    which = int(rng.integers(6))  # the first three alone, otherwise all
    if which not in (1, 2):
        changed = transpose(changed, rate, float(rng.choice([-5, -4, -3, -2, -1, 1, 2, 3, 4, 5])))
    if which not in (0, 2):
        changed = stretch(changed, rate, float(np.exp(rng.uniform(-.3, .3))))
    if which not in (0, 1):
        changed = rearrange(changed, rate, float(rng.uniform(.25, .8)), rng)
    return like(changed, given)


def colour(wave: Wave, rate: int, rng: np.random.Generator) -> Wave:
    """Equaliser, band limits, room, saturation, bit depth and noise floor, each drawn anew."""
    wave = equalise(wave, rate, rng)
    wave = band_limit(wave, rate, float(np.exp(rng.uniform(np.log(30), np.log(200)))),
                      float(np.exp(rng.uniform(np.log(.4), np.log(.98)))))
    if rng.random() < .7:
        wave = reverberate(wave, rate, float(np.exp(rng.uniform(np.log(.15), np.log(2.)))), rng.uniform(.1, .4), rng)
    wave = saturate(wave, float(rng.choice([0., 0., .3, .6, 1.])))
    if rng.random() < .3:
        wave = quantise(wave, int(rng.integers(6, 11)))
    return add_noise(wave, float(rng.uniform(-70, -38)), rng) if rng.random() < .5 else wave


def equalise(wave: Wave, rate: int, rng: np.random.Generator, decibels: float = 9.) -> Wave:
    """A smooth random gain over frequency with a spread of so many decibels per octave or so."""
    frequencies = np.fft.rfftfreq(len(wave), 1 / rate)
    places = np.log2(np.clip(frequencies, 40, None))
    knots = np.arange(np.log2(40), np.log2(rate / 2) + 1, 1.2)
    gain = np.interp(places, knots, decibels * rng.standard_normal(len(knots)).clip(-2, 2))
    return np.fft.irfft(np.fft.rfft(wave) * 10 ** (gain / 20), len(wave))


def band_limit(wave: Wave, rate: int, low: float, high: float) -> Wave:
    """What lies between `low` (Hz) and `high` (a fraction of the highest frequency there is)."""
    sos = signal.butter(2, [low, min(.99, max(high, 3 * low / rate)) * rate / 2], 'band', fs=rate, output='sos')
    return np.asarray(signal.sosfilt(sos, wave))


def reverberate(wave: Wave, rate: int, decay: float, wet: float, rng: np.random.Generator) -> Wave:
    """A room of noise that falls by 60 dB within `decay` seconds, mixed in by `wet` at the level of the dry signal."""
    size = int(decay * rate) + 64
    tail = rng.standard_normal(size) * 10 ** (-3 * np.arange(size) / rate / decay)
    tail = signal.lfilter(*signal.butter(1, min(.9, 2 * np.exp(rng.uniform(np.log(1000), np.log(6000))) / rate)), tail)
    return (1 - wet) * wave + wet * like(signal.fftconvolve(wave, tail)[:len(wave)], wave)


def saturate(wave: Wave, drive: float) -> Wave:
    """Soft clipping; 0 leaves the signal as it is."""
    level = _rms(wave)
    return wave if drive <= 0 or level == 0 else np.tanh(wave * drive / level) * level / drive


def quantise(wave: Wave, bits: int) -> Wave:
    """As many steps as a converter of so many bits has."""
    steps = 2 ** (bits - 1) / max(float(np.abs(wave).max(initial=0.)), 1e-9)
    return np.round(wave * steps) / steps


def add_noise(wave: Wave, decibels: float, rng: np.random.Generator) -> Wave:
    """White noise at so many decibels relative to the signal's level."""
    return wave + 10 ** (decibels / 20) * _rms(wave) * rng.standard_normal(len(wave))


def transpose(wave: Wave, rate: int, semitones: float) -> Wave:
    """Another pitch at the same tempo (phase vocoder, then resampling)."""
    factor = 2 ** (semitones / 12)
    longer = _vocoded(wave, rate, 1 / factor)
    places = np.arange(len(wave)) * factor
    return np.interp(places, np.arange(len(longer)), longer, right=0.)


def stretch(wave: Wave, rate: int, speed: float) -> Wave:
    """Another tempo at the same pitch; what is missing at the end is taken from the beginning."""
    return np.resize(_vocoded(wave, rate, speed), len(wave)) if len(wave) else wave


def rearrange(wave: Wave, rate: int, seconds: float, rng: np.random.Generator) -> Wave:
    """Pieces of so many seconds in a random order, joined by fades of 10 ms."""
    size, fade = max(2, int(seconds * rate)), max(1, int(.01 * rate))
    count = len(wave) // size
    if count < 2 or size <= 2 * fade:
        return wave
    window = np.ones(size)
    window[:fade], window[-fade:] = np.linspace(0, 1, fade), np.linspace(1, 0, fade)
    pieces = wave[:count * size].reshape(count, size)[rng.permutation(count)] * window
    return np.concatenate([pieces.ravel(), wave[count * size:]])


def like(wave: Wave, given: Wave) -> Wave:
    """`wave` at the level of `given`, and no sample beyond 1 where none of the given ones is."""
    level = _rms(wave)
    scaled = wave * (_rms(given) / level) if level > 0 else np.zeros_like(given)
    ceiling = max(1., float(np.abs(given).max(initial=0.)))
    return np.clip(scaled, -ceiling, ceiling)


def _vocoded(wave: Wave, rate: int, speed: float) -> Wave:
    """Phase vocoder: played `speed` times as fast at the same pitch, `[T / speed]`."""
    import librosa
    size = 1 << max(5, round(np.log2(.064 * rate)))
    if len(wave) < size:
        return wave
    return np.asarray(librosa.effects.time_stretch(wave, rate=speed, n_fft=size), dtype=np.float64)


def _rms(wave: Wave) -> float:
    return float(np.sqrt(np.square(wave).mean())) if len(wave) else 0.


def _generator(kind: int, seed: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([kind, seed]))


CHANGES: tp.Dict[str, tp.Callable[[npt.ArrayLike, int, int], Wave]] = {
    'production': change_production, 'composition': change_composition}
