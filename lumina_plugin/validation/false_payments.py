"""`lumina validate false-payments`: how often is somebody paid for music that owes nobody?

Queries that owe the catalogue nothing are recordings of other songs, and what a model makes that was trained on other
songs alone. A gate at 95 % that keeps its word pays somebody for 5 % of them. What the gate costs on the other side is
how seldom the source of a continuation is paid.
"""

import collections
import dataclasses
import typing as tp
from pathlib import Path

import numpy as np

from ..attribution import Attributor, QueryFacts
from ..catalogue import Catalogue
from ..conditions import attributes_for
from ..errors import LuminaError
from ..gradients import Example
from ..hashing import codes_hash
from ..recipe import Recipe, recipe_from_dict
from ..report.schema import ChannelReport
from ..store import FingerprintStore
from .lds import Interval
from .opened import KEPT, SECONDS, Continued, Opened, query_facts
from .queries import Query, recordings
from .results import kept_parts, wilson
from .truth import FloatArray

RECORDINGS = 'recordings'  # a family: whole files, as `lumina attribute` reads them
EACH = 32  # free generations of the other model, and as many continuations of its own songs
OWN, MASKED, COUNTED = 'own', 'masked', 'counted'  # how a prompt is read: as the recipe says, left out, counted
_VERSION = 3  # of what is asked about a query: kept payments of another are measured again
ANY, SOURCES = 'any', 'continuations'  # a channel, and a family: of the model's own songs


@dataclasses.dataclass(frozen=True)
class Paid:
    """What a gate lets through of a family of queries.

    Args:
        run, store, gate, family, prompt, channel (str): Of what; in the channel 'any' a query pays where it does so in
            one of them, and sums are means over them.
        allowed (float): How often the gate means to pay where nothing is owed.
        queries (int): How many. paid (Interval): Share of them for which any song is paid, after Wilson.
        amount (float): Mean sum of shares. songs (float): Mean number of songs paid.
        source (Interval, optional): Share of them whose source is paid. source_share (float, optional): Its mean share.
    """
    run: str
    store: str
    gate: str
    family: str
    prompt: str
    channel: str
    allowed: float
    queries: int
    paid: Interval
    amount: float
    songs: float
    source: tp.Optional[Interval] = None
    source_share: tp.Optional[float] = None


def gates(recipe: Recipe) -> tp.Dict[str, Recipe]:
    """The recipe with every kind of gate that it can have, by name; as it is where there is but one kind."""
    field = type(recipe.gate).model_fields.get('kind')
    if field is None:
        return {'as it is': recipe}
    annotation = field.annotation
    kinds = [kind for one in (annotation, *tp.get_args(annotation)) for kind in tp.get_args(one)
             if isinstance(kind, str)]
    keys = recipe.model_dump(mode='json')
    return {kind: recipe_from_dict({**keys, 'gate': {**keys['gate'], 'kind': kind}}) for kind in dict.fromkeys(kinds)}


def allowed(recipe: Recipe) -> float:
    """How often a gate means to pay where nothing is owed: by its confidence, or its rate of false discoveries."""
    decides = getattr(recipe.gate, 'decides', 'paper')
    by_level = 1 - recipe.gate.level
    return float(getattr(recipe.gate, 'rate', by_level)) if decides == 'calibrated' else by_level


# -- queries --------------------------------------------------------------------------------------------------------

def strangers_of(opened: Opened, manifest: tp.Union[str, Path]) -> tp.Tuple[tp.List[Query], tp.Dict[str, Path]]:
    """Recordings that owe the run nothing, those with sound, and where they lie by the queries' ids.

    Raises:
        LuminaError: when one is a song of a store, or one that its gate was set by.
    """
    tracks = [track for track in Catalogue.from_manifest(manifest)
              if not opened.tokenizer.file(track.path, track.sha256).silent]
    known = _recordings_of(opened)
    for track in tracks:
        if track.sha256 in known:
            raise LuminaError(f"{track.path} is {known[track.sha256]} of a store of {opened.run.name}, which knows it; "
                              "name recordings by --strangers that are in no catalogue and set no gate.")
    queries = recordings(tracks, opened.tokenizer, 'heldout', opened.frames(SECONDS))
    return queries, {query.id: track.path for query, track in zip(queries, tracks, strict=True)}


def _recordings_of(opened: Opened) -> tp.Dict[str, str]:
    """What stores know, by the hash of the recording: songs that can be paid, and songs that a gate was set by."""
    known = {song.sha256: f'the outside song {song.id}' for store in opened.stores for song in _outside(store)}
    known.update({record.sha256: record.id for store in opened.stores for record in store.tracks
                  if record.sha256 and record.status == 'ok'})
    return known


