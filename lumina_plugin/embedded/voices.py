"""Pitched notes: one function per family, each turning (voice, frequency, length) into samples.

Notes are computed whole with numpy; nothing here knows of songs. Everything is float64 so that the 16 bits which are
written in the end do not depend on how a processor rounds.
"""
import typing as tp
from functools import lru_cache

import numpy as np

from .production import Voice

SAMPLE_RATE = 16_000
_TABLE = 2048
_TABLES = 8
_MODES: tp.Dict[str, tp.Tuple[tp.Tuple[float, float, float], ...]] = {  # ratio, level, decay relative to the voice's
    'wood': ((1., 1., 1.), (3.93, .35, .35), (9.4, .12, .15)),
    'metal': ((1., 1., 1.), (3.99, .3, .5), (10.6, .1, .2)),
    'box': ((1., 1., 1.), (2.01, .25, .7), (5.42, .35, .4), (8.9, .12, .2)),
    'piano': tuple((h * (1 + .0004 * h * h) ** .5, h ** -1.15 * (.25 if h == 7 else 1.), 1 / (1 + .22 * h))
                   for h in range(1, 15)),
}


def harmonics(voice: Voice, count: int, frequency: float) -> np.ndarray:
    """Amplitudes of harmonics 1 to `count` before the filter: `[count]`."""
    h = np.arange(1, count + 1, dtype=np.float64)
    if voice.spectrum == 'saw':
        return 1 / h
    if voice.spectrum == 'square':
        return (h % 2) / h
    if voice.spectrum == 'pulse':
        return np.sin(np.pi * h * min(.48, voice.width)) / h * 1.4
    if voice.spectrum == 'triangle':
        return (h % 2) / h ** 2 * np.where(h % 4 == 1, 1., -1.)
    if voice.spectrum == 'organ':
        bars = {1: 1., 2: .8, 3: .55 * voice.width, 4: .5, 6: .3 * voice.width, 8: .35 * voice.width, 12: .1, 16: .08}
        return np.array([bars.get(int(k), 0.) for k in h])
    if voice.spectrum == 'reed':
        return np.where(h % 2 == 1, 1., .35) / h ** .9 * (1 + 1.6 * np.exp(-((h * frequency - 1400) / 500) ** 2))
    formants = ((600., 130., 1.), (1050., 180., .7), (2600., 300., .25))  # choir
    shape = sum(level * np.exp(-((h * frequency - at) / wide) ** 2) for at, wide, level in formants)
    return (shape + .12) / h ** .6


