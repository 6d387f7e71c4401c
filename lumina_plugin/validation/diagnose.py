"""`lumina validate diagnose`: do the scores of reports tell queries apart? The figures are those of `reliability`."""

import dataclasses
import io
import typing as tp
from pathlib import Path

import numpy as np

from ..atomic import write_atomic, write_json
from ..errors import LuminaError
from ..reliability import TOP, Diagnosis
from ..report.schema import AttributionReport
from .truth import FloatArray


@dataclasses.dataclass(frozen=True)
class ChannelScores:
    """What reports say of one channel: scores and shares [Q, N], with the ids of the queries and the songs."""
    queries: tp.List[str]
    songs: tp.List[str]
    titles: tp.List[str]
    scores: FloatArray
    shares: FloatArray


def scores_of(paths: tp.Sequence[tp.Union[str, Path]]) -> tp.Dict[str, ChannelScores]:
    """Gather the scores of reports, by channel.

    Args:
        paths (sequence of path): report.json files, or folders that hold such anywhere below them.
    Raises:
        LuminaError: where there is no report, or they are of different stores or recipes.
    """
    files = [file for path in map(Path, paths) for file in (sorted(path.rglob('report.json')) if path.is_dir()
                                                            else [path])]
    if not files:
        raise LuminaError(f"There is no report.json below {', '.join(map(str, paths))}; make some with `lumina "
                          "attribute` or `lumina generate`.")
    reports = [AttributionReport.load(file) for file in files]
    for file, report in zip(files, reports, strict=True):
        if (report.store.hash, report.recipe.hash) != (reports[0].store.hash, reports[0].recipe.hash):
            raise LuminaError(f"{file} is of another store or recipe than {files[0]}: diagnose the reports of one at a "
                              "time.")
    found = {}
    for channel, first in reports[0].channels.items():
        songs = sorted(row.track_id for row in first.rows)
        titles = {row.track_id: row.title for row in first.rows}
        rows = [{row.track_id: row for row in report.channels[channel].rows} for report in reports]
        found[channel] = ChannelScores(
            [report.query.id for report in reports], songs, [titles[song] for song in songs],
            np.array([[by_song[song].score for song in songs] for by_song in rows]),
            np.array([[by_song[song].share for song in songs] for by_song in rows]))
    return found


def markdown(found: tp.Mapping[str, Diagnosis]) -> str:
    """A table of diagnoses by channel, and what their figures mean."""
    lines = ['| | ' + ' | '.join(found) + ' | what it says |', '|---|' + '---|' * (len(found) + 1)]
    for key, title, meaning in _MEANINGS:
        cells = [f'{getattr(one, key):.2f}' for one in found.values()]
        lines.append(f"| {title} | {' | '.join(cells)} | {meaning} |")
    for channel, one in found.items():
        hubs = ', '.join(f'{song} ({often} of {one.queries})' for song, often in one.hubs)
        lines.append(f'\nMost often among the first {TOP} in channel {channel}: {hubs}.')
    return '\n'.join(lines) + '\n'


_MEANINGS = (
    ('ranking_correlation', 'correlation of rankings', '1: every query has the same ranking; 0: each its own'),
    ('rank_one_energy', 'rank-1 energy', 'what one pattern explains of all scores; 1: queries differ in nothing else'),
    ('effective_rank', 'effective rank', 'how many different patterns there are'),
    ('concentration', 'largest share', 'paid to the first song, on average'),
    ('hub_skewness', 'skewness of hubs', 'about 0: all songs are found alike often; above 5: a few for everything'))


def save(folder: tp.Union[str, Path], scores: tp.Mapping[str, ChannelScores], found: tp.Mapping[str, Diagnosis]
         ) -> Path:
    """Write `diagnose.md`, `diagnose.json` and `diagnose.png`."""
    folder = Path(folder)
    write_json(folder / 'diagnose.json', {channel: dataclasses.asdict(one) for channel, one in found.items()})
    write_atomic(folder / 'diagnose.md', markdown(found))
    write_atomic(folder / 'diagnose.png', _picture(scores))
    return folder


def _picture(scores: tp.Mapping[str, ChannelScores]) -> bytes:
    """Every query's standardised scores as a map: vertical stripes are songs that are found for everything."""
    from matplotlib.figure import Figure

    from ..statistics import standardised_scores
    queries = len(next(iter(scores.values())).queries)
    figure = Figure(figsize=(10, 1.6 + len(scores) * (0.6 + min(4., 0.14 * queries))), layout='constrained')
    axes = np.atleast_1d(figure.subplots(len(scores), 1))
    image: tp.Any = None
    for axis, (channel, one) in zip(axes, scores.items(), strict=True):
        order = np.argsort(-one.scores.mean(0), kind='stable')
        values = np.stack([standardised_scores(row) for row in one.scores])[:, order]
        image = axis.imshow(values, aspect='auto', cmap='viridis', vmin=-2, vmax=4, interpolation='nearest')
        axis.set_title(f'Channel {channel}', fontsize=10, loc='left')
        axis.set_ylabel('query', fontsize=9)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel('song, those that are found most first', fontsize=9)
    figure.colorbar(image, ax=list(axes), label='STS', fraction=0.03)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    return buffer.getvalue()
