"""AttributionReport: everything that was found about one query, and every hash needed to find it again.

The JSON file is the record; HTML, CSV and the terminal's table are views of it. A report is checked when it is made and
again when it is read: unknown keys, NaN or infinity, and shares that do not add up are all refused.
`python -m lumina_plugin.report.schema` prints the JSON Schema.
"""

import datetime
import json
import typing as tp
from pathlib import Path

import numpy as np
import pydantic
from pydantic import Field

from ..atomic import write_atomic
from ..errors import LuminaError
from ..intervals import LEVEL, RESAMPLES, Intervals
from ..reliability import FIGURES, Diagnosis, doubts
from ..statistics import ChannelStatistics

# 1.1 added noise_mean and other_reading, 1.2 what the calibrated gate says and intervals on shares, 1.3 of how many
# recordings a reliability is, 1.4 which checkpoint's weights the model had; all optional
SCHEMA_VERSION: tp.Literal['1.4'] = '1.4'
READABLE = ('1.0', '1.1', '1.2', '1.3', '1.4')
PathLike = tp.Union[str, Path]
TOP_PER_SEGMENT = 5
_TOLERANCE = 1e-6

Seconds = tp.Annotated[float, Field(ge=0)]
Fraction = tp.Annotated[float, Field(ge=0, le=1 + _TOLERANCE)]
Count = tp.Annotated[int, Field(ge=0)]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False, protected_namespaces=())


class Query(_Part):
    """What was attributed."""
    id: str
    kind: tp.Literal['generation', 'continuation', 'file']
    prompt: tp.Optional[str] = Field(None, description="Text that the generation was conditioned on.")
    seed: tp.Optional[int] = None
    prompt_song_id: tp.Optional[str] = Field(None, description="Catalogue song that a continuation started from.")
    prompt_seconds: Seconds = Field(0.0, description="Length of a continuation's audio prompt.")
    duration: Seconds
    sample_rate: int = Field(gt=0)
    sha256: tp.Optional[str] = Field(None, description="Of the audio file's bytes; absent while only tokens exist.")
    codes_hash: tp.Optional[str] = Field(None, description="Of the codec's tokens.")
    audio_file: tp.Optional[str] = Field(None, description="Name of the audio file beside this report.")
    silent: bool = False


class Checkpoint(_Part):
    """One state of the model's weights that was used."""
    name: str
    epoch: tp.Optional[int] = None
    model_hash: str


class Model(_Part):
    """The generative model whose gradients were compared."""
    id: str
    config_hash: str
    licence_note: tp.Optional[str] = None
    checkpoint: tp.Optional[Checkpoint] = Field(
        None, description="Whose weights it had: a generation is this checkpoint's.")


class Codec(_Part):
    """The codec whose tokens the model reads."""
    id: str
    hash: str


class Store(_Part):
    """The fingerprints of the catalogue's songs."""
    name: str
    hash: str
    songs: Count
    catalogue_hash: str
    trained_on_hash: tp.Optional[str] = Field(None, description="Of the training's catalogue, if known.")


class RecipeRecord(_Part):
    """The recipe with every key."""
    name: str
    hash: str
    keys: tp.Dict[str, pydantic.JsonValue]


class GateSettings(_Part):
    """The printed gate: what a cosine must reach."""
    level: tp.Annotated[float, Field(ge=0, lt=1)]
    tail: tp.Literal['two_sided', 'one_sided']
    z_threshold: Seconds = Field(description="z at which the gate opens.")


class Reliability(_Part):
    """Whether the store's scores tell music apart, by recordings from outside the catalogue (see `reliability`)."""
    queries: tp.Optional[Count] = Field(None, description="So many recordings.")
    ranking_correlation: Fraction = Field(description="Mean absolute rank correlation between two songs' scores.")
    rank_one_energy: Fraction = Field(description="What a single pattern explains of all scores.")
    effective_rank: tp.Annotated[float, Field(ge=0)] = Field(description="How many patterns there are.")
    concentration: Fraction = Field(description="Mean largest share, gates aside.")
    hub_skewness: float = Field(description="Skewness of how often songs are among the five closest.")
    doubts: tp.List[str] = Field(description="Which of them lie beyond what the validation suite's stores allow.")


