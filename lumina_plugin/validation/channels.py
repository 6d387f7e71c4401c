"""`lumina validate channels`: does channel P find compositions, and channel M productions?

Crossed songs that nothing was fitted on are compared with each other in several ways: by the fingerprints of a store as
it stands, by whole gradients, and by either after a separation. The table says what each way finds, and with a ground
truth of the run also what a separation costs: how well scores still foretell what retraining does.
"""

import dataclasses
import os
import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from .. import separation
from ..catalogue_pass import run_songs
from ..codec import codec_hash
from ..embedded.crossed import crossed_songs
from ..errors import LuminaError
from ..fingerprint import Fingerprinter, spread
from ..gradients import Example
from ..models import load_musicgen, run_folder, run_stores
from ..pairs import Maker, Recordings, joined_rows
from ..prepared import progress_bar
from ..projection import ChannelProjection, unit_rows
from ..recipe import recipe_from_dict
from ..separation import KEEPS, Separation
from ..store import CheckpointInfo, FingerprintStore
from ..tokens import Tokenizer
from .channel_table import BEST, OWN, RENDERED, STANDING, Row, Table
from .lds import HalfLosses, half_losses, interval, lds
from .retrieval import retrieval
from .truth import FloatArray, GroundTruth

FIT = (16, 6)  # rendered compositions and productions to fit on
FAMILIES = (('free', 'free generations'), ('continued', 'continuations, prompt masked'), ('heldout', 'held-out songs'))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many songs of the catalogue are changed, and how often; compositions and productions that are measured."""
    songs: int = 96
    changes: int = 6
    compositions: int = 12
    productions: int = 8


@dataclasses.dataclass(frozen=True)
class _Songs:
    """Everything that is compared or fitted on, and the labels of the two grids."""
    test: Recordings
    rendered: Recordings
    changed: tp.Dict[str, Recordings]  # by what is kept
    excerpts: Recordings
    labels: tp.Dict[str, tp.Dict[str, npt.NDArray[np.int64]]]  # of a part, by 'composition' and 'production'
    truth: tp.Dict[str, tp.List[Example]]  # 'queries' and the 'catalogue' that retraining was about, if it is known


class _Scores(tp.NamedTuple):
    """Cosines among the crossed songs, of excerpts with their songs, and of a truth's queries with its songs."""
    crossed: FloatArray
    excerpts: FloatArray
    queries: FloatArray


def measure(run: tp.Union[str, Path], folder: tp.Union[str, Path], store: tp.Optional[tp.Union[str, Path]] = None,
            sizes: Sizes = Sizes(), every: bool = False, keep: bool = False,
            truth: tp.Optional[GroundTruth] = None) -> Table:
    """Measure a run's channels, as they are and separated.

    Args:
        run (path): Folder or signature of a finished dora run. folder (path): Where codes are remembered.
        store (path): Of the run; its first one unless given. sizes (Sizes): How much is rendered and changed.
        every (bool): Mean over every checkpoint of the store, as it serves; else the last one alone.
        keep (bool): Write the separations that were fitted on own songs beside the store.
        truth (GroundTruth, optional): Of the run; what a separation costs is measured by it.
    Raises:
        LuminaError: when there is no such run or store, the truth is another run's, or neither channel P nor M is
            there.
    """
    found = run_folder(run)
    if found is None or not (store or run_stores(found)):
        raise LuminaError(f"{run} is no dora run with fingerprints; name one, or fingerprint it by `lumina "
                          "fingerprint`.")
    opened = FingerprintStore.open(store or run_stores(found)[0])
    checkpoints = [info for info in opened.checkpoints if info.complete]
    channels = [channel for channel in KEEPS if channel in opened.channels]
    if not checkpoints or not channels:
        raise LuminaError(f"Store {opened.path} has no finished checkpoint, or neither channel P nor M; finish it by "
                          "`lumina fingerprint`.")
    if truth is not None and truth.facts['run'] != found.name:
        raise LuminaError(f"The ground truth is of run {truth.facts['run']}, not of {found.name}; name that run, or "
                          "another folder by --out.")
    musicgen = load_musicgen(found)
    songs = _recordings(musicgen, opened, found, Path(folder) / 'codes', sizes, truth)
    sums: tp.Dict[tp.Tuple[str, str], _Scores] = {}
    fitted: tp.Dict[tp.Tuple[str, str], Separation] = {}
    used = checkpoints if every else checkpoints[-1:]
    for info in used:
        for key, one, separated in _compared(musicgen, opened, info, channels, songs):
            sums[key] = _Scores(*(a + b for a, b in zip(sums[key], one, strict=True))) if key in sums else one
            if key[0] == BEST and separated is not None:
                fitted[info.name, key[1]] = separated
    if keep:
        separation.save(separation.separation_file(opened.path), fitted, {'recipe_hash': opened.identity.recipe_hash})
    halves = {} if truth is None else {
        title: half_losses(truth, truth.columns(family), family == 'continued') for family, title in FAMILIES}
    rows = [_row(way, channel, one, songs, halves) for (way, channel), one in sums.items()]
    rows.sort(key=lambda row: channels.index(row.channel))
    return Table(rows, {
        'run': found.name, 'store': opened.path.name, 'checkpoints': ', '.join(info.name for info in used),
        'measured on': f'{sizes.compositions} compositions in {sizes.productions} productions',
        OWN: f"{len(set(songs.excerpts.songs.tolist()))} songs, each changed {sizes.changes} times per channel",
        RENDERED: f'{FIT[0]} other compositions in {FIT[1]} other productions',
        "the store's projection": recipe_from_dict(opened.identity.recipe).describe()['projection.kind'],
        'numbers kept on each side of a weight': opened.identity.recipe['projection'].get('block_width') or 'all',
        'rank': separation.RANK, 'shrinkage': separation.SHRINKAGE, 'machine': f'{os.cpu_count()} CPU cores'})


