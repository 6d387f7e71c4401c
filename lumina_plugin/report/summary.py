"""Who is owed what over many recordings: the mean of their shares, with intervals by a bootstrap over the recordings.

`python -m lumina_plugin.report.summary` prints the JSON Schema.
"""

import csv
import datetime
import hashlib
import io
import json
import math
import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field
from scipy import sparse

from ..atomic import write_atomic
from ..errors import LuminaError
from . import words
from .render import csv_cell
from .schema import AttributionReport, Fraction, PathLike, Seconds

FORMAT: tp.Literal[1] = 1
LEVEL, RESAMPLES = 0.95, 2000
COLUMNS = ('channel', 'rank', 'track_id', 'title', 'artist', 'isrc', 'iswc', 'share', 'share_low', 'share_high',
           'recordings', 'largest_share')
SHARE_COLUMNS = ('recording', 'channel', 'track_id', 'title', 'artist', 'isrc', 'iswc', 'share')
By = tp.Literal['recordings', 'seconds']
_BLOCK = 4096  # songs whose resamples are held at once


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False, protected_namespaces=())


class Paid(_Part):
    """A song and what one recording owes it."""
    track_id: str
    title: str
    artist: str = ''
    isrc: tp.Optional[str] = None
    iswc: tp.Optional[str] = None
    share: Fraction


class ChannelEntry(_Part):
    """How one channel of one recording divides; `method` and `reliability` are sentences about the store's scores."""
    paid: tp.List[Paid]
    unattributed: Fraction
    method: str
    reliability: str = ''


class Entry(_Part):
    """One recording that was attributed, as far as a summary needs it."""
    file: str = Field(description="Path below the folder that was attributed.")
    sha256: str
    kind: tp.Literal['generation', 'continuation', 'file']
    duration: Seconds
    report: tp.Optional[str] = Field(None, description="Folder of its report, beside the summary.")
    report_sha256: str
    model: str
    store: str
    store_hash: str
    store_songs: tp.Annotated[int, Field(ge=0)]
    recipe: str
    recipe_hash: str
    warnings: tp.List[str] = Field(default_factory=list)
    channel_meaning: str = Field('', description="Whether the channels find what they are named for, in a sentence.")
    channels: tp.Dict[str, ChannelEntry] = Field(min_length=1)

    @classmethod
    def of(cls, report: AttributionReport, file: str, sha256: str, report_sha256: str,
           folder: tp.Optional[str] = None) -> 'Entry':
        """What a summary needs of a report."""
        channels = {key: ChannelEntry(
            paid=[Paid(**{name: getattr(row, name) for name in Paid.model_fields}) for row in words.paid(channel)],
            unattributed=channel.unattributed, method=words.method(channel), reliability=words.reliability(channel))
            for key, channel in report.channels.items()}
        return cls(file=file, sha256=sha256, kind=report.query.kind, duration=report.query.duration, report=folder,
                   report_sha256=report_sha256, model=report.model.id, store=report.store.name,
                   store_hash=report.store.hash, store_songs=report.store.songs, recipe=report.recipe.name,
                   recipe_hash=report.recipe.hash, warnings=report.warnings,
                   channel_meaning=words.channel_meaning(report), channels=channels)


class LeftOut(_Part):
    """A file that no share comes from, and why."""
    file: str
    reason: str


class Owed(_Part):
    """One song over all recordings."""
    rank: int = Field(ge=1, description="By share.")
    track_id: str
    title: str
    artist: str = ''
    isrc: tp.Optional[str] = None
    iswc: tp.Optional[str] = None
    share: Fraction = Field(description="Mean over the recordings.")
    share_low: tp.Optional[Fraction] = None
    share_high: tp.Optional[Fraction] = None
    recordings: int = Field(ge=1, description="That pay it something.")
    largest_share: Fraction


class ChannelSummary(_Part):
    """One channel over all recordings."""
    owed: tp.List[Owed]
    unattributed: Fraction
    unattributed_low: tp.Optional[Fraction] = None
    unattributed_high: tp.Optional[Fraction] = None
    nobody: int = Field(ge=0, description="Recordings that owe nobody.")
    method: str
    reliability: str = ''

    @pydantic.model_validator(mode='after')
    def _adds_up(self) -> 'ChannelSummary':
        total = math.fsum([*(song.share for song in self.owed), self.unattributed])
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares and the unattributed remainder add up to {total:.6f}, not 1")
        return self


