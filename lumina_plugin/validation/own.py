"""`lumina validate self`: does a song that the model was trained on find itself?

The least that can be asked of a store: the query is the song's own beginning, encoded and read as in training.
"""

import typing as tp
from pathlib import Path

from ..fingerprint import spread
from .causal import Found, found
from .opened import Opened, kept_scores
from .results import Panel, dots, save, table

WORST = 5  # songs that are named


def measure(opened: Opened, count: tp.Optional[int] = None) -> tp.List[Found]:
    """Rank songs of a run by their own queries, by every store of the run: all, or `count` spread over them."""
    queries = opened.songs if count is None else spread(opened.songs, count)
    return [found(opened.title, method.name, channel, 'none', scores, queries, opened.ids)
            for method in opened.methods()
            for channel, scores in kept_scores(method, queries, False, opened).items()]


def worst(row: Found) -> tp.List[tp.Tuple[str, float]]:
    """The songs that are found last, with their ranks, the worst first; of those that do not find themselves first."""
    behind = sorted(((song, rank) for song, rank in row.ranks.items() if rank > 1), key=lambda one: (-one[1], one[0]))
    return behind[:WORST]


def markdown(rows: tp.Sequence[Found]) -> str:
    """One table per run."""
    parts = []
    for run in dict.fromkeys(row.run for row in rows):
        own = [row for row in rows if row.run == run]
        parts.append(f"## {run}\n\nThe beginnings of {len(own[0].ranks)} training songs as queries; {own[0].songs} "
                     "songs.\n")
        parts.append(table(
            ['store', 'channel', 'itself first', 'reciprocal rank', 'mean rank', 'worst rank', 'worst songs (rank)'],
            [[row.method, row.channel, row.first, row.reciprocal, f'{row.mean:.2f}', f'{max(row.ranks.values()):g}',
              ', '.join(f'{song} ({rank:g})' for song, rank in worst(row)) or '–'] for row in own]))
    return '\n'.join(parts)


def save_self(out: tp.Union[str, Path], rows: tp.Sequence[Found]) -> Path:
    """Write `self.md`, `self.json` and `self.png`."""
    labels = [f'{row.run} · {row.method} · {row.channel}' for row in rows]
    picture = dots(labels, [Panel('song finds itself first', [row.first for row in rows]),
                            Panel('mean reciprocal rank', [row.reciprocal for row in rows])],
                   "training songs as queries, with 95 % interval")
    data = [{**vars(row), 'mean': row.mean, 'worst': worst(row)} for row in rows]
    return save(out, 'self', markdown(rows), data, picture)
