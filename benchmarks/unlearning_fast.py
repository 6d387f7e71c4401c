"""Exact unlearning against a shortlist, on a model of many songs: which songs a shortlist must hold, and what it saves.

For `unlearning.py`. Every number is kept as it is found.
"""

import dataclasses
import typing as tp
from pathlib import Path

import numpy as np
from unlearning_timing import Watch

from lumina_plugin.attribution import Attributor
from lumina_plugin.prepared import progress_bar
from lumina_plugin.statistics import standardised_scores
from lumina_plugin.store import FingerprintStore
from lumina_plugin.unlearning.attribute import shortlists
from lumina_plugin.unlearning.masks import Piece
from lumina_plugin.unlearning.musicgen import MusicGenSubject
from lumina_plugin.unlearning.opened import open_subject
from lumina_plugin.unlearning.recipe import unlearning_recipe
from lumina_plugin.unlearning.scoring import FloatArray, Unlearner
from lumina_plugin.validation.queries import free_generations
from lumina_plugin.validation.results import kept_parts, table

TOP, PARTS, FRAMES = 10, (0.02, 0.05, 0.1, 0.2), 250


@dataclasses.dataclass
class Bench:
    """A run of many songs, opened: its songs, the default recipe, its store, and free generations as queries."""
    run: Path
    subject: MusicGenSubject
    unlearner: Unlearner
    attributor: Attributor
    pieces: tp.List[Piece]

    def facts(self, what: str) -> tp.List[tp.Any]:
        """Under which numbers are kept."""
        return [what, self.run.name, len(self.subject.songs), self.unlearner.recipe.hash, len(self.pieces)]


def open_bench(run: Path, queries: int) -> Bench:
    """Open a run; its Fisher information is made where it is not kept yet."""
    subject, recipe = open_subject(run), unlearning_recipe('default')
    unlearner = subject.unlearner(recipe, progress_bar)
    store = FingerprintStore.open(run / 'lumina' / 'default')
    pieces = [Piece(query.id, [query.example(subject.module, False)])
              for query in free_generations(subject.module, queries, FRAMES)]
    return Bench(run, subject, unlearner, Attributor(subject.module, subject.codec, store), pieces)


def measured(bench: Bench, out: Path) -> tp.Dict[str, FloatArray]:
    """Of each query, in turn: exact scores of all songs, those of its shortlist (NaN elsewhere), seconds of both.

    Returns:
        dict: exact, fast [Q, N]; exact_wall, exact_cpu, short_wall, short_cpu (the shortlist alone), fast_wall and
        fast_cpu (with it) [Q].
    """
    def make(some: tp.Sequence[Piece]) -> tp.Dict[str, FloatArray]:
        piece, = some
        query = bench.subject.query_of(piece, bench.unlearner.recipe)
        with Watch() as fast:
            with Watch() as short:
                among = shortlists(bench.attributor, bench.subject, [piece])
            found = bench.unlearner.scores([query], among).scores
        with Watch() as exact:
            whole = bench.unlearner.scores([query]).scores
        seconds = {f'{name}_{kind}': np.array([getattr(watch, kind)]) for name, watch in
                   (('exact', exact), ('short', short), ('fast', fast)) for kind in ('wall', 'cpu')}
        return {'exact': whole, 'fast': found, **seconds}
    shortlists(bench.attributor, bench.subject, bench.pieces[:1])  # the first of a process is slower than all others
    bench.unlearner.scores(bench.pieces[:1], [[0]])
    return kept_parts(out / 'kept', bench.facts('fast'), bench.pieces, make, 'exact and fast', 1)


def measured_sketched(bench: Bench, out: Path) -> tp.Dict[str, FloatArray]:
    """The same for shortlists by sketches as well: sketched [Q, N]; sketched_wall, sketched_cpu,
    ranked_wall, ranked_cpu (the shortlist alone) [Q]."""
    sketches = bench.subject.sketches(bench.unlearner, progress_bar)

    def make(some: tp.Sequence[Piece]) -> tp.Dict[str, FloatArray]:
        queries = [bench.subject.query_of(piece, bench.unlearner.recipe) for piece in some]
        with Watch() as whole:
            with Watch() as ranked:
                among = shortlists(bench.attributor, bench.subject, some, first_order=sketches.scores(queries))
            found = bench.unlearner.scores(queries, among).scores
        return {'sketched': found, **{f'{name}_{kind}': np.array([getattr(watch, kind)]) for name, watch in
                                      (('sketched', whole), ('ranked', ranked)) for kind in ('wall', 'cpu')}}
    sketches.scores(bench.pieces[:1])
    bench.unlearner.scores(bench.pieces[:1], [[0]])
    return kept_parts(out / 'kept', [*bench.facts('sketched'), sketches.sketcher.facts], bench.pieces, make,
                      'by sketches', 1)


