"""Compositions: what would be printed on a lead sheet, and nothing about its sound.

A composition is drawn from a seed: key, mode, tempo, metre, chord progressions, a melody built from motifs, bass and
comping figures, a drum pattern, and a form of sections. Every production of it plays exactly these notes.
Time is counted in *steps*, sixteenth notes, four to the beat.
"""
import typing as tp
from dataclasses import dataclass

import numpy as np

from . import figures
from .figures import MODES, Grid

NAMES = ('C', 'Db', 'D', 'Eb', 'E', 'F', 'Gb', 'G', 'Ab', 'A', 'Bb', 'B')
PARTS = ('melody', 'chords', 'bass', 'drums')
FORMS = ('AABA', 'ABAB', 'ABAC', 'AABC', 'ABCA', 'ABBA', 'ABCB')

_PROGRESSIONS: tp.Dict[str, tp.Tuple[tp.Tuple[int, ...], ...]] = {
    'major': ((0, 4, 5, 3), (0, 5, 3, 4), (1, 4, 0, 5), (0, 3, 0, 4), (5, 3, 0, 4), (0, 2, 3, 4), (3, 4, 2, 5),
              (0, 3, 1, 4), (0, 1, 2, 3), (3, 0, 4, 5)),
    'minor': ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 4), (0, 3, 6, 2), (5, 6, 0, 0), (0, 4, 5, 3), (0, 2, 6, 3),
              (3, 0, 4, 0), (5, 3, 0, 4), (0, 6, 3, 5)),
    'modal': ((0, 3, 0, 3), (0, 6, 3, 0), (0, 1, 0, 6), (0, 6, 0, 3), (3, 6, 0, 0), (0, 1, 6, 0), (6, 3, 0, 1)),
}


@dataclass(frozen=True)
class Note:
    """One event: a pitch (MIDI number), or for the part 'drums' the name of what is hit.

    Args:
        part (str): One of `PARTS`.
        start (float): Onset in steps.
        length (float): Sounding length in steps.
        pitch (int): MIDI pitch, -1 for drums.
        velocity (float): 0 to 1.
        hit (str): 'kick', 'snare', 'hat', 'open' or 'perc' for drums, else empty.
    """
    part: str
    start: float
    length: float
    pitch: int
    velocity: float
    hit: str = ''


@dataclass(frozen=True)
class Section:
    """Some bars of music, its notes counted from its own beginning."""
    label: str
    chords: tp.Tuple[tp.Tuple[int, ...], ...]  # one tuple of scale degrees per bar
    notes: tp.Tuple[Note, ...]


@dataclass(frozen=True)
class Composition:
    """A piece of music as notes.

    Args:
        seed (int): What it was drawn from.
        tonic (int): Pitch class of the key, 0 is C.
        mode (str): A key of `figures.MODES`.
        bpm (float): Quarter notes per minute.
        metre (str): '4/4', '3/4', '6/8' or '5/4'.
        swing (float): Share of a beat taken by its first half: .5 is straight.
        form (str): Order of the sections, such as 'AABA'; it starts again when it has ended.
        bars (int): Bars in a section.
        sections (dict): `Section` by label.
    """
    seed: int
    tonic: int
    mode: str
    bpm: float
    metre: str
    swing: float
    form: str
    bars: int
    sections: tp.Dict[str, Section]

    @property
    def key(self) -> str:
        return f"{NAMES[self.tonic]} {self.mode}"

    @property
    def grid(self) -> Grid:
        return Grid.of(self.metre)

    @property
    def step_seconds(self) -> float:
        return 15. / self.bpm

    @property
    def bar_seconds(self) -> float:
        return self.grid.steps * self.step_seconds

    def events(self, duration: float) -> tp.List[Note]:
        """All notes that start before `duration` seconds: onsets in steps from the beginning, swung, in order."""
        span = self.bars * self.grid.steps
        out: tp.List[Note] = []
        index = 0
        while index * span * self.step_seconds < duration:
            section = self.sections[self.form[index % len(self.form)]]
            for note in section.notes:
                start = index * span + self._swung(note.start)
                if start * self.step_seconds < duration - 0.05:
                    out.append(Note(note.part, start, note.length, note.pitch, note.velocity, note.hit))
            index += 1
        return sorted(out, key=lambda n: (n.start, n.part, n.pitch, n.hit))

    def _swung(self, start: float) -> float:
        """Onset in steps after swing: what lies half a beat in is played later, what lies around it follows."""
        beat, inside = divmod(start, 4.)
        late = 4. * self.swing
        inside = inside / 2. * late if inside < 2 else late + (inside - 2.) / 2. * (4. - late)
        return beat * 4. + inside


