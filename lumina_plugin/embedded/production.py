"""Productions: the sound of a recording, and nothing about its notes.

A production chooses a voice for each part, a drum kit, a room, and what is done to the mix. A named style fixes the
kind of each of them and the seed its details; without a style the seed chooses freely, which gives hybrids.
"""
import typing as tp
from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True)
class Voice:
    """A pitched instrument.

    Args:
        family (str): How it is synthesised: 'wave' (a spectrum through a moving low pass), 'fm', 'pluck'
            (Karplus-Strong string) or 'modal' (struck bar or bell).
        tag (str): The words that a description uses for it.
        spectrum (str): For 'wave', the source: saw, square, pulse, triangle, organ, choir, reed.
        attack, decay, sustain, release: Envelope: seconds, seconds, 0 to 1, seconds.
        dark, bright: Lowest and highest cutoff of the low pass, in harmonics of the note.
        sweep (float): Seconds in which the filter closes from bright to dark; negative: opens instead.
        resonance (float): Q of the low pass.
        unison (int), detune (float): Number of copies and their spread in cents.
        vibrato (float), vibrato_rate (float): Depth in cents, Hz.
        tremolo (float): Depth 0 to 1, at the vibrato's rate.
        breath (float): Level of noise that blows along.
        ratio, index: For 'fm', modulator's frequency ratio and modulation index.
        width (float): Pulse width, or the plucked position on a string, or the octave mix of an organ.
        drive (float): Saturation of the whole part, 0 is none.
        octave (int): Octaves by which it plays away from the written pitch.
        gain (float): Level in the mix.
    """
    family: str
    tag: str
    spectrum: str = 'saw'
    attack: float = .008
    decay: float = .3
    sustain: float = .6
    release: float = .12
    dark: float = 3.
    bright: float = 14.
    sweep: float = .3
    resonance: float = .8
    unison: int = 1
    detune: float = 0.
    vibrato: float = 0.
    vibrato_rate: float = 5.2
    tremolo: float = 0.
    breath: float = 0.
    ratio: float = 1.
    index: float = 2.
    width: float = .3
    drive: float = 0.
    octave: int = 0
    gain: float = 1.


@dataclass(frozen=True)
class Kit:
    """A drum kit: frequencies in Hz, decays in seconds, levels linear."""
    tag: str
    kick_pitch: float = 52.
    kick_sweep: float = 130.
    kick_decay: float = .16
    click: float = .2
    snare_pitch: float = 190.
    snare_decay: float = .11
    snare_noise: float = .8
    snare_tone: float = 2400.
    hat_tone: float = 5600.
    hat_decay: float = .03
    perc: str = 'clap'
    hats: float = .3
    gain: float = 1.


@dataclass(frozen=True)
class Room:
    """A synthetic reverb and echo: decay in seconds, wet 0 to 1, tone (Hz) where it turns dark."""
    tag: str
    decay: float = .4
    wet: float = .12
    tone: float = 4000.
    echo: float = 0.
    echo_time: float = .3


@dataclass(frozen=True)
class Master:
    """What is done to the mix: band limits in Hz, tilt of the treble in dB, drive, wow in cents, noise floor in dB."""
    tag: str = ''
    low: float = 35.
    high: float = 7600.
    tilt: float = 0.
    drive: float = .3
    wow: float = 0.
    noise: float = -90.
    bits: int = 16
    chorus: float = 0.


@dataclass(frozen=True)
class Production:
    """A record's sound. `kit` is None where there are no drums."""
    seed: int
    style: str
    melody: Voice
    chords: Voice
    bass: Voice
    kit: tp.Optional[Kit]
    room: Room
    master: Master

    def voice(self, part: str) -> Voice:
        return {'melody': self.melody, 'chords': self.chords, 'bass': self.bass}[part]


