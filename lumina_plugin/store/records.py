"""What a store's manifest says, as validated records. Nothing here touches a disk."""

import re
import typing as tp

import pydantic

FORMAT_VERSION = 2
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CHANNEL = re.compile(r"[A-Za-z0-9_-]+")  # no dot: "P.norm" names a tensor of channel "P"


class Record(pydantic.BaseModel):
    """Base of all records: immutable, closed to unknown keys, free of NaN."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Identity(Record):
    """Whatever two fingerprints must share to be comparable. Hashes are opaque strings, compared for equality.

    `recipe` is the full recipe beside its hash, `dim` the fingerprint width D, `channels` the order of channels,
    `trained_on_hash` the catalogue that the model was trained on where that is known. `catalogue_hash` is that of the
    catalogue given last: the one part of an identity that changes, when songs are added or replaced.
    """

    model_id: str
    model_config_hash: str
    codec_hash: str
    recipe_hash: str
    recipe: tp.Dict[str, tp.Any] = {}
    catalogue_hash: str
    trained_on_hash: tp.Optional[str] = None
    dim: int = pydantic.Field(gt=0)
    channels: tp.List[str] = ["P", "M"]
    licence: tp.Optional[str] = None

    def lasting(self) -> tp.Dict[str, tp.Any]:
        """What stays the same for as long as the store lives: all but the catalogue's hash, as JSON."""
        return self.model_dump(mode="json", exclude={"catalogue_hash"})

    @pydantic.field_validator("channels")
    @classmethod
    def _channels(cls, value: tp.List[str]) -> tp.List[str]:
        if not value or len(set(value)) < len(value) or not all(_CHANNEL.fullmatch(name) for name in value):
            raise ValueError("channels must be distinct names of letters, digits, '_' and '-'")
        return value


Status = tp.Literal["ok", "silent", "skipped", "withdrawn", "replaced"]


class Mark(Record):
    """Why a track has no fingerprint."""

    status: Status
    reason: str = ""


class Absent(Mark):
    """A slot of a shard's span without a row in its file."""

    slot: int


class TrackRecord(Record):
    """One catalogue entry as the store knows it; `duration` in seconds, `sha256` of the audio file.

    `extra` holds anything else that serialises to JSON: writers' and owners' splits, composition_id, production_id.
    A tombstone has `status` "withdrawn" or "replaced", its date (ISO 8601, UTC) in `gone_on`, its reason, and the id.
    """

    id: str = pydantic.Field(min_length=1)
    title: str = ""
    artist: str = ""
    isrc: tp.Optional[str] = None
    iswc: tp.Optional[str] = None
    duration: tp.Optional[float] = None
    sha256: tp.Optional[str] = None
    path: tp.Optional[str] = None
    extra: tp.Dict[str, tp.Any] = {}
    status: Status = "ok"
    reason: str = ""
    gone_on: tp.Optional[str] = None

    @property
    def gone(self) -> bool:
        """Whether this is what is left of a withdrawn or replaced track."""
        return self.status in ("withdrawn", "replaced")

    def tombstone(self, status: Status, reason: str, date: str) -> "TrackRecord":
        """What is left of this track once it is gone: no title, no artist, no codes, no path."""
        return TrackRecord(id=self.id, status=status, reason=reason, gone_on=date)


class FileRef(Record):
    """A file of the store, by its path relative to the store's folder, and the SHA-256 of its bytes."""

    file: str
    sha256: str


class ShardInfo(FileRef):
    """Fingerprints of `span` neighbours in the track table, from slot `first`.

    `count` rows are in the file, in the table's order; `absent` names the other `span - count` slots and says why.
    The rows' ids are therefore implied by the track table, and the manifest stays small at a million songs. A row whose
    slot is a tombstone by now is not read any more, and leaves the disk by compaction.
    """

    first: int
    span: int
    count: int
    absent: tp.List[Absent] = []


class Fit(Record):
    """What a projection was fitted on: `songs` that the fit saw, and `spans` of slots [first, end) that they came from.

    `live` of those slots held a track then. `kind` is the projection's: only a "fitted" one ages.
    """

    kind: str = ""
    songs: int
    live: int
    spans: tp.List[tp.Tuple[int, int]] = []


class ProjectionRef(FileRef):
    """A projection's file, and what it was fitted on."""

    fit: Fit


class NullRef(FileRef):
    """A checkpoint's null: fingerprints of so many songs outside of the catalogue."""

    songs: int


class CheckpointInfo(Record):
    """One set of model weights and its fingerprints.

    The caller gives `name` (also the folder's name), `epoch`, `model_hash`, and `weights` if the file is there already:
    its path, relative to the store. None stands for the live model, until `FingerprintStore.save_weights` puts a file
    there. The store fills in the rest; `noise` holds what was measured per channel, `complete` tells that every track
    is accounted for and `finish` was called; `null` names the fingerprints of outside songs, where there are some.
    """

    name: str
    epoch: int = 0
    model_hash: str
    weights: tp.Optional[str] = None
    weights_sha256: tp.Optional[str] = None
    complete: bool = False
    noise: tp.Dict[str, tp.Any] = {}
    projections: tp.Dict[str, ProjectionRef] = {}
    shards: tp.List[ShardInfo] = []
    null: tp.Optional[NullRef] = None

    @pydantic.model_serializer(mode="wrap")
    def _without_later_keys(self, dump: pydantic.SerializerFunctionWrapHandler) -> tp.Dict[str, tp.Any]:
        """Leave `null` out where there is none: stores from before it keep their hash."""
        data = dump(self)
        if data.get("null", self) is None:
            del data["null"]
        return data

    @pydantic.field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("a checkpoint's name is a folder's: letters, digits, '.', '_' and '-', e.g. epoch-0004")
        return value

    @property
    def count(self) -> int:
        """Fingerprinted songs in committed shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def covered(self) -> int:
        """Slots that committed shards account for: fingerprinted, marked or gone."""
        return sum(shard.span for shard in self.shards)


class TrackTable(FileRef):
    """The index file: `count` slots, tombstones among them, in batches that begin at `starts`.

    `digest` covers the content alone, whichever version of Arrow wrote the file.
    """

    count: int
    starts: tp.List[int] = [0]
    digest: str


class Manifest(Record):
    """manifest.json. Checkpoints are ordered by epoch, then name. No date is in it: reruns are identical."""

    format_version: int = FORMAT_VERSION
    created_by: str
    updated_by: str
    identity: Identity
    dtype: tp.Literal["float16", "float32"]
    shard_size: int = pydantic.Field(gt=0)
    tracks: TrackTable
    checkpoints: tp.List[CheckpointInfo] = []

    def find(self, name: str) -> tp.Optional[CheckpointInfo]:
        """The checkpoint of that name, if there is one."""
        return next((checkpoint for checkpoint in self.checkpoints if checkpoint.name == name), None)

    def without(self, name: str) -> "Manifest":
        """A copy that does not know the checkpoint of that name."""
        return self.model_copy(update={"checkpoints": [c for c in self.checkpoints if c.name != name]})

    def having(self, checkpoint: CheckpointInfo) -> "Manifest":
        """A copy with `checkpoint` added, or put in the place of its namesake."""
        checkpoints = [*self.without(checkpoint.name).checkpoints, checkpoint]
        return self.model_copy(update={"checkpoints": sorted(checkpoints, key=lambda c: (c.epoch, c.name))})


def explain(error: pydantic.ValidationError) -> str:
    """The first complaint of a validation error on one line, e.g. "identity.dim: Field required"."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".lstrip(": ")