class Calibration(_Part):
    """The calibrated gate: what songs outside of the catalogue score, and who passes in view of that."""
    decides: bool = Field(description="Whether it says who is paid; else the printed gate does.")
    rate: tp.Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Of the songs that pass, the share that may do so by chance: a song passes with q_value <= rate.")
    outside_songs: Count = Field(
        description="Pieces of music from outside of the catalogue that owe nobody: recordings for a file, generations "
                    "for a generation where the store has them.")
    origin: str = Field(description="Where they come from, in words.")
    passing: Count = Field(description="Songs that pass the calibrated gate.")
    reliability: tp.Optional[Reliability] = None


class Resampling(_Part):
    """How the intervals on shares were made."""
    level: tp.Annotated[float, Field(gt=0, lt=1)]
    resamples: Count
    chunks: Count = Field(description="Chunks of the query, drawn with replacement; where a prompt counts apart from "
                                      "what follows, those that are not alone in their half.")
    checkpoints: Count = Field(description="Checkpoints, drawn with replacement.")


class SongRow(_Part):
    """One song's evidence in one channel."""
    rank: int = Field(ge=1, description="By score, 1 is the closest.")
    track_id: str
    title: str
    artist: str
    isrc: tp.Optional[str] = None
    iswc: tp.Optional[str] = None
    cosine: float
    score: float
    z: float
    confidence: Fraction
    sts: float
    lip_percent: tp.Annotated[float, Field(ge=0, le=100)]
    passes_gate: bool = Field(description="The printed gate's verdict.")
    passes_calibrated_gate: tp.Optional[bool] = Field(None, description="The calibrated gate's, where there is one.")
    p_value: tp.Optional[Fraction] = Field(None, description="How often chance alone scores this song as high.")
    q_value: tp.Optional[Fraction] = Field(None, description="The same, adjusted for asking about every song "
                                                             "(Benjamini and Hochberg).")
    qualified: bool = Field(description="Passes the gate that decides, and has STS > 1.")
    weight: tp.Annotated[float, Field(ge=0)]
    share: Fraction
    share_low: tp.Optional[Fraction] = Field(None, description="Lower end of the share's interval.")
    share_high: tp.Optional[Fraction] = Field(None, description="Upper end of it.")


class SegmentHit(_Part):
    """A song that is close to one segment."""
    track_id: str
    cosine: float
    score: float


class Segment(_Part):
    """About ten seconds of the query, fingerprinted by themselves."""
    index: Count
    start: Seconds
    end: Seconds
    masked_seconds: Seconds = Field(0.0, description="Seconds of an audio prompt that were left out.")
    silent: bool = False
    top: tp.List[SegmentHit] = Field(default_factory=list, max_length=TOP_PER_SEGMENT)


class TrackLike(tp.Protocol):
    """What a report needs to know about a catalogue's song."""
    @property
    def id(self) -> str: ...
    @property
    def title(self) -> tp.Optional[str]: ...
    @property
    def artist(self) -> tp.Optional[str]: ...
    @property
    def isrc(self) -> tp.Optional[str]: ...
    @property
    def iswc(self) -> tp.Optional[str]: ...


