"""Drum hits made of swept sines and filtered noise."""
import typing as tp

import numpy as np
from scipy import signal

from .production import Kit
from .voices import SAMPLE_RATE

HITS = ('kick', 'snare', 'hat', 'open', 'perc')


def _time(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _noise(rng: np.random.Generator, size: int, low: float, high: tp.Optional[float] = None) -> np.ndarray:
    """White noise above `low` Hz, below `high` Hz if given, at unit level."""
    edges, kind = ([low, high], 'band') if high else (low, 'high')
    b, a = signal.butter(2, edges, kind, fs=SAMPLE_RATE)
    out = signal.lfilter(b, a, rng.standard_normal(size))
    return out / (out.std() + 1e-9)


def _tail(out: np.ndarray) -> np.ndarray:
    out[-64:] *= np.linspace(1, 0, 64)
    return out


def _kick(kit: Kit, rng: np.random.Generator) -> np.ndarray:
    t = _time(.05 + 3 * kit.kick_decay)
    phase = 2 * np.pi * (kit.kick_pitch * t + kit.kick_sweep * .022 * (1 - np.exp(-t / .022)))
    out = np.sin(phase) * np.exp(-t / kit.kick_decay)
    return out + kit.click * _noise(rng, len(t), 1200.) * np.exp(-t / .004) * .3


def _snare(kit: Kit, rng: np.random.Generator) -> np.ndarray:
    t = _time(.05 + 3 * kit.snare_decay)
    body = np.sin(2 * np.pi * kit.snare_pitch * t) * np.exp(-t / (.5 * kit.snare_decay))
    rattle = _noise(rng, len(t), .35 * kit.snare_tone, min(7500., 1.8 * kit.snare_tone))
    return .6 * (1.3 - kit.snare_noise) * body + .26 * kit.snare_noise * rattle * np.exp(-t / kit.snare_decay)


def _hat(kit: Kit, rng: np.random.Generator, longer: float) -> np.ndarray:
    t = _time(.02 + 4 * kit.hat_decay * longer)
    return .5 * kit.hats * _noise(rng, len(t), min(7000., kit.hat_tone)) * np.exp(-t / (kit.hat_decay * longer))


def _perc(kit: Kit, rng: np.random.Generator) -> np.ndarray:
    if kit.perc == 'clap':
        t = _time(.2)
        burst = sum(np.where(t >= d, np.exp(-np.maximum(0, t - d) / .012), 0.) for d in (0., .012, .024))
        return .22 * _noise(rng, len(t), 900., 3200.) * (burst + .5 * np.exp(-t / .05))
    pitch, decay = {'tom': (130., .14), 'rim': (820., .022), 'conga': (260., .09)}[kit.perc]
    t = _time(.04 + 4 * decay)
    return .55 * np.sin(2 * np.pi * (pitch * t + pitch * .01 * (1 - np.exp(-t / .02)))) * np.exp(-t / decay)


def hits(kit: Kit, seed: int) -> tp.Dict[str, np.ndarray]:
    """Every sound of a kit: `{hit: [samples]}`, float64, at full velocity."""
    rng = np.random.default_rng(np.random.SeedSequence([0xD1, seed]))
    out = {'kick': _kick(kit, rng), 'snare': _snare(kit, rng), 'hat': _hat(kit, rng, 1.),
           'open': _hat(kit, rng, 4.), 'perc': _perc(kit, rng)}
    return {name: _tail(sound * kit.gain) for name, sound in out.items()}
