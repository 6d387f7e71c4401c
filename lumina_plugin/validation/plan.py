"""Which models a ground truth retrains, on which songs: decided by the catalogue and a seed alone."""

import collections
import dataclasses
import itertools
import typing as tp

import numpy as np

from ..catalogue import Catalogue
from ..errors import LuminaError

HALVES, SEEDS, WHOLE, GROUPS = 48, 3, 4, 8
MIN_SONGS = 4
KINDS = ('artist', 'composition')


@dataclasses.dataclass(frozen=True)
class Retrained:
    """One model of a ground truth.

    Args:
        name (str): Unique, and a file's name.
        kind (str): 'half' (a random half of the songs), 'whole' (all) or 'without' (all but a group).
        songs (tuple of str): Ids of what it is trained on.
        seed (int): Of its weights and of its draws.
        group (str, optional): What was left out, as 'composition:c03' or 'artist:The Amber Otters'; for a half, its
            number: models with the same number are trained on the same songs.
    """
    name: str
    kind: tp.Literal['half', 'whole', 'without']
    songs: tp.Tuple[str, ...]
    seed: int
    group: tp.Optional[str] = None


def plan_models(catalogue: Catalogue, halves: int = HALVES, seeds: int = SEEDS, whole: int = WHOLE,
                groups: int = GROUPS, seed: int = 0) -> tp.List[Retrained]:
    """The models of a ground truth, in the order in which they are worth most.

    A model keeps its name, songs and seed when more of them are asked for.

    Args:
        catalogue (Catalogue): The songs. halves (int): Random halves.
        seeds (int): Models of each half, with seeds of their own: how they differ tells how much of a retrained loss is
            chance, and their mean has less of it.
        whole (int): Models of all songs. groups (int): The largest so many groups by composition and by artist are each
            left out of one model. seed (int): Of everything random.
    Raises:
        LuminaError: when there are too few songs, or numbers that cannot be.
    """
    ids = [track.id for track in catalogue]
    if len(ids) < MIN_SONGS:
        raise LuminaError(f"A ground truth needs at least {MIN_SONGS} songs, the catalogue has {len(ids)}; take a "
                          "larger one.")
    if not 2 <= halves <= 999 or not 1 <= seeds <= 26 or whole < 0 or groups < 0:
        raise LuminaError(f"{halves} halves, {seeds} seeds, {whole} whole models and {groups} groups cannot be "
                          "planned; ask for 2 to 999 halves and 1 to 26 seeds.")
    rng = np.random.default_rng([seed, len(ids)])
    subsets = [tuple(ids[i] for i in np.sort(rng.permutation(len(ids))[:len(ids) // 2])) for _ in range(halves)]
    base = 100_000 * seed
    random = [[Retrained(f"half-{k:03d}-{'abcdefghijklmnopqrstuvwxyz'[s]}", 'half', songs, base + 1000 * (s + 1) + k,
                         str(k)) for k, songs in enumerate(subsets)] for s in range(seeds)]
    full = [Retrained(f'whole-{k:02d}', 'whole', tuple(ids), base + 50_000 + k) for k in range(whole)]
    without = [Retrained(f'without-{kind}-{k:02d}', 'without', tuple(i for i in ids if i not in left),
                         base + 60_000 + 1000 * place + k, f'{kind}:{name}')
               for place, kind in enumerate(KINDS) for k, (name, left) in
               enumerate(largest_groups(catalogue, kind, groups))]
    return [*itertools.chain(*random[:2]), *full, *without, *itertools.chain(*random[2:])]


def group_of(track: tp.Any, kind: str) -> tp.Optional[str]:
    """The group of a track: its composition (id, else ISWC) or its artist; None where it is not known."""
    return track.artist if kind == 'artist' else track.composition_id or track.iswc


def largest_groups(catalogue: Catalogue, kind: str, count: int) -> tp.List[tp.Tuple[str, tp.Set[str]]]:
    """The `count` largest groups with the ids of their songs; a group of all songs is none."""
    members: tp.Dict[str, tp.Set[str]] = collections.defaultdict(set)
    for track in catalogue:
        name = group_of(track, kind)
        if name is not None:
            members[name].add(track.id)
    usable = [(name, songs) for name, songs in members.items() if len(songs) < len(catalogue)]
    return sorted(usable, key=lambda item: (-len(item[1]), item[0]))[:count]
