"""`lumina validate causal`: is the song that a continuation goes on from the one that is found?

The one kind of generation whose cause is known without retraining: a model that was given the first seconds of a song.
With the prompt masked only what the model made of it counts; with it counted, a part of the query is the song itself.
"""

import dataclasses
import typing as tp
from pathlib import Path

import numpy as np

from .black_boxes import CodeHistogram
from .lds import Interval, interval
from .methods import Method
from .opened import Continued, Opened, kept_scores
from .queries import Query
from .ranking import ranks_of
from .results import Panel, dots, save, table, wilson
from .truth import FloatArray

READINGS = {'masked': True, 'counted': False}  # of the prompt


@dataclasses.dataclass(frozen=True)
class Found:
    """Where a channel of a method ranks the songs that the queries come from.

    Args:
        run, method, channel, prompt (str): Whose ranks; how the prompt is read.
        songs (int): That they are ranked among. ranks (dict): By source; equal scores share the mean of their ranks.
        first (Interval): Share at rank 1, after Wilson. reciprocal (Interval): Mean reciprocal rank, by bootstrap.
    """
    run: str
    method: str
    channel: str
    prompt: str
    songs: int
    ranks: tp.Dict[str, float]
    first: Interval
    reciprocal: Interval

    @property
    def median(self) -> float:
        return float(np.median(list(self.ranks.values())))

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.ranks.values())))


def found(run: str, method: str, channel: str, prompt: str, scores: FloatArray, queries: tp.Sequence[Query],
          songs: tp.Sequence[str]) -> Found:
    """Ranks of the queries' sources by scores [Q, N] against songs [N]."""
    place = {song: column for column, song in enumerate(songs)}
    values = ranks_of(scores, [place[str(query.source)] for query in queries])
    return Found(run, method, channel, prompt, len(songs),
                 {str(query.source): float(rank) for query, rank in zip(queries, values, strict=True)},
                 wilson(int((values == 1).sum()), len(values)), interval(1 / values))


def measure(opened: Opened, prompt: Continued) -> tp.List[Found]:
    """Rank the source of each continuation by every store of a run, and by the codes alone."""
    queries = opened.continued(prompt)
    methods: tp.List[Method] = [*opened.methods(), CodeHistogram(opened.songs, opened.musicgen.lm.card)]
    rows = []
    for method in methods:
        for reading, masked in READINGS.items():
            by_channel = kept_scores(method, queries, masked, opened)
            rows += [found(opened.title, method.name, channel, reading, scores, queries, opened.ids)
                     for channel, scores in by_channel.items()]
    return rows


def markdown(rows: tp.Sequence[Found], prompt: Continued) -> str:
    """One table per run."""
    parts = []
    for run in dict.fromkeys(row.run for row in rows):
        own = [row for row in rows if row.run == run]
        text = 'under its own text' if prompt.with_text else 'without text'
        parts.append(f"## {run}\n\n{len(own[0].ranks)} continuations of {prompt.seconds:g} s of a song {text}, "
                     f"temperature {prompt.sampling.temperature:g}; {own[0].songs} songs, so that chance ranks "
                     f"{1 / own[0].songs:.3f} of the sources first.\n")
        masked, counted = ([row for row in own if row.prompt == reading] for reading in READINGS)
        parts.append(table(
            ['method', 'channel', 'prompt masked: source first', 'reciprocal rank', 'median rank',
             'prompt counted: source first', 'reciprocal rank', 'median rank'],
            [[a.method, a.channel, a.first, a.reciprocal, f'{a.median:g}', b.first, b.reciprocal, f'{b.median:g}']
             for a, b in zip(masked, counted, strict=True)]))
    return '\n'.join(parts)


def save_causal(out: tp.Union[str, Path], rows: tp.Sequence[Found], prompt: Continued) -> Path:
    """Write `causal.md`, `causal.json` and `causal.png`."""
    masked, counted = ([row for row in rows if row.prompt == reading] for reading in READINGS)
    labels = [f'{row.run} · {row.method} · {row.channel}' for row in masked]
    chance = [1 / row.songs for row in rows[:1]]
    picture = dots(labels, [Panel('prompt masked', [row.first for row in masked], chance),
                            Panel('prompt counted', [row.first for row in counted], chance)],
                   "continuations whose source ranks first, with 95 % interval; dashed: chance")
    return save(out, 'causal', markdown(rows, prompt), {'prompt': prompt, 'rows': rows}, picture)
