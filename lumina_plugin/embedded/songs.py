"""The songs of the embedded catalogue: which composition is played in which production, and who is credited.

The design of the 97 training songs: 24 compositions and 8 productions. Every composition occurs in 4 productions (one
of them in 5), every production with 12 compositions (one with 13), and every pair of productions shares five or six
compositions, near enough to balanced that neither can be guessed from the other.
All names, ISRC and ISWC are invented: the country code ZZ is assigned to nobody.
"""
import itertools
import typing as tp
from dataclasses import dataclass

import numpy as np

from .composition import Composition, compose
from .production import STYLES, Production, make_production
from .render import render

DEFAULT_SEED = 7
TRAINING, HELDOUT, COMPOSITIONS, PRODUCTIONS = 97, 16, 24, 8
_TRAIN_STYLES, _OTHER_STYLES = tuple(STYLES)[:PRODUCTIONS], tuple(STYLES)[PRODUCTIONS:]
_SHORT = {30: 8., 67: 5.}  # two training songs, by index, in seconds
_SPLITS = {'train': 0, 'heldout': 1, 'extra': 2}
_ADJECTIVES = ('Copper', 'Velvet', 'Hollow', 'Paper', 'Northern', 'Silver', 'Quiet', 'Crooked', 'Amber', 'Winter',
               'Distant', 'Salt', 'Golden', 'Broken', 'Early', 'Burning', 'Hidden', 'Electric', 'Slow', 'Scarlet',
               'Glass', 'Wandering', 'Blue', 'Dusty', 'Second', 'Marble', 'Sleeping', 'Iron', 'Open', 'Violet')
_NOUNS = ('Lanterns', 'Harbour', 'Orchard', 'Engines', 'Meridian', 'Rooftops', 'Sparrows', 'Tide', 'Carousel',
          'Letters', 'Horizon', 'Staircase', 'Gardens', 'Signals', 'Avenue', 'Embers', 'Compass', 'Shadows',
          'Bridges', 'Mirage',
          'Windows', 'Caravan', 'Thunder', 'Pilgrims', 'Almanac', 'Islands', 'Machines', 'Rivers', 'Ribbons')
_BANDS = ('Otters', 'Foxgloves', 'Cartographers', 'Parallels', 'Night Trams', 'Ferrymen', 'Lighthouses', 'Magpies',
          'Quartermasters', 'Moths', 'Astronomers', 'Tinkers', 'Junipers')
_FIRST = ('Ada', 'Bruno', 'Celia', 'Dario', 'Elin', 'Fadil', 'Greta', 'Hugo', 'Ines', 'Jonas', 'Kaya')
_LAST = ('Marrowby', 'Quillon', 'Vantreel', 'Ostrander', 'Pemberlow', 'Sandoway', 'Thistlewick', 'Ulverdale',
         'Wexcombe', 'Yarrowin', 'Zelkova', 'Ambrelle', 'Corvidane')
# Quadruples of the eight productions; with their complements they are the 14 blocks
# in which all pairs meet equally often.
_QUADS = ((0, 1, 2, 3), (0, 1, 4, 5), (0, 1, 6, 7), (0, 2, 4, 6), (0, 2, 5, 7), (0, 3, 4, 7), (0, 3, 5, 6))


@dataclass(frozen=True)
class SongSpec:
    """One song: notes, sound, length and credits. Nothing is rendered until `render` is called.

    Args:
        id (str): 'song-001' to 'song-097', 'heldout-01' to 'heldout-16', 'extra-0001' and on.
        split (str): 'train', 'heldout' or 'extra'.
        composition_id, production_id (str): Equal ids mean equal notes, equal sound.
        duration (float): Seconds.
        seed (int): Of this take, see `render.render`.
        writers, master_owners: (name, share in percent), each summing to 100.
        description (str): Tags from the closed vocabulary of `tags`.
    """
    id: str
    split: str
    composition_id: str
    production_id: str
    composition: Composition
    production: Production
    duration: float
    seed: int
    title: str
    artist: str
    isrc: str
    iswc: str
    writers: tp.Tuple[tp.Tuple[str, int], ...]
    master_owners: tp.Tuple[tp.Tuple[str, int], ...]
    description: str

    def render(self) -> np.ndarray:
        """Samples `[T]`, float32 in [-1, 1], 16 kHz."""
        return render(self.composition, self.production, self.duration, self.seed)

    def sidecar(self) -> tp.Dict[str, tp.Any]:
        """What stands beside the audio: audiocraft's `MusicInfo` keys, and the credits."""
        tag_list = self.description.split(', ')
        return {
            'title': self.title, 'artist': self.artist, 'key': self.composition.key, 'bpm': self.composition.bpm,
            'genre': self.production.style, 'moods': tag_list[0].split(' ')[:2], 'keywords': tag_list[1:],
            'description': self.description, 'name': self.id, 'instrument': self.production.melody.tag,
            'track_id': self.id, 'isrc': self.isrc, 'iswc': self.iswc, 'composition_id': self.composition_id,
            'production_id': self.production_id,
            'splits': {'writers': [{'name': n, 'share': s} for n, s in self.writers],
                       'master_owners': [{'name': n, 'share': s} for n, s in self.master_owners]},
        }


