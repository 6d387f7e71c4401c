"""`lumina validate channels`: does channel P find compositions, and channel M productions?

Crossed songs that nothing was fitted on are compared with each other in several ways: by the fingerprints of a store as
it stands, by whole gradients, and by either after a separation. The table says what each way finds.
"""

import dataclasses
import os
import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from .. import separation
from ..atomic import write_atomic, write_json
from ..catalogue_pass import run_songs
from ..codec import codec_hash
from ..embedded.crossed import crossed_songs
from ..errors import LuminaError
from ..fingerprint import Fingerprinter, Song, spread
from ..gradients import Example
from ..models import load_musicgen, run_folder, run_stores
from ..pairs import Maker, Recordings
from ..prepared import progress_bar
from ..projection import ChannelProjection, unit_rows
from ..recipe import recipe_from_dict
from ..separation import KEEPS, ChannelFigures, Separation
from ..store import CheckpointInfo, FingerprintStore
from ..tokens import Tokenizer
from .retrieval import retrieval
from .truth import FloatArray

OWN, RENDERED = 'own songs changed', 'rendered songs'
STANDING, BEST = "the store's fingerprints", f'gradients, separated by {OWN}'
FIT = (16, 6)  # rendered compositions and productions to fit on


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many songs of the catalogue are changed, and how often; compositions and productions that are measured."""
    songs: int = 96
    changes: int = 6
    compositions: int = 12
    productions: int = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """What one way of one channel finds.

    Args:
        way (str): How songs are compared. channel (str): 'P' or 'M'. figures (ChannelFigures): On crossed songs.
        itself (float): Share of the catalogue's songs that an excerpt of theirs finds first among all of these.
    """
    way: str
    channel: str
    figures: ChannelFigures
    itself: float

    @property
    def ratio(self) -> float:
        """How many times better it finds what it is to find; infinite where the other is not found at all."""
        other = self.figures.other.mean
        return self.figures.kept.mean / other if other > 0 else float('inf')


@dataclasses.dataclass(frozen=True)
class Table:
    """All ways of both channels, with facts of what was measured."""
    rows: tp.List[Row]
    facts: tp.Dict[str, tp.Any]

    def figures(self, way: str) -> tp.Dict[str, ChannelFigures]:
        """By channel, what `separation.verdict` takes."""
        return {row.channel: row.figures for row in self.rows if row.way == way}

    def markdown(self) -> str:
        """The table as text, and what it means."""
        lines = ['| channel | compared by | same composition | same production | ratio | separated | itself first |',
                 '|---|---|---|---|---|---|---|']
        for row in self.rows:
            kept, other = str(row.figures.kept), str(row.figures.other)
            first, second = (kept, other) if KEEPS[row.channel] == 'composition' else (other, kept)
            lines.append(f"| {row.channel} | {row.way} | {first} | {second} | {row.ratio:.2g} | "
                         f"{'yes' if row.figures.separated else 'no'} | {row.itself:.0%} |")
        told = '\n'.join(f'- {name}: {value}' for name, value in self.facts.items())
        ways = [(way, self.figures(way)) for way in (STANDING, BEST)]
        words = '\n\n'.join(f'With {way}: {separation.verdict(found)}' for way, found in ways if found)
        return '\n'.join(lines) + f'\n\n{words}\n\n{told}\n'

    def as_json(self) -> tp.Dict[str, tp.Any]:
        """The table as plain data."""
        def plain(figures: ChannelFigures) -> tp.Dict[str, tp.Dict[str, float]]:
            return {name: one._asdict() for name, one in figures._asdict().items()}
        rows = [{'way': row.way, 'channel': row.channel, 'keeps': KEEPS[row.channel], **plain(row.figures),
                 'separated': row.figures.separated, 'itself': row.itself} for row in self.rows]
        return {'facts': self.facts, 'rows': rows,
                'verdict': {way: separation.verdict(self.figures(way)) for way in (STANDING, BEST)}}

    def save(self, folder: tp.Union[str, Path]) -> Path:
        """Write `channels.md`, `channels.json` and `channels.png`."""
        folder = Path(folder)
        write_json(folder / 'channels.json', self.as_json())
        write_atomic(folder / 'channels.md', self.markdown())
        write_atomic(folder / 'channels.png', _picture(self))
        return folder


@dataclasses.dataclass(frozen=True)
class _Songs:
    """Everything that is compared or fitted on, and the labels of the two grids."""
    test: Recordings
    rendered: Recordings
    changed: tp.Dict[str, Recordings]  # by what is kept
    excerpts: Recordings
    labels: tp.Dict[str, tp.Dict[str, npt.NDArray[np.int64]]]  # of a part, by 'composition' and 'production'


def measure(run: tp.Union[str, Path], folder: tp.Union[str, Path], store: tp.Optional[tp.Union[str, Path]] = None,
            sizes: Sizes = Sizes(), every: bool = False, keep: bool = False) -> Table:
    """Measure a run's channels, as they are and separated.

    Args:
        run (path): Folder or signature of a finished dora run. folder (path): Where codes are remembered.
        store (path): Of the run; its first one unless given. sizes (Sizes): How much is rendered and changed.
        every (bool): Mean over every checkpoint of the store, as it serves; else the last one alone.
        keep (bool): Write the separations that were fitted on own songs beside the store.
    Raises:
        LuminaError: when there is no such run or store, or it has neither channel P nor M.
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
    musicgen = load_musicgen(found)
    songs = _recordings(musicgen, opened, found, Path(folder) / 'codes', sizes)
    sums: tp.Dict[tp.Tuple[str, str], tp.Tuple[FloatArray, FloatArray]] = {}
    fitted: tp.Dict[tp.Tuple[str, str], Separation] = {}
    used = checkpoints if every else checkpoints[-1:]
    for info in used:
        for key, one, separated in _compared(musicgen, opened, info, channels, songs):
            before = sums.get(key, (np.zeros(()), np.zeros(())))
            sums[key] = before[0] + one[0], before[1] + one[1]
            if key[0] == BEST and separated is not None:
                fitted[info.name, key[1]] = separated
    if keep:
        separation.save(separation.separation_file(opened.path), fitted, {'recipe_hash': opened.identity.recipe_hash})
    rows = [_row(way, channel, one, songs) for (way, channel), one in sums.items()]
    rows.sort(key=lambda row: channels.index(row.channel))
    return Table(rows, {
        'run': found.name, 'store': opened.path.name, 'checkpoints': ', '.join(info.name for info in used),
        'measured on': f'{sizes.compositions} compositions in {sizes.productions} productions',
        OWN: f"{len(set(songs.excerpts.songs.tolist()))} songs, each changed {sizes.changes} times per channel",
        RENDERED: f'{FIT[0]} other compositions in {FIT[1]} other productions',
        'rank': separation.RANK, 'shrinkage': separation.SHRINKAGE, 'machine': f'{os.cpu_count()} CPU cores'})