def overlap(exact: FloatArray, other: FloatArray) -> float:
    """Part of the ten highest songs that two readings of a query share; NaN is lower than all."""
    def best(row: FloatArray) -> tp.Set[int]:
        return set(np.argsort(-np.nan_to_num(row, nan=-np.inf), kind='stable')[:TOP].tolist())
    return float(np.mean([len(best(a) & best(b)) / TOP for a, b in zip(exact, other, strict=True)]))


def recall(exact: FloatArray, ways: FloatArray, part: float) -> float:
    """Of each query's ten highest songs, how many are in the shortlist that a way of ranking makes; mean."""
    count = max(TOP, int(np.ceil(part * exact.shape[1])))
    top, short = np.argsort(-exact, axis=1)[:, :TOP], np.argsort(-ways, axis=1)[:, :count]
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / TOP for a, b in zip(top, short, strict=True)]))


# -- other ways to a shortlist ----------------------------------------------------------------------------------------

def by_channel(attributor: Attributor, bench: Bench) -> tp.Dict[str, FloatArray]:
    """Fingerprint scores of every query, [Q, N] in the order of the subject's songs, standardised, by channel."""
    place = {song: column for column, song in enumerate(attributor.song_ids)}
    order = [place[song.id] for song in bench.subject.songs]
    rows = [attributor.scores(list(piece.examples), 0) for piece in bench.pieces]
    return {channel: np.stack([standardised_scores(row[channel][order]) for row in rows]) for channel in rows[0]}


def with_recipe(bench: Bench, **changes: tp.Any) -> Attributor:
    """The bench's attributor, scoring in another way."""
    recipe = bench.attributor.recipe
    if 'method' in changes:
        changes['scoring'] = recipe.scoring.model_copy(update={'method': changes.pop('method')})
    return Attributor(bench.subject.module, bench.subject.codec, bench.attributor.store,
                      recipe=recipe.model_copy(update=changes))


def ways(bench: Bench, out: Path) -> tp.Dict[str, FloatArray]:
    """Rankings [Q, N] by the ways that were tried, by name."""
    pieces = [bench.subject.query_of(piece, bench.unlearner.recipe) for piece in bench.pieces]
    makers: tp.Dict[str, tp.Callable[[], tp.Dict[str, FloatArray]]] = {
        name: lambda keys=changes: by_channel(with_recipe(bench, **keys), bench) for name, changes in (
            ('kernel', {}), ('cosine', {'method': 'cosine'}), ('kernel, last checkpoint', {'checkpoints': 'last'}))}
    makers['sketches'] = lambda: {'all': bench.subject.sketches(bench.unlearner, progress_bar).scores(pieces)}
    makers['linearised'] = lambda: {'all': bench.unlearner.linearised(pieces)}

    def make(some: tp.Sequence[str]) -> tp.Dict[str, FloatArray]:
        return {channel: rows[None] for channel, rows in makers[some[0]]().items()}
    z = {name: {channel: np.stack([standardised_scores(row) for row in rows[0]]) for channel, rows in
                kept_parts(out / 'kept', bench.facts(f'ways, {name}'), [name], make, name).items()} for name in makers}
    found = {}
    for name in ('kernel', 'cosine', 'kernel, last checkpoint'):
        p, m = z[name]['P'], z[name]['M']
        found.update({f'fingerprints P + M, {name}': p + m, f'P, {name}': p, f'M, {name}': m,
                      f'the higher of P and M, {name}': np.maximum(p, m)})
    both = np.stack([standardised_scores(row) for row in found['fingerprints P + M, kernel']])
    near, flat = z['sketches']['all'], z['linearised']['all']
    return {**found, 'sketches of the first order': near,
            'sketches and fingerprints P + M, kernel (taken)': near + both, 'first order, gradients whole': flat,
            'first order, gradients whole, and fingerprints P + M, kernel': flat + both}


def recalls(exact: FloatArray, found: tp.Mapping[str, FloatArray]) -> str:
    """How much of the exact top 10 shortlists hold, by way and length."""
    head = ['ranking', *(f'{part:.0%} of the songs' for part in PARTS)]
    return table(head, [[name, *(f'{recall(exact, rows, part):.3f}' for part in PARTS)]
                        for name, rows in found.items()])