@lru_cache(maxsize=4096)
def tables(voice: Voice, frequency: float) -> np.ndarray:
    """One period for each of several cutoffs, from dark to bright: `[_TABLES, _TABLE + 1]`, band limited."""
    count = int(min(120, max(1, .46 * SAMPLE_RATE // frequency)))
    h = np.arange(1, count + 1, dtype=np.float64)
    cutoffs = np.geomspace(max(1.2, min(voice.dark, voice.bright)), max(1.3, voice.bright, voice.dark), _TABLES)
    x2 = (h[None] / cutoffs[:, None]) ** 2
    low_pass = 1 / np.sqrt((1 - x2) ** 2 + x2 / voice.resonance ** 2)
    spectrum = np.zeros((_TABLES, _TABLE // 2 + 1), dtype=np.complex128)
    spectrum[:, 1:count + 1] = -.5j * _TABLE * harmonics(voice, count, frequency) * low_pass
    period = np.fft.irfft(spectrum, axis=1)
    period /= np.sqrt((period ** 2).mean(axis=1).max()) * 2.
    return np.concatenate([period, period[:, :1]], axis=1)


def envelope(voice: Voice, length: int) -> np.ndarray:
    """Attack, exponential decay to the sustain level, release after `length` samples: `[length + release]`."""
    release = max(64, int(voice.release * SAMPLE_RATE))
    t = np.arange(length + release) / SAMPLE_RATE
    env = voice.sustain + (1 - voice.sustain) * np.exp(-np.maximum(0, t - voice.attack) / max(1e-3, voice.decay / 2.5))
    attack = max(16, int(voice.attack * SAMPLE_RATE))
    ramp = np.arange(min(attack, len(t))) / attack
    env[:len(ramp)] *= .5 - .5 * np.cos(np.pi * ramp)
    env[length:] *= np.exp(-4. * np.arange(release) / release) * np.linspace(1, 0, release)
    return env


def _phase(voice: Voice, frequency: float, size: int, cents: float = 0.) -> np.ndarray:
    """Phase in periods, with vibrato that sets in after the attack: `[size]`."""
    t = np.arange(size) / SAMPLE_RATE
    phase = frequency * 2 ** (cents / 1200) * t
    if voice.vibrato:
        depth = frequency * np.log(2) / 1200 * voice.vibrato
        onset = np.clip((t - .12) / .2, 0, 1)
        turn = 2 * np.pi * voice.vibrato_rate
        phase = phase + onset * depth / turn * (1 - np.cos(turn * t))
    return phase


def _wave(voice: Voice, frequency: float, size: int, rng: np.random.Generator) -> np.ndarray:
    table = tables(voice, frequency)
    flat = table.ravel()
    t = np.arange(size) / SAMPLE_RATE
    openness = np.exp(-t / max(.02, abs(voice.sweep)))
    row = (openness if voice.sweep > 0 else 1 - openness) * (_TABLES - 1.001)
    row_index = row.astype(np.int64)
    blend = row - row_index
    out = np.zeros(size)
    for copy in range(voice.unison):
        cents = voice.detune * (copy - (voice.unison - 1) / 2)
        phase = _phase(voice, frequency, size, cents) + (rng.random() if voice.unison > 1 else 0.)
        at = (phase - np.floor(phase)) * _TABLE
        index = np.minimum(at.astype(np.int64), _TABLE - 1)
        inside = at - index
        base = row_index * (_TABLE + 1) + index
        lower = flat[base] * (1 - inside) + flat[base + 1] * inside
        base += _TABLE + 1
        upper = flat[base] * (1 - inside) + flat[base + 1] * inside
        out += lower * (1 - blend) + upper * blend
    return out / np.sqrt(voice.unison)


def _fm(voice: Voice, frequency: float, size: int, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(size) / SAMPLE_RATE
    phase = 2 * np.pi * _phase(voice, frequency, size)
    room = max(0., .44 * SAMPLE_RATE / frequency - 1) / voice.ratio - 1  # keeps the sidebands below Nyquist
    index = min(voice.index, max(0., room)) * (.25 + .75 * np.exp(-t / max(.05, .35 * voice.decay)))
    return .7 * np.sin(phase + index * np.sin(voice.ratio * phase))


def _pluck(voice: Voice, frequency: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Karplus-Strong, one period at a time; the integer period is tuned by reading it out at another rate."""
    period = max(8, int(round(SAMPLE_RATE / frequency)))
    speed = frequency * (period + .5) / SAMPLE_RATE
    rounds = int(size * speed) // period + 3
    burst = rng.standard_normal(period)
    spectrum = np.fft.rfft(burst)
    h = np.arange(len(spectrum))
    spectrum *= np.exp(-h * frequency / (9000. * voice.bright)) * np.abs(np.sin(np.pi * h * voice.width) + .05)
    spectrum[0] = 0
    burst = np.fft.irfft(spectrum, period)
    out = np.empty((rounds, period))
    out[0] = burst / (np.abs(burst).max() + 1e-9)
    loss = 10 ** (-3 * (period / SAMPLE_RATE) / max(.2, voice.decay))
    last = 0.
    for i in range(1, rounds):  # y[n] = loss / 2 (y[n - period] + y[n - period - 1])
        previous = out[i - 1]
        out[i, 1:] = previous[1:] + previous[:-1]
        out[i, 0] = previous[0] + last
        out[i] *= loss / 2
        last = previous[-1]
    return np.interp(np.arange(size) * speed, np.arange(rounds * period), out.ravel())


def _modal(voice: Voice, frequency: float, size: int, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(size) / SAMPLE_RATE
    out, total = np.zeros(size), 0.
    for ratio, level, decay in _MODES[voice.spectrum]:
        if ratio * frequency < .46 * SAMPLE_RATE:
            seconds = voice.decay * decay * (440. / frequency) ** .3
            out += level * np.exp(-t * 3. / seconds) * np.sin(2 * np.pi * ratio * frequency * t)
            total += level
    return out / max(1., total ** .7)


_FAMILIES: tp.Dict[str, tp.Callable[[Voice, float, int, np.random.Generator], np.ndarray]] = {
    'wave': _wave, 'fm': _fm, 'pluck': _pluck, 'modal': _modal}


def note(voice: Voice, pitch: int, length: int, seed: int) -> np.ndarray:
    """One note.

    Args:
        voice (Voice): The instrument.
        pitch (int): MIDI pitch as written.
        length (int): Samples until it is let go; the release follows.
        seed (int): For the parts of a note that are noise.
    Returns:
        np.ndarray: `[length + release]`, float64, peak around one half to one.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, pitch]))
    frequency = 440. * 2 ** ((pitch - 69) / 12 + voice.octave)
    while frequency > 2600.:
        frequency /= 2.
    if voice.family in ('pluck', 'modal') and voice.sustain < .05:  # let ring, as struck things do
        length = max(length, int(.6 * voice.decay * SAMPLE_RATE))
    env = envelope(voice, length)
    out = _FAMILIES[voice.family](voice, frequency, len(env), rng) * env
    if voice.breath:
        noise = rng.standard_normal(len(env))
        noise[1:] -= .6 * noise[:-1]
        out += voice.breath * .12 * noise * env
    if voice.tremolo:
        turn = 2 * np.pi * voice.vibrato_rate * np.arange(len(env)) / SAMPLE_RATE
        out *= 1 - voice.tremolo * (.5 - .5 * np.cos(turn))
    return out