def _outside(store: FingerprintStore) -> tp.List[tp.Any]:
    """Songs outside of the catalogue by which a store's gate was set, where it holds such."""
    read = getattr(store, 'null', None)
    nulls = [read(checkpoint) for checkpoint in store.checkpoints] if read is not None else []
    return [song for null in nulls if null is not None for song in null.songs]


def others_of(opened: Opened, other: Opened, each: int = EACH, seconds: float = 3.) -> tp.List[Query]:
    """What another model generates freely, and how it continues songs of its own.

    Raises:
        LuminaError: when it has another codec, or was trained on a song of a store.
    """
    if other.tokenizer.codec_hash != opened.tokenizer.codec_hash:
        raise LuminaError(f"Run {other.run.name} has another codec than {opened.run.name}; name one with the same by "
                          "--other.")
    known = _recordings_of(opened)
    shared = [known[track.sha256] for track in other.catalogue if track.sha256 in known]
    if shared:
        raise LuminaError(f"Run {other.run.name} was trained on {shared[0]} of a store of {opened.run.name}; name one "
                          "that was trained on other songs by --other.")
    return [*other.free(each), *other.continued(Continued(seconds, with_text=False, count=each))]


def expect_strangers(queries: tp.Sequence[Query], songs: tp.Sequence[Query], rate: float) -> None:
    """LuminaError where a query, or the prompt of one, has the codes of a song.

    Args:
        queries (sequence of Query): That owe nothing. songs (sequence of Query): Of the catalogue.
        rate (float): Frames per second.
    """
    first = max(1, round(rate))
    by_beginning = collections.defaultdict(list)
    for song in songs:
        by_beginning[song.codes[:, :first].numpy().tobytes()].append(song)
    for query in queries:
        given = query.codes[:, :query.prompt_frames or None]
        for song in by_beginning[given[:, :first].numpy().tobytes()]:
            both = min(given.shape[-1], song.codes.shape[-1])
            if bool((given[:, :both] == song.codes[:, :both]).all()):
                raise LuminaError(f"Query {query.id} has the codes of {song.id}, a song of the catalogue, so that "
                                  "something is owed for it; leave it out of --strangers, or name another --other.")


# -- payments -----------------------------------------------------------------------------------------------------

class _Remembering(Attributor):
    """An attributor that knows the fingerprints that another one made: gates differ in what they make of them alone.

    Args:
        made (dict): Fingerprints of queries by one store, which its attributors share.
    """

    def __init__(self, made: tp.Dict[tp.Any, tp.Any], *args: tp.Any, **kwargs: tp.Any):
        self._made = made
        super().__init__(*args, **kwargs)

    def _fingerprints(self, examples: tp.List[Example], of_part: tp.List[int],
                      of_group: tp.Optional[tp.List[int]] = None) -> tp.Any:
        key = (tuple((codes_hash(one.codes), one.start, one.stop, str(one.attributes.text), part)
                     for one, part in zip(examples, of_part, strict=True)), tuple(of_group or ()))
        if key not in self._made:
            self._made[key] = super()._fingerprints(examples, of_part, of_group)
        return self._made[key]


def payments(opened: Opened, attributor: Attributor, queries: tp.Sequence[Query], readings: tp.Sequence[str],
             label: str, files: tp.Optional[tp.Mapping[str, Path]] = None) -> tp.Dict[str, FloatArray]:
    """What every query pays, kept as it is found: by 'reading/channel/figure', [Q] each.

    Figures are the sum of all shares, the number of songs paid and the share of the query's source (0 without one).

    Args:
        readings (sequence of str): `OWN`, or for continuations `MASKED` and `COUNTED`.
        files (dict, optional): By query, the file that is attributed in place of its codes.
    """
    facts = ['payments', _VERSION, bool(files), attributor.store.hash, attributor.recipe.hash, query_facts(queries),
             [query.source for query in queries], list(readings)]

    def columns(some: tp.Sequence[Query]) -> tp.Dict[str, FloatArray]:
        rows = [_payment(attributor, query, readings, (files or {}).get(query.id)) for query in some]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return kept_parts(opened.out / KEPT, facts, queries, columns, label)


