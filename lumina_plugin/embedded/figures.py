"""Figures that compositions are made of: scales, metres, motifs, comping, bass lines and drum patterns.

Everything counts in steps (sixteenth notes) from the beginning of a bar and speaks of notes alone, never of sound.
"""
import typing as tp
from dataclasses import dataclass, replace

import numpy as np

MODES: tp.Dict[str, tp.Tuple[int, ...]] = {
    'major': (0, 2, 4, 5, 7, 9, 11),
    'minor': (0, 2, 3, 5, 7, 8, 10),
    'dorian': (0, 2, 3, 5, 7, 9, 10),
    'harmonic': (0, 2, 3, 5, 7, 8, 11),
    'lydian': (0, 2, 4, 6, 7, 9, 11),
    'mixolydian': (0, 2, 4, 5, 7, 9, 10),
    'phrygian': (0, 1, 3, 5, 7, 8, 10),
}
_GROUPS = {'4/4': (4, 4, 4, 4), '3/4': (4, 4, 4), '6/8': (6, 6), '5/4': (6, 6, 4, 4)}
_CELLS: tp.Dict[int, tp.Tuple[tp.Tuple[int, ...], ...]] = {
    4: ((4,), (2, 2), (3, 1), (2, 1, 1), (1, 1, 2), (1, 2, 1), (1, 1, 1, 1)),
    6: ((6,), (4, 2), (2, 4), (3, 3), (2, 2, 2), (4, 1, 1), (2, 1, 1, 2)),
}
Event = tp.Tuple[float, float, int, float]  # start, length, pitch, velocity


@dataclass(frozen=True)
class Grid:
    """A metre as groups of steps; the first step of a group is its accent."""
    metre: str
    groups: tp.Tuple[int, ...]

    @classmethod
    def of(cls, metre: str) -> 'Grid':
        return cls(metre, _GROUPS[metre])

    @property
    def steps(self) -> int:
        return sum(self.groups)

    @property
    def accents(self) -> tp.List[int]:
        return [sum(self.groups[:i]) for i in range(len(self.groups))]

    def split(self, parts: int) -> tp.List[tp.Tuple[int, int]]:
        """`parts` (1 or 2) spans (begin, end) of a bar, cut at the accent nearest to its middle."""
        if parts == 1:
            return [(0, self.steps)]
        middle = min(self.accents[1:], key=lambda a: abs(a - self.steps / 2))
        return [(0, middle), (middle, self.steps)]


@dataclass(frozen=True)
class Scale:
    """Scale degrees to MIDI pitches; degree 0 is the tonic in the octave above middle C's lower neighbour."""
    tonic: int
    mode: str

    def pitch(self, degree: int, base: int = 60) -> int:
        octave, index = divmod(degree, 7)
        low = base + (self.tonic if self.tonic < 7 else self.tonic - 12)
        return low + MODES[self.mode][index] + 12 * octave

    def chord(self, root: int, extension: str) -> tp.List[int]:
        """Pitches of the chord on a degree, each in the octave around G3 so that voices move little."""
        degrees = {'triad': (0, 2, 4), 'seventh': (0, 2, 4, 6), 'add9': (0, 2, 4, 8), 'open': (0, 4, 7)}[extension]
        if extension == 'open':
            return sorted({self.pitch(root + d, 48) for d in degrees})
        return sorted({(self.pitch(root + d) - 49) % 12 + 49 for d in degrees})


@dataclass(frozen=True)
class Style:
    """The habits of a composition: which figures its parts use."""
    extension: str
    comp: str
    bass: str
    drums: str
    density: float  # 0 sparse to 1 busy melody
    leap: float  # probability that a melody leaps
    contour: str
    register: int  # melody's centre as a scale degree above the tonic
    staccato: float  # sounding share of a melody note
    hats: int  # steps between hat hits
    fills: bool
    kick_mask: int  # bits that choose additional kicks

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Grid) -> 'Style':
        def pick(*names: str) -> str:
            return names[int(rng.integers(len(names)))]
        return cls(
            extension=pick('triad', 'triad', 'seventh', 'add9', 'open'),
            comp=pick('held', 'beats', 'offbeat', 'arp', 'arp_down', 'alberti', 'push', 'oompah'),
            bass=pick('held', 'fifths', 'walking', 'octaves', 'pulse', 'push', 'answer'),
            drums=pick('four', 'backbeat', 'half', 'break', 'bossa', 'sparse'),
            density=float(rng.uniform(.1, .9)), leap=float(rng.uniform(.08, .45)),
            contour=pick('arch', 'falling', 'rising', 'zigzag', 'pedal', 'walk'),
            register=int(rng.integers(5, 12)), staccato=float(rng.choice([.5, .85, .95, 1.])),
            hats=int(rng.choice([1, 2, 2, 4])), fills=bool(rng.random() < .6), kick_mask=int(rng.integers(256)))

    def varied(self, rng: np.random.Generator, grid: Grid) -> 'Style':
        """The style of a contrasting section of the same piece."""
        other = Style.draw(rng, grid)
        change = {'density': other.density, 'contour': other.contour}
        for name in ('comp', 'bass', 'hats'):
            if rng.random() < .5:
                change[name] = getattr(other, name)
        return replace(self, **change)  # type: ignore[arg-type]