def _recordings(musicgen: tp.Any, store: FingerprintStore, run: Path, cache: Path, sizes: Sizes) -> _Songs:
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
    changed = {kept: maker.changed(progress_bar(own, f'songs with the same {kept}', len(own)), kept, sizes.changes)
               for kept in KEEPS.values()}
    return _Songs(maker.crossed(progress_bar(test, 'crossed songs', len(test))),
                  maker.crossed(progress_bar(fit, 'crossed songs to fit on', len(fit))), changed,
                  maker.excerpts(own), labels)


def _compared(musicgen: tp.Any, store: FingerprintStore, info: CheckpointInfo, channels: tp.Sequence[str],
              songs: _Songs) -> tp.Iterator[tp.Tuple[tp.Tuple[str, str], tp.Tuple[FloatArray, FloatArray],
                                                     tp.Optional[Separation]]]:
    """Of one checkpoint, by (way, channel): cosines among the crossed songs, and of excerpts with their songs."""
    recipe = recipe_from_dict(store.identity.recipe)
    recipe = recipe.model_copy(update={'channels': {channel: recipe.channels[channel] for channel in channels}})
    fingerprinter = Fingerprinter(musicgen.lm, recipe, store.load_weights(info) if info.weights else None)
    projections = {}
    for channel, blocks in fingerprinter.channels.items():
        tensors, facts = store.projection(info.name, channel)
        projections[channel] = ChannelProjection.load(blocks, tensors, facts, recipe.block_norm, fingerprinter.device)
    wanted = {'test': songs.test, 'rendered': songs.rendered, 'excerpts': songs.excerpts,
              **{kept: songs.changed[kept] for kept in (KEEPS[channel] for channel in channels)}}
    rows = {part: _rows(fingerprinter, projections, one.examples, f'{info.name}, {part}')
            for part, one in wanted.items()}
    for channel in channels:
        kept, project = KEEPS[channel], projections[channel].projection
        parts = {part: rows[part][channel] for part in ('test', 'rendered', 'excerpts', kept)}
        first = np.unique(songs.changed[kept].songs, return_index=True)[1]  # each song as it is
        fingerprints = {part: project(one) for part, one in parts.items()}
        for name, numbers in ((STANDING, fingerprints), ('gradients', parts)):
            ways: tp.List[tp.Tuple[str, tp.Optional[Separation]]] = [(name, None)]
            groups = {OWN: (kept, songs.changed[kept].songs), RENDERED: ('rendered', songs.labels['fit'][kept])}
            ways += [(f'{name}, separated by {source}', Separation.fit(numbers[part], labels))
                     for source, (part, labels) in groups.items()]
            for way, separated in ways:
                of = {part: one if separated is None else separated(one) for part, one in numbers.items()}
                yield (way, channel), (_cosines(of['test'], of['test']),
                                       _cosines(of['excerpts'], of[kept][torch.from_numpy(first)])), separated


