"""Fingerprints on disk, beside the checkpoints: a folder that a kill -9 cannot damage and a flipped bit cannot fool.

    records   what the manifest says (identity, tracks, checkpoints, shards)
    manifest  manifest.json and tracks.jsonl, read and written whole
    files     one way to write a file: complete and on disk, or not at all
    lock      one writer at a time
    shards    tensors with a self-checking header
    pending   rows whose shard is not full yet
    writer    filling one checkpoint, resumable
    weights   the model weights beside a checkpoint's fingerprints
    folder    `FingerprintStore`: opening and reading
    repair    looking for damage, and a manifest from the shards alone

Needs torch, safetensors, numpy and pydantic only.
"""

from .folder import FingerprintStore
from .records import CheckpointInfo, Identity, TrackRecord
from .writer import StoreWriter

__all__ = ["CheckpointInfo", "FingerprintStore", "Identity", "StoreWriter", "TrackRecord"]
