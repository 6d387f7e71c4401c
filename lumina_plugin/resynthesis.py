"""A recording played anew: its loudest pitches by random voices, its onsets by random percussion.

Crude on purpose. What is kept is what a lead sheet keeps, pitches and when they sound; everything else is drawn anew.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

Wave = npt.NDArray[np.float64]

LOWEST, HIGHEST = 31, 100  # MIDI pitches that are looked for
VOICES = 6  # at once
_OVERTONES = ((0, 1.), (12, .8), (19, .6), (24, .5), (28, .4), (31, .3))  # semitones above, and what they count
_TABLE = 2048


def resynthesise(wave: Wave, rate: int, rng: np.random.Generator) -> Wave:
    """Play a recording anew with another sound.

    Args:
        wave (array): Samples `[T]`. rate (int): Samples per second. rng: Draws the sound.
    Returns:
        array: `[T]`; the level is arbitrary.
    """
    size = 1 << max(6, round(np.log2(.128 * rate)))
    hop = size // 8
    if len(wave) < size:
        return wave
    spectrum = np.abs(signal.stft(wave, rate, nperseg=size, noverlap=size - hop)[2])  # [F, frames]
    sound = _tones(_pitches(spectrum, rate / size), rate, hop, len(wave), rng)
    onsets = _onsets(spectrum, rate / size)
    if rng.random() < .6 and onsets.any():
        hits = _hits(onsets, rate, hop, len(wave), rng)
        sound = sound / max(1e-9, float(sound.std())) + rng.uniform(.2, .9) * hits / max(1e-9, float(hits.std()))
    return sound


def _pitches(spectrum: Wave, width: float) -> Wave:
    """How loudly each pitch sounds in each frame, `[pitches, frames]`: the loudest, one after the other, each taken
    out with its overtones before the next is looked for."""
    top = HIGHEST + _OVERTONES[-1][0] + 1
    edges = 440 * 2 ** ((np.arange(LOWEST, top + 1) - .5 - 69) / 12) / width  # in bins
    bands = np.stack([spectrum[min(int(low), len(spectrum) - 1):max(int(low) + 1, int(np.ceil(high)))].max(0)
                      if low < len(spectrum) else np.zeros(spectrum.shape[1])
                      for low, high in zip(edges[:-1], edges[1:], strict=True)])  # [semitones, frames]
    count = HIGHEST - LOWEST
    frames = np.arange(bands.shape[1])
    found, left = np.zeros((count, bands.shape[1])), bands.copy()
    floor = .03 * bands.max()
    for _ in range(VOICES):
        salience = sum(weight * left[above:above + count] for above, weight in _OVERTONES)
        best = np.asarray(salience).argmax(0)
        loud = left[best, frames] > floor
        found[best[loud], frames[loud]] = bands[best[loud], frames[loud]]
        for above, _ in _OVERTONES:
            left[best + above, frames] *= .15
    return ndimage.median_filter(found, size=(1, 5))


def _tones(pitches: Wave, rate: int, hop: int, length: int, rng: np.random.Generator) -> Wave:
    """Each pitch by a voice with a random spectrum, attack, release, octave, vibrato and touch."""
    slope, odd = rng.uniform(.4, 2.4), rng.random() < .3
    attack, release = np.exp(rng.uniform(np.log(.004), np.log(.08))), np.exp(rng.uniform(np.log(.03), np.log(.5)))
    octave = float(rng.choice([.5, 1., 1., 1., 2.]))
    struck, decay = rng.random() < .5, np.exp(rng.uniform(np.log(.15), np.log(1.)))
    time = np.arange(length) / rate
    wobble = time + rng.choice([0., .0004]) * np.sin(2 * np.pi * 5.2 * time) / (2 * np.pi)
    weights = np.arange(1, 17) ** -slope * np.exp(.5 * rng.standard_normal(16))
    weights[1::2] *= .08 if odd else 1.
    out = np.zeros(length)
    for index in np.flatnonzero(pitches.any(1)):
        frequency = octave * 440 * 2 ** ((LOWEST + index - 69) / 12)
        heard = weights * (np.arange(1, 17) * frequency < .47 * rate)
        table = np.fft.irfft(np.concatenate([[0], heard * -1j, np.zeros(_TABLE // 2 - 16)]), _TABLE)
        envelope = _struck(pitches[index], hop / rate, decay) if struck else pitches[index]
        loudness = np.interp(np.arange(length) / hop, np.arange(len(envelope)), _eased(envelope, hop / rate, attack,
                                                                                         release))
        out += loudness * table[(wobble * frequency % 1 * _TABLE).astype(np.int64) % _TABLE]
    return out


def _struck(envelope: Wave, step: float, decay: float) -> Wave:
    """An envelope that rings down from wherever it rises."""
    out, level, before = np.zeros_like(envelope), 0., 0.
    fall = np.exp(-step / decay)
    for frame, value in enumerate(envelope):
        level = value if value > 1.3 * before and value > level else level * fall
        out[frame], before = level * (value > 0), value
    return out


def _eased(envelope: Wave, step: float, attack: float, release: float) -> Wave:
    """Rises within `attack` seconds and falls within `release`."""
    out, level = np.empty_like(envelope), 0.
    rise, fall = 1 - np.exp(-step / attack), 1 - np.exp(-step / release)
    for frame, value in enumerate(envelope):
        level += (value - level) * (rise if value > level else fall)
        out[frame] = level
    return out


def _onsets(spectrum: Wave, width: float) -> Wave:
    """How suddenly the low, middle and high band rise in each frame, `[3, frames]`; 0 where they do not stand out."""
    edges = [0, int(200 / width) + 1, int(2000 / width) + 1, len(spectrum)]
    rising = np.maximum(np.diff(np.log1p(100 * spectrum / max(1e-9, float(spectrum.max()))), axis=1, prepend=0), 0)
    flux = np.stack([rising[low:high].mean(0) if high > low else np.zeros(spectrum.shape[1])
                     for low, high in zip(edges[:-1], edges[1:], strict=True)])
    peaks = (flux == ndimage.maximum_filter(flux, size=(1, 7))) & (flux > 1.5 * flux.mean(1, keepdims=True))
    return np.where(peaks, flux / np.maximum(flux.max(1, keepdims=True), 1e-9), 0.)


def _hits(onsets: Wave, rate: int, hop: int, length: int, rng: np.random.Generator) -> Wave:
    """Onsets of the three bands by three bursts of coloured noise, the lowest with a falling tone."""
    out = np.zeros(length)
    for band, strengths in enumerate(onsets):
        size = int(np.exp(rng.uniform(np.log(.03), np.log(.2))) * rate)
        time = np.arange(size) / rate
        burst = rng.standard_normal(size)
        centre = float(np.exp(rng.uniform(*np.log([(60, 200), (400, 2500), (3000, 7000)][band]))))
        sos = signal.butter(1, [min(.8, centre / rate), min(.95, 3.5 * centre / rate)], 'band', output='sos')
        burst = signal.sosfilt(sos, burst)
        burst /= max(1e-9, float(np.abs(burst).max()))
        if band == 0:
            burst = .3 * burst + np.sin(2 * np.pi * (centre * time + 1.5 * (1 - np.exp(-time / .02))))
        burst *= np.exp(-5 * np.arange(size) / size)
        for frame in np.flatnonzero(strengths):
            start = min(int(frame) * hop, length)
            end = min(length, start + size)
            out[start:end] += strengths[frame] * burst[:end - start]
    return out
