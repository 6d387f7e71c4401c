"""Fingerprints on disk, beside the checkpoints: a folder that a kill -9 cannot damage and a flipped bit cannot fool.

    records     what the manifest says (identity, tracks, checkpoints, shards)
    manifest    manifest.json, read and written whole
    index       the track table, an Arrow file
    layout      which song belongs in which shard, for good
    tombstones  songs that are gone, once more
    files       one way to write a file: complete and on disk, or not at all
    lock        one writer at a time
    shards      tensors with a self-checking header
    pack        one shard's file, and its entry in the manifest
    pending     rows whose shard is not full yet
    filling     songs settle, full shards are written
    writer      filling one checkpoint, resumable
    part        another process's share of that
    adoption    finished shards that the manifest does not name yet
    null        fingerprints of songs outside of the catalogue, beside a checkpoint's own
    weights     the model weights beside a checkpoint's fingerprints
    tracks      the track table as a store shows it
    folder      `FingerprintStore`: opening and reading
    changes     songs that come, change and go
    compact     what is gone leaves the disk
    summary     what a store holds, and what to do about it
    repair      looking for damage, and a manifest from the shards alone
    migrate     stores of older formats
    merge       several stores into one
    export      Parquet and NumPy files

Needs torch, safetensors, numpy, pydantic and pyarrow only; pyarrow is imported when a track table is read or written.
"""

from .export import export
from .folder import FingerprintStore
from .merge import merge
from .null import GENERATION, RECORDING, Kind, OutsideRecord, StoredNull
from .part import StorePart
from .records import CheckpointInfo, Identity, TrackRecord
from .writer import StoreWriter

__all__ = ["GENERATION", "RECORDING", "CheckpointInfo", "FingerprintStore", "Identity", "Kind", "OutsideRecord",
           "StorePart", "StoreWriter", "StoredNull", "TrackRecord", "export", "merge"]