class Warned(_Part):
    """A warning, and how many recordings have it."""
    text: str
    recordings: int


class Summary(_Part):
    """Who is owed what over many recordings."""
    format: tp.Literal[1] = FORMAT
    created: pydantic.AwareDatetime
    lumina_version: str
    name: str
    by: By = Field(description="What counts: each recording as much as any other, or each second.")
    level: float = Field(description="Of the intervals.")
    resamples: int = Field(description="Of the recordings, by which the intervals were found; 0 for a single one.")
    model: str
    store: str
    store_hash: str
    store_songs: int
    recipe: str
    recipe_hash: str
    seconds: Seconds = Field(description="Length of all recordings.")
    channels: tp.Dict[str, ChannelSummary] = Field(min_length=1)
    channel_meaning: str = ''
    warnings: tp.List[Warned] = Field(default_factory=list)
    recordings: tp.List[Entry]
    left_out: tp.List[LeftOut] = Field(default_factory=list)

    def save(self, path: PathLike) -> Path:
        """Write it as JSON, atomically."""
        return write_atomic(path, self.model_dump_json(indent=1) + '\n')

    @classmethod
    def load(cls, path: PathLike) -> 'Summary':
        """Read it back. Raises LuminaError for a file that is none."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise LuminaError(f"Cannot read the summary {path} ({error.strerror}): check its name.") from None
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = '.'.join(map(str, first['loc'])) or 'summary'
            raise LuminaError(f"{path} is no sound summary: '{place}' {first['msg'][:1].lower()}{first['msg'][1:]}; "
                              "make it again by the same command.") from None


def summarise(entries: tp.Sequence[Entry], left_out: tp.Sequence[LeftOut] = (), name: str = 'recordings',
              by: By = 'recordings') -> Summary:
    """Sum up entries that were made with the same model, store and recipe.

    Args:
        by (str): 'recordings': each counts the same; 'seconds': each by its length.
    Raises:
        LuminaError: for no entries, or entries that cannot be compared.
    """
    from .. import __version__
    if not entries:
        raise LuminaError("No recording could be attributed, so that there is nothing to sum up.")
    first = entries[0]
    if len({(entry.store_hash, entry.recipe_hash, tuple(entry.channels)) for entry in entries}) > 1:
        raise LuminaError("The recordings were attributed by different stores or recipes; sum up each apart.")
    weight = np.array([entry.duration if by == 'seconds' else 1. for entry in entries])
    draws = _draws(entries, weight)
    seen: tp.Dict[str, int] = {}
    for text in (text for entry in entries for text in dict.fromkeys(entry.warnings)):
        seen[text] = seen.get(text, 0) + 1
    return Summary(
        created=datetime.datetime.now(datetime.UTC).replace(microsecond=0), lumina_version=__version__, name=name,
        by=by, level=LEVEL, resamples=0 if draws is None else RESAMPLES, model=first.model, store=first.store,
        store_hash=first.store_hash, store_songs=first.store_songs, recipe=first.recipe, recipe_hash=first.recipe_hash,
        seconds=math.fsum(entry.duration for entry in entries),
        channels={key: _channel(key, entries, weight / weight.sum(), draws) for key in first.channels},
        channel_meaning=first.channel_meaning,
        warnings=[Warned(text=text, recordings=count) for text, count in sorted(seen.items(), key=lambda one: -one[1])],
        recordings=list(entries), left_out=list(left_out))


def _draws(entries: tp.Sequence[Entry], weight: npt.NDArray) -> tp.Optional[npt.NDArray]:
    """What each resample of the recordings takes of each, [B, F], seeded by their reports; None for a single one."""
    if len(entries) < 2:
        return None
    digest = hashlib.sha256('\n'.join(entry.report_sha256 for entry in entries).encode())
    rng = np.random.default_rng(int.from_bytes(digest.digest()[:8], 'big'))
    counts = rng.multinomial(len(entries), np.full(len(entries), 1 / len(entries)), size=RESAMPLES) * weight
    return counts / counts.sum(axis=1, keepdims=True)


def _channel(key: str, entries: tp.Sequence[Entry], weight: npt.NDArray, draws: tp.Optional[npt.NDArray]
             ) -> ChannelSummary:
    parts = [entry.channels[key] for entry in entries]
    songs: tp.Dict[str, Paid] = {}
    for part in parts:
        for paid in part.paid:
            songs.setdefault(paid.track_id, paid)
    place = {track_id: index for index, track_id in enumerate(songs)}
    cells = [(row, place[paid.track_id], paid.share) for row, part in enumerate(parts) for paid in part.paid]
    rows, columns, values = zip(*cells, strict=True) if cells else ((), (), ())
    shares = sparse.csc_array((values, (rows, columns)), shape=(len(parts), len(songs)))  # [F, S]
    mean = np.asarray(weight @ shares)
    low, high = _intervals(shares, draws, mean)
    rest = np.array([part.unattributed for part in parts])
    rest_low, rest_high = _intervals(sparse.csc_array(rest[:, None]), draws, np.array([weight @ rest]))
    ids = list(songs)
    paying = np.diff(shares.indptr)  # no share that is kept is 0
    largest = shares.max(axis=0).toarray().ravel() if cells else np.zeros(0)
    order = sorted(range(len(ids)), key=lambda index: (-mean[index], ids[index]))
    owed = [Owed(rank=rank, **songs[ids[index]].model_dump(exclude={'share'}), share=float(mean[index]),
                 share_low=low[index], share_high=high[index],
                 recordings=int(paying[index]), largest_share=float(largest[index]))
            for rank, index in enumerate(order, start=1)]
    return ChannelSummary(
        owed=owed, unattributed=float(weight @ rest), unattributed_low=rest_low[0], unattributed_high=rest_high[0],
        nobody=sum(not part.paid for part in parts), method=parts[0].method, reliability=parts[0].reliability)


def _intervals(shares: tp.Any, draws: tp.Optional[npt.NDArray], mean: npt.NDArray
               ) -> tp.Tuple[tp.List[tp.Optional[float]], tp.List[tp.Optional[float]]]:
    """Percentile intervals on the mean of each column of [F, S]."""
    if draws is None:
        return [None] * len(mean), [None] * len(mean)
    low, high = np.empty_like(mean), np.empty_like(mean)
    for start in range(0, len(mean), _BLOCK):
        some = slice(start, min(start + _BLOCK, len(mean)))
        found = (shares[:, some].T @ draws.T).T  # [B, s]
        low[some], high[some] = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.clip(np.minimum(low, mean), 0, 1).tolist(), np.clip(np.maximum(high, mean), 0, 1).tolist()


def to_csv(summary: Summary, path: PathLike) -> Path:
    """One row per channel and song that is owed something, and one per channel for what is unattributed."""
    rows = []
    for key, channel in summary.channels.items():
        rows += [{'channel': key, **song.model_dump()} for song in channel.owed]
        rows.append({'channel': key, 'title': 'unattributed', 'share': channel.unattributed, 'recordings': sum(
            entry.channels[key].unattributed > 0 for entry in summary.recordings),
            'share_low': channel.unattributed_low, 'share_high': channel.unattributed_high, 'largest_share': max(
                entry.channels[key].unattributed for entry in summary.recordings)})
    return _write_csv(path, COLUMNS, rows)


def to_shares_csv(summary: Summary, path: PathLike) -> Path:
    """One row per recording, channel and song that it pays, and one for what it leaves unattributed."""
    rows: tp.List[tp.Dict[str, tp.Any]] = []
    for entry in summary.recordings:
        for key, channel in entry.channels.items():
            rows += [{'recording': entry.file, 'channel': key, **paid.model_dump()} for paid in channel.paid]
            rows.append({'recording': entry.file, 'channel': key, 'title': 'unattributed',
                         'share': channel.unattributed})
    return _write_csv(path, SHARE_COLUMNS, rows)


def _write_csv(path: PathLike, columns: tp.Sequence[str], rows: tp.Iterable[tp.Mapping[str, tp.Any]]) -> Path:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\r\n')
    writer.writerow(columns)
    for row in rows:
        writer.writerow([csv_cell(row.get(column)) for column in columns])
    return write_atomic(path, buffer.getvalue())


def json_schema() -> tp.Dict[str, tp.Any]:
    """JSON Schema (draft 2020-12) of a summary file."""
    return {'$schema': 'https://json-schema.org/draft/2020-12/schema',
            **Summary.model_json_schema(mode='serialization')}


if __name__ == '__main__':
    print(json.dumps(json_schema(), indent=2))