def _recordings(musicgen: tp.Any, store: FingerprintStore, run: Path, cache: Path, sizes: Sizes,
                truth: tp.Optional[GroundTruth]) -> _Songs:
    recipe, codec = recipe_from_dict(store.identity.recipe), musicgen.compression_model
    tokenizer = Tokenizer(codec, codec_hash(codec), recipe.chunk_seconds, recipe.silence_db)
    maker = Maker(tokenizer, musicgen.lm, cache)
    known = {track.id for track in store.tracks if track.status == 'ok'}
    own = spread([track for track in run_songs(run) if track.id in known], sizes.songs)
    test = crossed_songs('test', sizes.compositions, sizes.productions)
    fit = crossed_songs('fit', *FIT)
    labels = {part: {'composition': np.array([song.composition for song in grid]),
                     'production': np.array([song.production for song in grid])}
              for part, grid in (('test', test), ('fit', fit))}
    changed = {kept: maker.changed(own, kept, sizes.changes) for kept in KEEPS.values()}
    return _Songs(maker.crossed(progress_bar(test, 'crossed songs', len(test))),
                  maker.crossed(progress_bar(fit, 'crossed songs to fit on', len(fit))), changed,
                  maker.excerpts(own), labels, {} if truth is None else _asked(truth, musicgen.lm))


def _asked(truth: GroundTruth, lm: tp.Any) -> tp.Dict[str, tp.List[Example]]:
    """Queries of all families, one after the other, and the songs in the truth's order."""
    place = {truth.queries[column].source: column for column in truth.columns('songs')}
    return {'queries': [truth.queries[column].example(lm, True) for family, _ in FAMILIES
                        for column in truth.columns(family)],
            'catalogue': [truth.queries[place[song]].example(lm, True) for song in truth.songs]}


def _compared(musicgen: tp.Any, store: FingerprintStore, info: CheckpointInfo, channels: tp.Sequence[str],
              songs: _Songs) -> tp.Iterator[tp.Tuple[tp.Tuple[str, str], _Scores, tp.Optional[Separation]]]:
    """Scores of one checkpoint by (way, channel), and the separation that made them."""
    recipe = recipe_from_dict(store.identity.recipe)
    recipe = recipe.model_copy(update={'channels': {channel: recipe.channels[channel] for channel in channels}})
    fingerprinter = Fingerprinter(musicgen.lm, recipe, store.load_weights(info) if info.weights else None)
    projections = {}
    for channel, blocks in fingerprinter.channels.items():
        tensors, facts = store.projection(info.name, channel)
        projections[channel] = ChannelProjection.load(blocks, tensors, facts, recipe.block_norm, fingerprinter.device)
    wanted = {'test': songs.test.examples, 'rendered': songs.rendered.examples, 'excerpts': songs.excerpts.examples,
              **{KEEPS[channel]: songs.changed[KEEPS[channel]].examples for channel in channels}, **songs.truth}
    reducers = {channel: one.reducers for channel, one in projections.items()}
    rows = {part: joined_rows(fingerprinter, reducers, one, f'{info.name}, {part}') for part, one in wanted.items()}
    for channel in channels:
        kept, project = KEEPS[channel], projections[channel].projection
        parts = {part: rows[part][channel] for part in ('test', 'rendered', 'excerpts', kept, *songs.truth)}
        first = np.unique(songs.changed[kept].songs, return_index=True)[1]  # each song as it is
        fingerprints = {part: project(one) for part, one in parts.items()}
        for name, numbers in ((STANDING, fingerprints), ('gradients', parts)):
            ways: tp.List[tp.Tuple[str, tp.Optional[Separation]]] = [(name, None)]
            groups = {OWN: (kept, songs.changed[kept].songs), RENDERED: ('rendered', songs.labels['fit'][kept])}
            ways += [(f'{name}, separated by {source}', Separation.fit(numbers[part], labels))
                     for source, (part, labels) in groups.items()]
            for way, separated in ways:
                of = {part: one if separated is None else separated(one) for part, one in numbers.items()}
                told = _cosines(of['queries'], of['catalogue']) if songs.truth else np.zeros((0, 0))
                yield (way, channel), _Scores(_cosines(of['test'], of['test']),
                                              _cosines(of['excerpts'], of[kept][torch.from_numpy(first)]),
                                              told), separated


def _cosines(first: torch.Tensor, second: torch.Tensor) -> FloatArray:
    return (unit_rows(first.double()) @ unit_rows(second.double()).T).numpy()


def _row(way: str, channel: str, scores: _Scores, songs: _Songs, halves: tp.Mapping[str, HalfLosses]) -> Row:
    labels = songs.labels['test']
    found = retrieval(scores.crossed, labels['composition'], labels['production']).figures(KEEPS[channel])
    of = np.unique(songs.changed[KEEPS[channel]].songs)  # numbers of the songs that excerpts are compared with
    itself = of[scores.excerpts.argmax(1)] == songs.excerpts.songs
    ends = np.cumsum([half.losses.shape[1] for half in halves.values()], dtype=np.int64)[:-1]
    foretold = {title: interval(lds(part, half)) for (title, half), part
                in zip(halves.items(), np.split(scores.queries, ends), strict=False)}
    return Row(way, channel, found, float(itself.mean()), foretold)