VOICES: tp.Dict[str, Voice] = {
    # leads
    'square_lead': Voice('wave', 'square lead', 'square', .004, .2, .6, .05, 8, 30, .2, vibrato=12, gain=.6),
    'pulse_lead': Voice('wave', 'pulse lead', 'pulse', .004, .15, .55, .05, 6, 30, .15, width=.2, gain=.6),
    'saw_lead': Voice('wave', 'saw lead', 'saw', .01, .3, .7, .15, 4, 18, .4, 1.5, 2, 14, 10, gain=.6),
    'flute': Voice('wave', 'flute', 'triangle', .06, .2, .85, .12, 3, 6, -.15, vibrato=22, breath=.16),
    'reed': Voice('wave', 'reed', 'reed', .035, .2, .85, .09, 6, 16, -.1, vibrato=14, vibrato_rate=4.6, gain=.75),
    'fiddle': Voice('wave', 'fiddle', 'saw', .08, .2, .85, .14, 5, 13, -.2, 1.2, 2, 7, 26, 5.6, breath=.05, gain=.65),
    'bells': Voice('fm', 'bells', attack=.002, decay=1.4, sustain=0., release=.5, ratio=3.51, index=2.2, octave=1,
                   gain=.6),
    'music_box': Voice('modal', 'music box', 'box', .001, .9, 0., .4, octave=1, gain=.8),
    'whistle': Voice('fm', 'whistle', attack=.04, decay=.2, sustain=.9, release=.1, ratio=2., index=.15, vibrato=30,
                     breath=.08, octave=1, gain=.6),
    # keys, strings
    'piano': Voice('modal', 'struck strings', 'piano', .002, 1.1, 0., .15, gain=.9),
    'epiano': Voice('fm', 'electric piano', attack=.003, decay=1.1, sustain=.12, release=.18, ratio=1., index=1.5,
                    tremolo=.3, vibrato_rate=4.8),
    'clav': Voice('pluck', 'clavinet', attack=.001, decay=.5, release=.04, width=.1, bright=.9, gain=.8),
    'guitar': Voice('pluck', 'plucked strings', attack=.001, decay=1.6, release=.12, width=.23, bright=.62),
    'harp': Voice('pluck', 'harp', attack=.001, decay=2.4, release=.5, width=.45, bright=.4),
    'marimba': Voice('modal', 'marimba', 'wood', .001, .42, 0., .15),
    'vibes': Voice('modal', 'vibraphone', 'metal', .002, 1.5, 0., .3, tremolo=.4, vibrato_rate=5.8),
    'organ': Voice('wave', 'organ', 'organ', .012, .1, 1., .07, 40, 60, .1, width=.6, tremolo=.15, vibrato_rate=6.4,
                   gain=.55),
    'church_organ': Voice('wave', 'church organ', 'organ', .05, .2, 1., .25, 20, 40, -.1, unison=2, detune=4, width=.9,
                          gain=.5),
    'accordion': Voice('wave', 'accordion', 'reed', .04, .2, .95, .08, 8, 24, -.1, unison=2, detune=13, gain=.5),
    'power': Voice('wave', 'distorted guitar', 'saw', .004, .4, .75, .08, 5, 12, .3, unison=2, detune=9, drive=3.,
                   gain=.5),
    # pads
    'pad': Voice('wave', 'warm pad', 'saw', .28, .5, .85, .6, 2, 7, -.9, .7, 3, 11, gain=.6),
    'choir': Voice('wave', 'choir', 'choir', .16, .4, .9, .35, 20, 30, -.3, unison=3, detune=12, vibrato=14, gain=.6),
    'ensemble': Voice('wave', 'string ensemble', 'saw', .12, .3, .9, .3, 5, 12, -.3, .9, 3, 13, 9, gain=.5),
    'glass': Voice('fm', 'glass pad', attack=.2, decay=.8, sustain=.7, release=.5, ratio=4., index=.45, tremolo=.25,
                   vibrato_rate=3., gain=.7),
    'brass': Voice('wave', 'brass', 'saw', .04, .25, .8, .1, 3, 14, -.07, unison=2, detune=6, gain=.55),
    'stab': Voice('wave', 'synth stab', 'saw', .003, .22, .15, .08, 3, 22, .14, 2.2, 2, 16, gain=.7),
    # basses
    'sub_bass': Voice('wave', 'sub bass', 'triangle', .006, .2, .9, .06, 2, 3, .1),
    'saw_bass': Voice('wave', 'synth bass', 'saw', .004, .25, .5, .05, 3, 16, .18, 1.6, gain=.8),
    'acid_bass': Voice('wave', 'acid bass', 'square', .003, .2, .5, .04, 3, 24, .14, 5., drive=1., gain=.6),
    'fm_bass': Voice('fm', 'fm bass', attack=.003, decay=.35, sustain=.3, release=.06, ratio=1., index=2.6, gain=.8),
    'upright': Voice('pluck', 'upright bass', attack=.002, decay=.9, release=.07, width=.35, bright=.28, gain=1.25),
    'pick_bass': Voice('pluck', 'picked bass', attack=.001, decay=1.2, release=.05, width=.14, bright=.6, gain=1.1),
    'tuba': Voice('wave', 'tuba', 'saw', .05, .2, .8, .08, 2, 6, -.08, gain=.9),
    'pedals': Voice('wave', 'organ pedals', 'organ', .05, .2, 1., .2, 10, 12, -.1, width=.2, gain=.8),
}
KITS: tp.Dict[str, tp.Optional[Kit]] = {
    'none': None,
    'machine': Kit('drum machine', 48, 160, .26, .1, 180, .16, .9, 2200, 6000, .035, 'clap', .32, 1.),
    'rock': Kit('loud drums', 58, 90, .15, .5, 200, .17, .9, 1900, 5000, .05, 'tom', .34, 1.1),
    'brushes': Kit('soft brushes', 66, 40, .1, .1, 210, .14, .55, 3200, 6200, .06, 'rim', .3, .55),
    'chip': Kit('chip drums', 90, 260, .07, 0., 400, .08, 1., 2800, 4800, .02, 'rim', .3, .7),
    'hand': Kit('hand percussion', 95, 30, .12, .25, 330, .09, .25, 1500, 5200, .05, 'conga', .26, .8),
    'dusty': Kit('dusty drums', 60, 70, .14, .3, 175, .12, .7, 1600, 4200, .028, 'rim', .24, .9),
    'march': Kit('marching drums', 70, 50, .22, .2, 230, .09, 1., 2600, 5400, .09, 'tom', .18, .8),
}
ROOMS: tp.Dict[str, Room] = {
    'dry': Room('dry', .18, .04), 'studio': Room('small room', .35, .12, 5000.),
    'warm': Room('warm reverb', .9, .2, 2200.), 'hall': Room('large hall', 2.1, .3, 3200.),
    'plate': Room('bright plate', 1.2, .22, 6500.), 'echo': Room('echo', .6, .1, 3500., .35, .31),
}
MASTERS: tp.Dict[str, Master] = {
    'clean': Master(), 'warm': Master('mellow', high=5200, tilt=-4, drive=.5),
    'bright': Master('bright', low=60, tilt=3.5, drive=.4), 'lofi': Master('lo-fi', 110, 3400, -2, .9, 9, -52),
    'loud': Master('loud', tilt=1, drive=1.0), 'chip': Master('8-bit', 50, 7200, 0, .3, bits=7),
    'chorus': Master('wide chorus', chorus=.5), 'radio': Master('narrow radio', 240, 4200, 1, .8, 0, -60),
}
# style: melody, chords, bass, kit, room, master. The first eight are the training catalogue's.
STYLES: tp.Dict[str, tp.Tuple[str, str, str, str, str, str]] = {
    'chiptune': ('square_lead', 'pulse_lead', 'sub_bass', 'chip', 'dry', 'chip'),
    'folk': ('fiddle', 'guitar', 'upright', 'none', 'warm', 'clean'),
    'chapel': ('flute', 'church_organ', 'pedals', 'none', 'hall', 'warm'),
    'synthwave': ('saw_lead', 'pad', 'saw_bass', 'machine', 'plate', 'chorus'),
    'lounge': ('vibes', 'epiano', 'upright', 'brushes', 'studio', 'warm'),
    'rock': ('saw_lead', 'power', 'pick_bass', 'rock', 'studio', 'loud'),
    'mallets': ('marimba', 'harp', 'fm_bass', 'hand', 'studio', 'bright'),
    'tape': ('reed', 'piano', 'pick_bass', 'dusty', 'echo', 'lofi'),
    'ambient': ('bells', 'choir', 'sub_bass', 'none', 'hall', 'chorus'),
    'acid': ('stab', 'glass', 'acid_bass', 'machine', 'echo', 'loud'),
    'parade': ('brass', 'accordion', 'tuba', 'march', 'warm', 'radio'),
    'soul': ('whistle', 'organ', 'fm_bass', 'rock', 'plate', 'warm'),
    'nursery': ('music_box', 'clav', 'pedals', 'hand', 'dry', 'bright'),
    'chamber': ('reed', 'ensemble', 'tuba', 'none', 'hall', 'clean'),
}
_MELODY = ('square_lead', 'pulse_lead', 'saw_lead', 'flute', 'reed', 'fiddle', 'bells', 'music_box', 'whistle', 'piano',
           'epiano', 'clav', 'guitar', 'marimba', 'vibes', 'brass', 'stab', 'organ')