class ChannelReport(_Part):
    """All songs' evidence in one channel, ranked by score."""
    noise_floor: tp.Annotated[float, Field(gt=0)]
    noise_floor_how: tp.Literal['1/sqrt(D)', 'measured']
    noise_mean: float = Field(0., description="Cosine that counts as unremarkable; z = (cosine - it) / noise_floor.")
    gate: GateSettings
    calibration: tp.Optional[Calibration] = Field(None, description="Absent where the store has no outside songs.")
    resampling: tp.Optional[Resampling] = Field(None, description="Absent for one chunk at one checkpoint.")
    score_name: str
    songs: Count
    passing: Count = Field(description="Songs that pass the printed gate.")
    qualified: Count = Field(description="Songs that pass the gate that decides and have STS > 1: those that are "
                                         "paid.")
    unattributed: Fraction
    rows: tp.List[SongRow]
    segments: tp.List[Segment] = Field(default_factory=list)

    @pydantic.model_validator(mode='after')
    def _adds_up(self) -> 'ChannelReport':
        if [row.rank for row in self.rows] != list(range(1, self.songs + 1)):
            raise ValueError(f"rows must be all {self.songs} songs in order of rank")
        passing, qualified = sum(row.passes_gate for row in self.rows), sum(row.qualified for row in self.rows)
        if (self.passing, self.qualified) != (passing, qualified):
            raise ValueError("passing or qualified is not the number of such rows")
        if self.calibration is not None and self.calibration.passing != sum(
                bool(row.passes_calibrated_gate) for row in self.rows):
            raise ValueError("calibration.passing is not the number of such rows")
        total = sum(row.share for row in self.rows) + self.unattributed
        if abs(total - 1) > _TOLERANCE:
            raise ValueError(f"shares and the unattributed remainder add up to {total:.6f}, not 1")
        return self

    @property
    def calibrated(self) -> bool:
        """Whether the calibrated gate decides who is paid."""
        return self.calibration is not None and self.calibration.decides

    @classmethod
    def from_statistics(cls, statistics: ChannelStatistics, tracks: tp.Sequence[TrackLike], score_name: str,
                        noise_floor_how: str, segments: tp.Sequence[Segment] = (),
                        intervals: tp.Optional[Intervals] = None, drawn: tp.Tuple[int, int] = (1, 1),
                        origin: str = '', diagnosis: tp.Optional[Diagnosis] = None) -> 'ChannelReport':
        """Rank the songs by score (ties in the store's order).

        Args:
            statistics: arrays of `[N]`.
            tracks: N songs in the same order.
            score_name: e.g. `cosine`.
            noise_floor_how: `1/sqrt(D)` or `measured`.
            segments: in order of time.
            intervals: on shares, drawn from so many chunks and checkpoints.
            origin: where the outside songs come from. diagnosis: of what they score.
        """
        if len(tracks) != len(statistics.score):
            raise ValueError(f"{len(tracks)} tracks for {len(statistics.score)} scores")
        order = np.argsort(-statistics.score, kind='stable')
        ends = {} if intervals is None else {
            index: ends for index, *ends in zip(
                *(values.tolist() for values in (intervals.index, intervals.low, intervals.high)), strict=True)}
        rows = [_song_row(rank, tracks[index], statistics, index, *ends.get(index, (None, None)))
                for rank, index in enumerate(order.tolist(), start=1)]
        gate = GateSettings(level=statistics.gate.level, tail=tp.cast(tp.Any, statistics.gate.tail),
                            z_threshold=statistics.gate.threshold)
        return cls(noise_mean=statistics.noise_mean, noise_floor=statistics.noise_floor,
                   noise_floor_how=tp.cast(tp.Any, noise_floor_how), gate=gate,
                   calibration=_calibration(statistics, origin, diagnosis), resampling=_resampling(intervals, drawn),
                   score_name=score_name, songs=len(rows), passing=int(statistics.passes_gate.sum()),
                   qualified=int(statistics.qualified.sum()), unattributed=statistics.unattributed, rows=rows,
                   segments=list(segments))


def _calibration(statistics: ChannelStatistics, origin: str, diagnosis: tp.Optional[Diagnosis]
                 ) -> tp.Optional[Calibration]:
    chance = statistics.chance
    if chance is None:
        return None
    return Calibration(decides=statistics.calibrated, rate=chance.rate, outside_songs=chance.outside, origin=origin,
                       passing=int(chance.passes.sum()),
                       reliability=None if diagnosis is None else Reliability(
                           queries=diagnosis.queries, doubts=doubts(diagnosis),
                           **{key: getattr(diagnosis, key) for key in FIGURES}))


def _resampling(intervals: tp.Optional[Intervals], drawn: tp.Tuple[int, int]) -> tp.Optional[Resampling]:
    return None if intervals is None else Resampling(level=LEVEL, resamples=RESAMPLES, chunks=drawn[0],
                                                     checkpoints=drawn[1])


def _song_row(rank: int, track: TrackLike, statistics: ChannelStatistics, index: int, low: tp.Optional[float],
              high: tp.Optional[float]) -> SongRow:
    numbers = {name: float(getattr(statistics, name)[index])
               for name in ('cosine', 'score', 'z', 'confidence', 'sts', 'lip_percent', 'weight', 'share')}
    chance = statistics.chance
    verdict: tp.Dict[str, tp.Any] = {} if chance is None else dict(
        p_value=float(chance.p[index]), q_value=float(chance.q[index]),
        passes_calibrated_gate=bool(chance.passes[index]))
    track_id, title, artist = (_utf8(text or '') for text in (track.id, track.title or track.id, track.artist))
    return SongRow(rank=rank, track_id=track_id, title=title, artist=artist,
                   isrc=track.isrc, iswc=track.iswc, passes_gate=bool(statistics.passes_gate[index]),
                   qualified=bool(statistics.qualified[index]), share_low=low, share_high=high, **verdict, **numbers)