def tags(composition: Composition, production: Production) -> str:
    """Short description: three words on the composition, then the chords' instrument, the room and the drums."""
    tempo = 'slow' if composition.bpm < 95 else 'medium' if composition.bpm < 128 else 'fast'
    mode = {'major': 'major', 'minor': 'minor', 'harmonic': 'minor'}.get(composition.mode, 'modal')
    feel = {'3/4': 'waltz', '6/8': 'six-eight', '5/4': 'five-four'}.get(composition.metre, 'four-four')
    drums = production.kit.tag if production.kit else 'no drums'
    return f"{tempo} {mode} {feel}, {production.chords.tag}, {production.room.tag}, {drums}"


def training_songs(seed: int = DEFAULT_SEED) -> tp.List[SongSpec]:
    """The 97 training songs, in the order of their ids."""
    rng = np.random.default_rng(np.random.SeedSequence([0x7A, seed]))
    compositions = _stratified(rng, seed)
    productions = [make_production(_number(seed, 'train', i), style) for i, style in enumerate(_TRAIN_STYLES)]
    complement = [tuple(sorted(set(range(PRODUCTIONS)) - set(q))) for q in _QUADS]
    blocks = [b for pair in zip(_QUADS, complement, strict=True) for b in pair]
    blocks += blocks[:COMPOSITIONS - len(blocks)]
    order = rng.permutation(COMPOSITIONS)
    pairs = [(int(order[k]), p) for k, block in enumerate(blocks) for p in block]
    pairs.append((int(order[0]), blocks[1][0]))
    shuffled = [pairs[int(i)] for i in rng.permutation(len(pairs))]
    return [_spec('train', i, c, p, compositions[c], productions[p], seed) for i, (c, p) in enumerate(shuffled)]


def heldout_songs(seed: int = DEFAULT_SEED) -> tp.List[SongSpec]:
    """The 16 held-out songs: each has a composition and a production that occur nowhere else."""
    out = []
    for i in range(HELDOUT):
        style = _OTHER_STYLES[i] if i < len(_OTHER_STYLES) else None
        number = _number(seed, 'heldout', i)
        out.append(_spec('heldout', i, i, i, compose(number), make_production(number, style), seed))
    return out


def endless_songs(seed: int = DEFAULT_SEED, crossing: int = 1) -> tp.Iterator[SongSpec]:
    """Further songs without end, for training a codec and for calibration; none shares a seed with the catalogue.

    Args:
        seed (int): As in `training_songs`.
        crossing (int): With k > 1 the songs come in groups of k * k: k compositions, each in the same k productions.
    """
    styles = (None, *STYLES, None)
    for group in itertools.count():
        numbers = [group * crossing + i for i in range(crossing)]
        compositions = [compose(_number(seed, 'extra', n)) for n in numbers]
        productions = [make_production(_number(seed, 'extra', n), styles[n % len(styles)]) for n in numbers]
        for i, j in itertools.product(range(crossing), repeat=2):
            index = group * crossing * crossing + i * crossing + j
            yield _spec('extra', index, numbers[i], numbers[j], compositions[i], productions[j], seed)


def songs_of(split: str, seed: int = DEFAULT_SEED, count: int = 0) -> tp.List[SongSpec]:
    """All songs of 'train' or 'heldout', or the first `count` of 'extra'."""
    if split == 'extra':
        return list(itertools.islice(endless_songs(seed), count))
    return training_songs(seed) if split == 'train' else heldout_songs(seed)