class Melodist:
    """Writes a melody from at most three rhythmic motifs, so that bars answer one another.

    Args:
        rng: Source of all choices.
        style, scale, grid: see their classes.
        high (bool): Lift the section's melody by a third, the way a chorus does.
    """
    def __init__(self, rng: np.random.Generator, style: Style, scale: Scale, grid: Grid, high: bool = False):
        self.style, self.scale, self.grid = style, scale, grid
        self.centre = style.register + (2 if high else 0)
        self.motifs = [self._motif(rng) for _ in range(3)]
        self.at = self.centre

    def _motif(self, rng: np.random.Generator) -> tp.List[tp.Tuple[int, int, int]]:
        """One bar of (start, length, move): move is in scale degrees from the note before."""
        notes: tp.List[tp.Tuple[int, int, int]] = []
        start = 0
        for group in self.grid.groups:
            cells = _CELLS[group]
            place = np.arange(len(cells)) / (len(cells) - 1)
            weight = np.exp(-((place - self.style.density) / .3) ** 2)
            cell = cells[int(rng.choice(len(cells), p=weight / weight.sum()))]
            rest = rng.random() < .16 and start > 0
            for length in cell:
                if not rest:
                    notes.append((start, length, self._move(rng, start / self.grid.steps, len(notes))))
                start += length
        return notes

    def _move(self, rng: np.random.Generator, place: float, index: int) -> int:
        """Degrees to the next note, following the style's contour at `place` (0 to 1) in the bar."""
        size = int(rng.choice([2, 3, 4, 5])) if rng.random() < self.style.leap else 1
        sign = {'arch': 1 if place < .5 else -1, 'falling': -1, 'rising': 1, 'zigzag': 1 if index % 2 else -1,
                'pedal': 0 if index % 2 else 1, 'walk': int(rng.choice([-1, 0, 1]))}[self.style.contour]
        return sign * size if rng.random() < .8 else int(rng.choice([-1, 1]))

    def bar(self, motif: int, roots: tp.Sequence[int], spans: tp.Sequence[tp.Tuple[int, int]]) -> tp.List[Event]:
        """The melody of one bar over its chords; accents land on chord tones."""
        out: tp.List[Event] = []
        self.at += int(round((self.centre - self.at) * .6))
        accents = set(self.grid.accents)
        for start, length, move in self.motifs[motif]:
            root = next(r for r, (begin, end) in zip(roots, spans, strict=True) if begin <= start < end)
            self.at += move
            if abs(self.at - self.centre) > 6:
                self.at = self.centre + int(np.sign(self.at - self.centre)) * 3
            if start in accents:
                self.at = min((self.at + d for d in (0, 1, -1, 2, -2)),
                              key=lambda d: ((d - root) % 7 not in (0, 2, 4), abs(d - self.at)))
            velocity = 1. if start == 0 else .88 if start in accents else .74
            out.append((start, length * self.style.staccato, self.scale.pitch(self.at), velocity))
        return out


def comping(style: Style, chord: tp.Sequence[int], grid: Grid, begin: int, end: int) -> tp.List[Event]:
    """Chord part between two steps of a bar."""
    kind, out = style.comp, tp.cast(tp.List[Event], [])

    def strike(start: int, length: float, pitches: tp.Iterable[int], velocity: float) -> None:
        out.extend((start, min(length, end - start), p, velocity) for p in pitches)

    accents = [a for a in grid.accents if begin <= a < end]
    if kind == 'held':
        strike(begin, end - begin, chord, .8)
    elif kind == 'beats':
        for a in accents:
            strike(a, 2.5, chord, .9 if a == begin else .7)
    elif kind == 'offbeat':
        for a in accents:
            strike(a + 2, 1.5, chord, .8)
    elif kind in ('arp', 'arp_down'):
        tones = [*chord, chord[0] + 12] if kind == 'arp' else [*chord[::-1], chord[1]]
        for i, step in enumerate(range(begin, end, 2)):
            strike(step, 2.6, [tones[i % len(tones)]], .9 if step in accents else .72)
    elif kind == 'alberti':
        tones = [chord[0], chord[-1], chord[1], chord[-1]]
        for i, step in enumerate(range(begin, end)):
            strike(step, 1.4, [tones[i % 4]], .85 if step in accents else .6)
    elif kind == 'push':
        for step, length in ((0, 3), (3, 3), (6, 4), (11, 3), (14, 2)):
            if begin <= step < end:
                strike(step, length, chord, .85)
    else:  # oompah: the chord answers the bass on the later accents
        for a in accents:
            if a != begin:
                strike(a, 2., chord, .8)
        if len(accents) == 1:
            strike(begin + 2, 2., chord, .75)
    return out


