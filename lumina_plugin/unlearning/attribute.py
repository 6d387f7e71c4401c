"""`lumina unlearn attribute`: recordings or generations against all training songs, or against a shortlist."""

import dataclasses
import math
import typing as tp
from pathlib import Path

import numpy as np

from ..atomic import write_atomic
from ..errors import LuminaError
from ..hashing import state_hash
from ..prepared import progress_bar
from ..statistics import standardised_scores
from ..validation.results import kept_each, png, save, table
from .kept import songs_hash
from .masks import Piece
from .recipe import UnlearningRecipe
from .scoring import FloatArray, Unlearner
from .subject import Subject

SHORT = 0.05  # of the songs
SHOWN = 20
TOGETHER = 16  # queries that one pass over the songs answers, and that a stop can cost


@dataclasses.dataclass(frozen=True)
class Answer:
    """One query's scores.

    Args:
        query (str): Its name. songs (list of str): Ids, [N]. titles (list): [N].
        scores (array): How much each song's loss rose, in `unit`, [N]; NaN where a song was not asked about.
        lr, relative, before, after (float): The step; lengths and the query's loss.
        recipe (UnlearningRecipe): Every key. shortlist (int): How many songs were asked about.
    """
    query: str
    songs: tp.List[str]
    titles: tp.List[tp.Optional[str]]
    scores: FloatArray
    lr: float
    relative: float
    before: float
    after: float
    recipe: UnlearningRecipe
    shortlist: int
    unit: str = 'nats per code'

    @property
    def order(self) -> tp.List[int]:
        """Songs that were asked about, the one that lost most first."""
        asked = np.flatnonzero(np.isfinite(self.scores))
        return [int(i) for i in asked[np.argsort(-self.scores[asked], kind='stable')]]


def shortlists(attributor: tp.Any, subject: Subject, pieces: tp.Sequence[Piece], part: float = SHORT,
               first_order: tp.Optional[FloatArray] = None) -> tp.List[tp.List[int]]:
    """Of each query, the songs that fingerprints and the first order of unlearning together put highest.

    Both are standardised over the songs and added: each finds songs that the other misses (docs/unlearning.md).

    Args:
        attributor (optional): With a store of the same songs. part (float): Of the songs, at least ten.
        first_order (array, optional): `Sketches.scores` of the queries, [Q, N].
    Raises:
        LuminaError: when the store lacks a song.
    """
    ranked = np.zeros((len(pieces), len(subject.songs)))
    if attributor is not None:
        ranked += [standardised_scores(row) for row in _by_fingerprints(attributor, subject, pieces)]
    if first_order is not None:
        ranked += [standardised_scores(row) for row in first_order]
    count = min(ranked.shape[1], max(10, math.ceil(part * ranked.shape[1])))
    return [[int(i) for i in np.argsort(-row, kind='stable')[:count]] for row in ranked]


def _by_fingerprints(attributor: tp.Any, subject: Subject, pieces: tp.Sequence[Piece]) -> tp.Iterator[FloatArray]:
    """Fingerprint scores [N] of each query, channels together."""
    place = {song: column for column, song in enumerate(attributor.song_ids)}
    missing = [song.id for song in subject.songs if song.id not in place]
    if missing:
        raise LuminaError(f"The store has no fingerprint of {missing[0]}; fingerprint the whole catalogue with `lumina "
                          "fingerprint`, or leave --fast away.")
    order = [place[song.id] for song in subject.songs]
    for piece in pieces:
        by_channel = subject.fingerprint_scores(attributor, piece)
        yield np.sum([standardised_scores(rows[order]) for rows in by_channel.values()], axis=0)


def attribute(subject: Subject, recipe: UnlearningRecipe, pieces: tp.Sequence[Piece], out: Path,
              attributor: tp.Any = None, fisher: tp.Optional[Path] = None,
              part: float = SHORT, sketched: bool = False) -> tp.List[Answer]:
    """Forget each query and score the songs; what an earlier call has finished is read,
    whichever queries that was asked about.

    Args:
        pieces (sequence of Piece): Queries. attributor (optional): Score a shortlist alone, by its fingerprints.
        sketched (bool): Score a shortlist alone, by `Subject.sketches` as well, or without an attributor by those.
        fisher (Path, optional): A file of Fisher information to use.
    """
    if not pieces:
        raise LuminaError("There is no query; name at least one recording.")
    names = [piece.id for piece in pieces]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LuminaError(f"Two recordings are called {twice}, and so would be their results; rename one of them.")
    opened: tp.List[Unlearner] = []

    def make(some: tp.Sequence[Piece]) -> tp.Dict[str, FloatArray]:
        if not opened:
            opened.append(subject.unlearner(recipe, progress_bar, fisher))
        queries = [subject.query_of(piece, recipe) for piece in some]
        among = None
        if attributor is not None or sketched:
            near = subject.sketches(opened[0], progress_bar).scores(queries) if sketched else None
            among = shortlists(attributor, subject, some, part, near)
        found = opened[0].scores(queries, among)
        return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    settings = {'recipe': recipe.hash, 'model': state_hash(subject.weights), 'songs': songs_hash(subject.songs),
                'fast': [None if attributor is None else attributor.store.hash, sketched], 'part': part}
    keys = [songs_hash([Piece('', piece.examples)]) for piece in pieces]  # by content: names may change
    kept = kept_each(out / 'kept', settings, dict(zip(keys, pieces, strict=True)), make, 'unlearning', TOGETHER)
    ids = [song.id for song in subject.songs]
    titles = [subject.titles.get(one) for one in ids]
    return [_answer(piece.id, ids, titles, kept[key], recipe, subject.unit)
            for key, piece in zip(keys, pieces, strict=True)]