def _rows(fingerprinter: Fingerprinter, projections: tp.Mapping[str, ChannelProjection],
          examples: tp.Sequence[Example], label: str) -> tp.Dict[str, torch.Tensor]:
    """Joined gradients [n, R] of examples, by channel."""
    alone = [Song(str(number), [example]) for number, example in enumerate(examples)]
    windows = fingerprinter.windows(alone, {channel: one.reducers for channel, one in projections.items()})
    found: tp.Dict[str, tp.List[torch.Tensor]] = {channel: [] for channel in projections}
    bar = tp.cast(tp.Any, progress_bar(alone, label, len(alone)))
    for window in windows:
        for channel, rows in window.rows.items():
            found[channel].append(rows.cpu())
        bar.update(len(window.songs))
    bar.close()
    return {channel: torch.cat(parts) for channel, parts in found.items()}


def _cosines(first: torch.Tensor, second: torch.Tensor) -> FloatArray:
    return (unit_rows(first.double()) @ unit_rows(second.double()).T).numpy()


def _row(way: str, channel: str, scores: tp.Tuple[FloatArray, FloatArray], songs: _Songs) -> Row:
    labels = songs.labels['test']
    found = retrieval(scores[0], labels['composition'], labels['production']).figures(KEEPS[channel])
    of = np.unique(songs.changed[KEEPS[channel]].songs)  # numbers of the songs that excerpts are compared with
    itself = of[scores[1].argmax(1)] == songs.excerpts.songs
    return Row(way, channel, found, float(itself.mean()))


def _picture(table: Table) -> bytes:
    """Both APs of each way with their intervals, one panel per channel."""
    import io

    from matplotlib.figure import Figure
    channels = list(dict.fromkeys(row.channel for row in table.rows))
    ways = list(dict.fromkeys(row.way for row in table.rows))
    figure = Figure(figsize=(11, 1.2 + 0.5 * len(ways)), layout='constrained')
    axes = np.atleast_1d(figure.subplots(1, len(channels), sharey=True))
    for axis, channel in zip(axes, channels, strict=True):
        axis.axvline(0, color='0.8', linewidth=1)
        for row in (row for row in table.rows if row.channel == channel):
            place = len(ways) - 1 - ways.index(row.way)
            for one, shift, colour, label in ((row.figures.kept, .12, '#1d3557', KEEPS[channel]),
                                              (row.figures.other, -.12, '#c8553d',
                                               separation.OTHER[KEEPS[channel]])):
                axis.plot([one.low, one.high], [place + shift] * 2, color=colour, linewidth=2)
                axis.plot(one.mean, place + shift, 'o', color=colour, markersize=5,
                          label=f'same {label}' if row.way == ways[0] else None)
        axis.set_title(f'Channel {channel}', fontsize=10, loc='left')
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8, loc='lower right')
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(ways) - 1, -1, -1), ways, fontsize=8)
    figure.supxlabel('average precision, 0: chance, 1: perfect; with 95 % interval', fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    return buffer.getvalue()