def bassline(style: Style, scale: Scale, root: int, grid: Grid, begin: int, end: int) -> tp.List[Event]:
    """Bass between two steps of a bar, between E1 and about E3."""
    def low(degree: int) -> int:
        return (scale.pitch(degree) - 29) % 12 + 29

    one, five, octave = low(root), low(root + 4), low(root) + 12
    third = low(root + 2)
    kind, length = style.bass, end - begin
    if kind == 'held':
        return [(begin, length * .96, one, .9)]
    if kind == 'fifths':
        steps = [a for a in grid.accents if begin <= a < end][::2] or [begin]
        return [(a, 3.4, (one, five)[i % 2], .92) for i, a in enumerate(steps)]
    if kind == 'walking':
        tones = (one, third, five, low(root + 5))
        return [(s, 3.6, tones[i % 4], .88) for i, s in enumerate(range(begin, end, 4))]
    if kind == 'octaves':
        return [(s, 1.7, (one, octave)[i % 2], (.95, .75)[i % 2]) for i, s in enumerate(range(begin, end, 2))]
    if kind == 'pulse':
        return [(s, 1.8, one, .95 if s in grid.accents else .75) for s in range(begin, end, 2)]
    if kind == 'push':
        return [(s, n, p, .9) for s, n, p in ((0, 2.8, one), (3, 2.6, one), (6, 1.8, five), (8, 2.5, one),
                                             (11, 2.5, octave), (14, 1.8, five), (16, 3., one))
                if begin <= s < end]
    return [(begin, 2.5, one, .95), (min(begin + 3, end - 1), 1., one, .7), (end - 2, 1.8, octave, .8)]


def drumming(style: Style, grid: Grid, fill: bool) -> tp.List[tp.Tuple[float, str, float]]:
    """One bar of drums as (start, hit, velocity)."""
    accents, steps = grid.accents, grid.steps
    kicks: tp.Set[int] = {0}
    snares: tp.Set[int] = set()
    perc: tp.Set[int] = set()
    if grid.metre == '4/4':
        kicks |= {'four': {4, 8, 12}, 'backbeat': {8}, 'half': {10}, 'break': {2, 10}, 'bossa': {6, 8, 14},
                  'sparse': set()}[style.drums]
        snares |= {'four': {4, 12}, 'backbeat': {4, 12}, 'half': {8}, 'break': {4, 7, 9, 12}, 'bossa': set(),
                   'sparse': {12}}[style.drums]
        perc |= {3, 6, 10, 12} if style.drums == 'bossa' else set()
    elif grid.metre == '3/4':
        snares |= {4, 8} if style.drums in ('four', 'backbeat') else {8}
    elif grid.metre == '6/8':
        snares |= {6}
        kicks |= {4} if style.drums in ('four', 'break') else set()
    else:
        snares |= {6, 16} if style.drums != 'half' else {12}
        kicks |= {12}
    kicks |= {s for bit, s in enumerate((3, 5, 6, 10, 11, 13)) if style.kick_mask >> bit & 1 and bit % 2 == 0
              and s < steps and style.drums not in ('sparse', 'four')}
    out: tp.List[tp.Tuple[float, str, float]] = [(k, 'kick', 1. if k == 0 else .85) for k in sorted(kicks)]
    out += [(s, 'snare', .95 if s % 2 == 0 else .5) for s in sorted(snares - ({steps - 4} if fill else set()))]
    out += [(p, 'perc', .7) for p in sorted(perc)]
    for step in range(0, steps, 4 if style.drums == 'sparse' else style.hats):
        opened = style.drums == 'four' and step % 4 == 2
        out.append((step, 'open' if opened else 'hat', .8 if step in accents else .5))
    if fill:
        out += [(steps - 4 + i, 'snare' if i < 2 else 'perc', .6 + .1 * i) for i in range(4)]
    return out