def _utf8(text: str) -> str:
    """File names that are not UTF-8 reach Python as lone surrogates, which no JSON file can hold."""
    return text.encode('utf-8', 'replace').decode('utf-8')


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


class OtherReading(_Part):
    """A continuation read the other way: with its prompt counted, or left out, where the recipe does the opposite."""
    prompt_counted: bool
    channels: tp.Dict[str, ChannelReport] = Field(min_length=1, description="As the report's own, without segments.")


class AttributionReport(_Part):
    """What one query owes to whom, per channel, and how that was found."""
    schema_version: tp.Literal['1.0', '1.1', '1.2', '1.3', '1.4'] = SCHEMA_VERSION
    created: pydantic.AwareDatetime = Field(default_factory=_now, description="UTC.")
    lumina_version: str
    query: Query
    model: Model
    codec: Codec
    store: Store
    checkpoints: tp.List[Checkpoint] = Field(min_length=1)
    recipe: RecipeRecord
    channels: tp.Dict[str, ChannelReport] = Field(min_length=1, description="P is composition, M is production.")
    other_reading: tp.Optional[OtherReading] = Field(None, description="Of a continuation: what the prompt changes.")
    channel_meaning: tp.Optional[str] = Field(
        None, description="Whether the channels find what they are named for, as `lumina validate channels` measured "
                          "it on this model; absent where it was not measured.")
    timings: tp.Dict[str, Seconds] = Field(default_factory=dict, description="Seconds per stage.")
    warnings: tp.List[str] = Field(default_factory=list)

    @pydantic.field_validator('created')
    @classmethod
    def _in_utc(cls, created: datetime.datetime) -> datetime.datetime:
        return created.astimezone(datetime.UTC)

    def save(self, path: PathLike) -> Path:
        """Write the report as JSON, atomically. Raises LuminaError where the folder cannot be written."""
        return write_atomic(path, self.model_dump_json(indent=2) + '\n')

    @classmethod
    def load(cls, path: PathLike) -> 'AttributionReport':
        """Read a report and check it.

        Raises:
            LuminaError: naming the file, what is wrong with it, and the mend.
        """
        data = _read_json(Path(path))
        version = data.get('schema_version')
        if version not in READABLE:
            raise LuminaError(f"{path} has report schema version {version!r}, but this lumina_plugin reads "
                              f"{SCHEMA_VERSION!r}: make the report again, or read it with the one that "
                              f"wrote it ({data.get('lumina_version', 'unknown')}).")
        try:
            return cls.model_validate_json(json.dumps(data))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = '.'.join(map(str, first['loc'])) or 'report'
            raise LuminaError(f"{path} is not a sound report: '{where}' {_lower(first['msg'])}; "
                              "make it again with `lumina attribute`.") from None


def _read_json(path: Path) -> tp.Dict[str, tp.Any]:
    def refuse(constant: str) -> tp.NoReturn:
        raise ValueError(f"it holds {constant}")
    mend = "make it again with `lumina attribute`"
    try:
        data = json.loads(path.read_text(encoding='utf-8'), parse_constant=refuse)
    except OSError as error:
        raise LuminaError(f"Cannot read the report {path} ({error.strerror or error}): check its name.") from None
    except (ValueError, RecursionError) as error:  # broken JSON and broken UTF-8 are both ValueErrors
        raise LuminaError(f"{path} is not a readable report ({error}): {mend}.") from None
    if not isinstance(data, dict):
        raise LuminaError(f"{path} holds JSON but no report: {mend}.")
    return data


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def json_schema() -> tp.Dict[str, tp.Any]:
    """JSON Schema (draft 2020-12) of a report file."""
    schema = AttributionReport.model_json_schema(mode='serialization')
    return {'$schema': 'https://json-schema.org/draft/2020-12/schema', **schema}


if __name__ == '__main__':
    print(json.dumps(json_schema(), indent=2))
