"""What happens to a mix, from chorus and reverb to saturation, noise floor and loudness; all on `[T]` float64."""
import typing as tp

import numpy as np
from scipy import signal

from .production import Master, Room
from .voices import SAMPLE_RATE


def saturate(x: np.ndarray, drive: float) -> np.ndarray:
    """Soft clipping; `drive` 0 leaves the signal as it is. The level of its rms is kept."""
    if drive <= 0:
        return x
    rms = np.sqrt((x ** 2).mean()) + 1e-9
    y = np.tanh(x * (drive / (3. * rms)))
    return y * (rms / (np.sqrt((y ** 2).mean()) + 1e-9))


def chorus(x: np.ndarray, depth: float) -> np.ndarray:
    """Adds a copy whose delay wanders by a few milliseconds."""
    if depth <= 0:
        return x
    n = np.arange(len(x), dtype=np.float64)
    delay = SAMPLE_RATE * (.012 + .0035 * np.sin(2 * np.pi * .7 * n / SAMPLE_RATE))
    return x + depth * np.interp(n - delay, n, x, left=0.)


def wow(x: np.ndarray, cents: float) -> np.ndarray:
    """Slow wandering of the pitch by at most `cents`, as of a tape machine."""
    if cents <= 0:
        return x
    n = np.arange(len(x), dtype=np.float64)
    rate = 2 * np.pi * .55 / SAMPLE_RATE
    return np.interp(n + cents * np.log(2) / 1200 / rate * np.sin(rate * n), n, x)


def impulse(room: Room, seed: int) -> np.ndarray:
    """Impulse response of a room: noise that decays by 60 dB in `room.decay` seconds and darkens on the way."""
    rng = np.random.default_rng(np.random.SeedSequence([0x2E, seed]))
    size = int(room.decay * SAMPLE_RATE) + 256
    t = np.arange(size) / SAMPLE_RATE
    noise = rng.standard_normal(size)
    b, a = signal.butter(1, min(7500., room.tone), fs=SAMPLE_RATE)
    dark = signal.lfilter(b, a, noise)
    b, a = signal.butter(1, min(7500., .4 * room.tone), fs=SAMPLE_RATE)
    darker = signal.lfilter(b, a, noise)
    blend = np.minimum(1., t / room.decay * 2)
    out = (dark * (1 - blend) + darker * blend) * 10 ** (-3 * t / room.decay)
    out[:int(.006 * SAMPLE_RATE)] *= .2
    b, a = signal.butter(1, 180., 'high', fs=SAMPLE_RATE)
    out = signal.lfilter(b, a, out)
    return out / np.sqrt((out ** 2).sum())


def reverberate(x: np.ndarray, room: Room, seed: int) -> np.ndarray:
    """Echo, then reverb, mixed in by `room.wet`; same length as `x`."""
    if room.echo > 0:
        step = int(room.echo_time * SAMPLE_RATE)
        for k in range(1, 4):
            x = x + np.concatenate([np.zeros(k * step), x[:-k * step]])[:len(x)] * room.echo ** (k + 1) \
                if len(x) > k * step else x
    wet = signal.fftconvolve(x, impulse(room, seed))[:len(x)]
    return (1 - room.wet) * x + 1.2 * room.wet * wet


def colour(x: np.ndarray, master: Master, seed: int) -> np.ndarray:
    """Band limits, tilt, saturation, wow, bit depth and noise floor of the finished mix."""
    sos = signal.butter(2, [master.low, min(7800., master.high)], 'band', fs=SAMPLE_RATE, output='sos')
    x = signal.sosfilt(sos, x)
    if master.tilt:
        b, a = signal.butter(1, 900., 'high', fs=SAMPLE_RATE)
        x = x + (10 ** (master.tilt / 20) - 1) * signal.lfilter(b, a, x)
    x = wow(saturate(x, master.drive), master.wow)
    x = x / (np.abs(x).max() + 1e-9)
    if master.bits < 16:
        x = np.round(x * 2 ** (master.bits - 1)) / 2 ** (master.bits - 1)
    rng = np.random.default_rng(np.random.SeedSequence([0x4A, seed]))
    if master.noise > -80:
        b, a = signal.butter(1, [200., 5000.], 'band', fs=SAMPLE_RATE)
        x = x + 10 ** (master.noise / 20) * signal.lfilter(b, a, rng.standard_normal(len(x)))
    return x


def _k_weighting() -> tp.Tuple[np.ndarray, np.ndarray]:
    """High shelf of +4 dB above 1.7 kHz and a 38 Hz high pass, as ITU-R BS.1770 describes them, for our rate."""
    amplitude, w = 10 ** (4. / 40), 2 * np.pi * 1681. / SAMPLE_RATE
    alpha, c, root = np.sin(w) / 2 / .7071, np.cos(w), 2 * np.sqrt(amplitude)
    b = amplitude * np.array([amplitude + 1 + (amplitude - 1) * c + root * alpha,
                              -2 * (amplitude - 1 + (amplitude + 1) * c),
                              amplitude + 1 + (amplitude - 1) * c - root * alpha])
    a = np.array([amplitude + 1 - (amplitude - 1) * c + root * alpha, 2 * (amplitude - 1 - (amplitude + 1) * c),
                  amplitude + 1 - (amplitude - 1) * c - root * alpha])
    shelf = np.concatenate([b, a]) / a[0]
    b2, a2 = signal.butter(2, 38., 'high', fs=SAMPLE_RATE)
    return np.stack([shelf, np.concatenate([b2, a2])]), shelf


def loudness(x: np.ndarray) -> float:
    """Loudness in LUFS after ITU-R BS.1770 (K weighting, 400 ms blocks, gates at -70 and -10 LU relative)."""
    weighted = signal.sosfilt(_k_weighting()[0], x)
    block, hop = int(.4 * SAMPLE_RATE), int(.1 * SAMPLE_RATE)
    if len(weighted) < block:
        weighted = np.pad(weighted, (0, block - len(weighted)))
    power = np.concatenate([[0.], np.cumsum(weighted ** 2)])
    starts = np.arange(0, len(weighted) - block + 1, hop)
    blocks = (power[starts + block] - power[starts]) / block
    loud = blocks[blocks > 10 ** ((-70 + .691) / 10)]
    if not len(loud):
        return -np.inf
    loud = loud[loud > .1 * loud.mean()]
    return float(-.691 + 10 * np.log10(loud.mean()))


def normalise(x: np.ndarray, target: float = -17., ceiling: float = .92) -> np.ndarray:
    """Gain to `target` LUFS, then a soft knee so that no sample exceeds `ceiling`."""
    level = loudness(x)
    if np.isfinite(level):
        x = x * 10 ** ((target - level) / 20)
    knee = .7 * ceiling
    over = np.abs(x) > knee
    squashed = np.sign(x) * (knee + (ceiling - knee) * np.tanh((np.abs(x) - knee) / (ceiling - knee)))
    return np.where(over, squashed, x)
