"""The model weights beside a checkpoint's fingerprints: queries must be fingerprinted with the very same."""

import typing as tp
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..errors import LuminaError
from . import files, shards
from .records import NAME, CheckpointInfo

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore


def save(store: "FingerprintStore", name: str, state_dict: tp.Mapping[str, torch.Tensor]) -> str:
    """See `FingerprintStore.save_weights`."""
    if not NAME.fullmatch(name):
        raise LuminaError(f"'{name}' cannot name a checkpoint: use letters, digits, '.', '_' and '-', e.g. epoch-0004")
    file = f"{name}/weights.safetensors"
    digest = ""
    tensors = shards.independent({key: state_dict[key] for key in sorted(state_dict)}, floats=torch.float32)

    def fill(temp: Path) -> None:
        nonlocal digest
        save_file(tensors, temp, metadata={"format": "pt"})
        digest = files.sha256_file(temp)
        _make_way(store, store.manifest.find(name), digest, temp)

    with store.lock:
        store.reload()
        files.write(store.path / file, fill)
        record = store.manifest.find(name)
        if record is not None and record.weights_sha256 != digest:
            store.commit(store.manifest.having(record.model_copy(update={"weights": file, "weights_sha256": digest})))
    return file


def _make_way(store: "FingerprintStore", record: tp.Optional[CheckpointInfo], digest: str, temp: Path) -> None:
    """Allow weights of that `digest`, or refuse them; the manifest must not name a file that is about to change."""
    if record is None or record.weights_sha256 == digest:
        return
    if record.shards:
        temp.unlink()
        raise LuminaError(f"checkpoint '{record.name}' of {store.path} holds songs fingerprinted with other weights, "
                          "or none of its own; save weights before the first song, use another checkpoint name or a "
                          "fresh store")
    if record.weights_sha256 is not None:
        store.commit(store.manifest.having(record.model_copy(update={"weights": None, "weights_sha256": None})))