_CHORDS = ('piano', 'epiano', 'clav', 'guitar', 'harp', 'vibes', 'organ', 'church_organ', 'accordion', 'power', 'pad',
           'choir', 'ensemble', 'glass', 'brass', 'stab', 'pulse_lead', 'marimba')
_BASS = ('sub_bass', 'saw_bass', 'acid_bass', 'fm_bass', 'upright', 'pick_bass', 'tuba', 'pedals')
_FIXED = {'octave', 'unison', 'bits', 'ratio', 'sustain', 'gain'}
_T = tp.TypeVar('_T', Voice, Kit, Room, Master)


def _jitter(rng: np.random.Generator, item: _T, spread: float = .18) -> _T:
    """The same thing with every free number moved by a log-normal factor."""
    change = {}
    for f in fields(item):
        value = getattr(item, f.name)
        if isinstance(value, (int, float)) and f.name not in _FIXED and value:
            change[f.name] = float(value * np.exp(spread * np.clip(rng.standard_normal(), -2, 2)))
        if f.name in ('noise', 'high'):  # levels in dB and the band edge move little
            change[f.name] = float(np.clip(value * (1 + .04 * rng.standard_normal()), -95, 7700))
    return replace(item, **change)  # type: ignore[arg-type]


def make_production(seed: int, style: tp.Optional[str] = None) -> Production:
    """Draw a production.

    Args:
        seed (int): Any non-negative integer; decides all details.
        style (str, optional): A key of `STYLES`; None makes a hybrid with every part chosen freely.
    Returns:
        Production: the same for the same arguments.
    """
    rng = np.random.default_rng(np.random.SeedSequence([0xF0, seed]))

    def pick(names: tp.Sequence[str]) -> str:
        return names[int(rng.integers(len(names)))]

    free = (pick(_MELODY), pick(_CHORDS), pick(_BASS), pick(tuple(KITS)), pick(tuple(ROOMS)), pick(tuple(MASTERS)))
    melody, chords, bass, kit, room, master = free if style is None else STYLES[style]
    kit_item = KITS[kit]
    return Production(
        seed, style or 'hybrid', _jitter(rng, VOICES[melody]),
        replace(_jitter(rng, VOICES[chords]), octave=0), _jitter(rng, VOICES[bass]),
        None if kit_item is None else _jitter(rng, kit_item), _jitter(rng, ROOMS[room]), _jitter(rng, MASTERS[master]))