def _number(seed: int, split: str, index: int) -> int:
    """A seed of its own for each (seed, split, index): the splits cannot meet."""
    return (seed << 40) | (_SPLITS[split] << 36) | index


def _stratified(rng: np.random.Generator, seed: int) -> tp.List[Composition]:
    """The training compositions: all twelve keys twice, tempi spread evenly over 70 to 160, a fair mix of modes."""
    n = COMPOSITIONS
    tonics = np.concatenate([rng.permutation(12), rng.permutation(12)])
    tempi = rng.permutation(np.linspace(70, 160, n)) + rng.uniform(-1.2, 1.2, n)
    metres = rng.permutation(['4/4'] * 15 + ['3/4'] * 4 + ['6/8'] * 3 + ['5/4'] * 2)
    modes = rng.permutation(['major'] * 6 + ['minor'] * 6 + ['dorian'] * 3 + ['mixolydian'] * 3 + ['harmonic'] * 2
                            + ['lydian'] * 2 + ['phrygian'] * 2)
    return [compose(_number(seed, 'train', i), int(tonics[i]), str(modes[i]),
                    round(float(np.clip(tempi[i], 70, 160)), 1), str(metres[i])) for i in range(n)]


def _spec(split: str, index: int, composition: int, production: int, notes: Composition, sound: Production,
          seed: int) -> SongSpec:
    """Put together one song; lengths are whole bars plus half a second in which the last notes ring."""
    number = _number(seed, split, index)
    rng = np.random.default_rng(np.random.SeedSequence([0x11, number]))
    target = rng.uniform(24, 29) if rng.random() < .12 else rng.uniform(13, 22)
    bars = max(int(np.ceil(11.6 / notes.bar_seconds)), round(target / notes.bar_seconds))
    duration = min(30., round(bars * notes.bar_seconds + .5, 2))
    if split == 'train':
        duration = _SHORT.get(index, duration)
    name = {'train': f"song-{index + 1:03d}", 'heldout': f"heldout-{index + 1:02d}", 'extra': f"extra-{index + 1:04d}"}
    letter = {'train': '', 'heldout': 'h', 'extra': 'x'}[split]
    offset = {'train': 0, 'heldout': 100, 'extra': 200}[split]
    return SongSpec(
        name[split], split, f"c{letter}{composition + 1:02d}", f"p{letter}{production + 1:02d}", notes, sound, duration,
        number, f"{_title(composition + offset)} ({sound.style} version)", _artist(production + offset),
        f"ZZ-LM{split[0].upper()}-26-{index + 1:05d}", _iswc(99_000 + offset + composition),
        _writers(composition + offset), _masters(production + offset), tags(notes, sound))


def _title(number: int) -> str:
    name = f"{_ADJECTIVES[number % len(_ADJECTIVES)]} {_NOUNS[number % len(_NOUNS)]}"
    turn = number // (len(_ADJECTIVES) * len(_NOUNS))
    return name + (f" {turn + 1}" if turn else '')


def _artist(number: int) -> str:
    name = f"The {_ADJECTIVES[(number * 7 + 3) % len(_ADJECTIVES)]} {_BANDS[number % len(_BANDS)]}"
    turn = number // (len(_ADJECTIVES) * len(_BANDS))
    return name + (f" {turn + 1}" if turn else '')


def _person(number: int) -> str:
    return f"{_FIRST[number % len(_FIRST)]} {_LAST[number % len(_LAST)]}"


def _writers(number: int) -> tp.Tuple[tp.Tuple[str, int], ...]:
    """One to three writers whose shares sum to 100."""
    shares = ((100,), (50, 50), (60, 40), (50, 30, 20))[number % 4]
    return tuple((_person(number * 3 + i * 5), share) for i, share in enumerate(shares))


def _masters(number: int) -> tp.Tuple[tp.Tuple[str, int], ...]:
    label = f"{_NOUNS[(number * 5 + 1) % len(_NOUNS)]} Records"
    return ((label, 100),) if number % 2 else ((label, 80), (_artist(number), 20))


def _iswc(number: int) -> str:
    """T-999.xxx.xxx-C with its proper check digit, from a range that has not been given out."""
    digits = f"999{number:06d}"
    check = -(1 + sum((i + 1) * int(d) for i, d in enumerate(digits))) % 10
    return f"T-{digits[:3]}.{digits[3:6]}.{digits[6:]}-{check}"