def compose(seed: int, tonic: tp.Optional[int] = None, mode: tp.Optional[str] = None,
            bpm: tp.Optional[float] = None, metre: tp.Optional[str] = None) -> Composition:
    """Draw a composition. What is given is kept, the rest comes from the seed.

    Args:
        seed (int): Any non-negative integer; the same one gives the same notes on every machine.
        tonic, mode, bpm, metre: see `Composition`.
    Returns:
        Composition: with the sections A, B and C written out.
    """
    rng = np.random.default_rng(np.random.SeedSequence([0xC0, seed]))
    draw_tonic, draw_mode = int(rng.integers(12)), str(rng.choice(sorted(MODES), p=[.1, .1, .1, .25, .25, .1, .1]))
    draw_bpm = round(float(rng.uniform(70, 160)), 1)
    draw_metre = str(rng.choice(['4/4', '3/4', '6/8', '5/4'], p=[.64, .16, .14, .06]))
    tonic = draw_tonic if tonic is None else tonic
    mode, bpm, metre = mode or draw_mode, bpm or draw_bpm, metre or draw_metre
    grid = Grid.of(metre)
    swing = float(rng.choice([.5, .5, .58, .64])) if metre in ('4/4', '3/4') and bpm < 140 else .5
    bars = 4 if grid.steps * 15. / bpm < 1.75 else 2
    form = str(rng.choice(FORMS))
    style = figures.Style.draw(rng, grid)
    sections = {label: _section(rng, label, style, tonic, mode, grid, bars) for label in 'ABC'}
    return Composition(seed, tonic, mode, bpm, metre, swing, form, bars, sections)


def _progression(rng: np.random.Generator, mode: str, bars: int) -> tp.List[tp.List[int]]:
    """Roots per bar, one or two a bar: `bars` lists of scale degrees."""
    family = 'major' if mode == 'major' else 'minor' if mode in ('minor', 'harmonic') else 'modal'
    pool = _PROGRESSIONS[family]
    roots = list(pool[int(rng.integers(len(pool)))])
    if bars == 2:
        return [roots[:2], roots[2:]]
    return [[r] for r in roots]


def _section(rng: np.random.Generator, label: str, style: figures.Style, tonic: int, mode: str,
             grid: Grid, bars: int) -> Section:
    """Write one section: B and C get other chords, another motif and at times another figure than A."""
    if label != 'A':
        style = style.varied(rng, grid)
    roots = _progression(rng, mode, bars)
    scale = figures.Scale(tonic, mode)
    notes: tp.List[Note] = []
    melody = figures.Melodist(rng, style, scale, grid, high=label == 'B')
    order = ([0, 1], [0, 0], [0, 1])[int(rng.integers(3))] if bars == 2 else \
        ([0, 1, 0, 2], [0, 0, 1, 2], [0, 1, 0, 1], [0, 0, 0, 1])[int(rng.integers(4))]
    for bar, bar_roots in enumerate(roots):
        offset = bar * grid.steps
        spans = grid.split(len(bar_roots))
        for start, length, pitch, velocity in melody.bar(order[bar], bar_roots, spans):
            notes.append(Note('melody', offset + start, length, pitch, velocity))
        for root, (begin, end) in zip(bar_roots, spans, strict=True):
            chord = scale.chord(root, style.extension)
            for start, length, pitch, velocity in figures.comping(style, chord, grid, begin, end):
                notes.append(Note('chords', offset + start, length, pitch, velocity))
            for start, length, pitch, velocity in figures.bassline(style, scale, root, grid, begin, end):
                notes.append(Note('bass', offset + start, length, pitch, velocity))
        fill = bar == bars - 1 and style.fills
        for start, hit, velocity in figures.drumming(style, grid, fill):
            notes.append(Note('drums', offset + start, 1., -1, velocity, hit))
    return Section(label, tuple(tuple(r) for r in roots), tuple(notes))