def _answer(query: str, ids: tp.List[str], titles: tp.List[tp.Optional[str]], kept: tp.Mapping[str, FloatArray],
            recipe: UnlearningRecipe, unit: str) -> Answer:
    facts = {name: float(kept[name]) for name in ('lr', 'relative', 'before', 'after')}
    return Answer(query, ids, titles, kept['scores'], recipe=recipe, unit=unit,
                  shortlist=int(np.isfinite(kept['scores']).sum()), **facts)


def markdown(answer: Answer) -> str:
    """The songs that lost most, and what was done."""
    rows = [[rank, answer.titles[i] or answer.songs[i], answer.songs[i], f'{answer.scores[i]:+.4f}']
            for rank, i in enumerate(answer.order[:SHOWN], start=1)]
    text = f'# {answer.query}\n\n' + table(['rank', 'song', 'id', f'rise of the loss, {answer.unit}'], rows)
    text += (f"\nForgetting it raised its own loss from {answer.before:.3f} to {answer.after:.3f} {answer.unit} by a "
             f"step of lr {answer.lr:.3g}, {answer.relative:.3g} of the weights' length "
             f"({answer.recipe.layers}; {answer.recipe.fisher} Fisher information; mask {answer.recipe.mask}). ")
    if answer.shortlist < len(answer.songs):
        text += f'Only the {answer.shortlist} songs of its shortlist were asked about. '
    return text + ('A song whose loss rises has lost what it shares with the query; how large a rise is chance, this '
                   'score does not say.\n')


def save_answer(out: Path, answer: Answer) -> Path:
    """Write NAME.md, NAME.json, NAME.png and NAME.csv into `<out>/attribute/NAME`."""
    import csv
    import io
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(['rank', 'song', 'title', 'loss_rise'])
    writer.writerows([rank, answer.songs[i], answer.titles[i] or '', f'{answer.scores[i]:.8g}']
                     for rank, i in enumerate(answer.order, start=1))
    data = {**vars(answer), 'recipe': answer.recipe.model_dump()}
    folder = save(out / 'attribute', answer.query, markdown(answer), data, _picture(answer))
    write_atomic(folder / f'{answer.query}.csv', text.getvalue())
    return folder


def _picture(answer: Answer) -> bytes:
    """Bars of the songs that lost most, and beside them where all songs lie."""
    from matplotlib.figure import Figure
    top = answer.order[:SHOWN]
    figure = Figure(figsize=(9, 1.4 + 0.26 * len(top)), layout='constrained')
    bars, strip = figure.subplots(1, 2, width_ratios=[3, 1])
    bars.barh(range(len(top))[::-1], answer.scores[top], color='#1d3557')
    bars.set_yticks(range(len(top))[::-1], [_label(answer, i) for i in top], fontsize=8)
    bars.axvline(0, color='0.4', linewidth=1)
    bars.set_xlabel(f'rise of the loss, {answer.unit}', fontsize=9)
    everything = answer.scores[np.isfinite(answer.scores)]
    strip.hist(everything, bins=min(40, max(5, len(everything) // 4)), color='#8aa4c8')
    strip.set_title(f'all {len(everything)} songs', fontsize=9)
    strip.set_xlabel(answer.unit, fontsize=9)
    for axis in (bars, strip):
        axis.tick_params(labelsize=8)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    figure.suptitle(f'Who loses most when {answer.query} is forgotten', fontsize=10)
    return png(figure)


def _label(answer: Answer, i: int) -> str:
    text = answer.titles[i] or answer.songs[i]
    return (text if len(text) <= 34 else text[:33] + '…').replace('$', r'\$')  # no mathematics in titles