def _payment(attributor: Attributor, query: Query, readings: tp.Sequence[str], file: tp.Optional[Path] = None
             ) -> tp.Dict[str, float]:
    seconds = query.prompt_frames / attributor.tokenizer.frame_rate
    kind = 'continuation' if seconds else 'generation'
    facts = QueryFacts(query.id, tp.cast(tp.Any, kind), query.text, prompt_song_id=query.source, prompt_seconds=seconds)
    report = (attributor.attribute_codes(query.codes, attributes_for(attributor.lm, query.text), facts) if file is None
              else attributor.attribute_file(file))
    read = {OWN: report.channels}
    if report.other_reading is not None:
        counted = report.other_reading.prompt_counted
        read.update({COUNTED if counted else MASKED: report.other_reading.channels,
                     MASKED if counted else COUNTED: report.channels})
    return {f'{reading}/{channel}/{name}': value for reading in readings for channel, one in read[reading].items()
            for name, value in _figures(one, query.source).items()}


def _figures(channel: ChannelReport, source: tp.Optional[str]) -> tp.Dict[str, float]:
    shares = {row.track_id: row.share for row in channel.rows if row.share > 0}
    return {'amount': sum(shares.values()), 'songs': float(len(shares)), 'source': shares.get(source or '', 0.)}


def _expect_gate(attributor: Attributor, query: Query) -> None:
    """LuminaError where another gate than the recipe's would decide, as for a store that was never calibrated."""
    report = attributor.attribute_codes(query.codes, attributes_for(attributor.lm, query.text))
    wanted = getattr(attributor.recipe.gate, 'decides', 'paper') == 'calibrated'
    if any(getattr(channel, 'calibrated', wanted) != wanted for channel in report.channels.values()):
        raise LuminaError(f"the store {attributor.store.path} does not hold what this gate needs, so that the printed "
                          "one would decide; calibrate it first.")


def measure(opened: Opened, families: tp.Mapping[str, tp.Sequence[Query]], sources: tp.Sequence[Query],
            files: tp.Optional[tp.Mapping[str, Path]] = None) -> tp.Tuple[tp.List[Paid], tp.List[str]]:
    """What every store and gate of a run pays for queries that owe nothing, and for continuations of its songs.

    Args:
        families (dict): By name, queries that owe nothing. sources (sequence of Query): Continuations of songs.
        files (dict, optional): By query of the family `RECORDINGS`, the file that is attributed.
    Returns:
        list of Paid. list of str: Why a gate could not be tried, a sentence each.
    Raises:
        LuminaError: when a query that is to owe nothing is a song of the catalogue.
    """
    for queries in families.values():
        expect_strangers(queries, opened.songs, opened.tokenizer.frame_rate)
    rows: tp.List[Paid] = []
    refused = []
    for store in opened.stores:
        if not sources:
            raise LuminaError(f"No song of {opened.title} is longer than the prompt, so that none can be continued; "
                              "ask for a shorter one by --seconds.")
        made: tp.Dict[tp.Any, tp.Any] = {}
        for gate, recipe in gates(recipe_from_dict(store.identity.recipe)).items():
            name = f'{store.path.name}, gate {gate}'
            try:
                attributor = _Remembering(made, opened.musicgen.lm, opened.musicgen.compression_model, store,
                                          recipe=recipe, codec_hash=opened.tokenizer.codec_hash)
                _expect_gate(attributor, sources[0])
            except LuminaError as error:
                refused.append(f'{opened.title}, {name}: {error}')
                continue
            for family, queries in [*families.items(), (SOURCES, sources)]:
                readings = (MASKED, COUNTED) if family == SOURCES else (OWN,)
                found = payments(opened, attributor, queries, readings, f'{name}, {family}, {opened.title}',
                                 files if family == RECORDINGS else None)
                rows += [row for reading in readings
                         for row in _paid(opened.title, store, gate, recipe, family, reading, found)]
    if not rows:
        raise LuminaError(refused[0])
    return rows, refused


def _paid(run: str, store: FingerprintStore, gate: str, recipe: Recipe, family: str, reading: str,
          found: tp.Mapping[str, FloatArray]) -> tp.List[Paid]:
    rows = []
    names = [*store.channels, ANY] if len(store.channels) > 1 else store.channels
    for channel in names:
        of = {figure: np.stack([found[f'{reading}/{one}/{figure}'] for one in store.channels if channel in (one, ANY)])
              for figure in ('amount', 'songs', 'source')}  # [channels, Q]
        paid, source, total = (of['songs'] > 0).any(0), (of['source'] > 0).any(0), of['songs'].shape[1]
        known = reading != OWN  # that there is a source
        rows.append(Paid(
            run, store.path.name, gate, family, reading, channel, allowed(recipe), total,
            wilson(int(paid.sum()), total), float(of['amount'].mean()), float(of['songs'].mean()),
            wilson(int(source.sum()), total) if known else None, float(of['source'].mean()) if known else None))
    return rows
