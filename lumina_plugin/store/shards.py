"""Tensor files with a header that checks and explains itself: shards, pending rows and projections.

A file is plain safetensors. Its one metadata key `lumina` holds `{"body": ..., "sha256": ...}`, where the digest covers
the body and every tensor. (One key, since safetensors writes several in no fixed order.) The manifest's SHA-256 of the
whole file is the quick check; this inner one serves where the manifest is lost.
"""

import hashlib
import json
import typing as tp
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import LuminaError
from .files import canonical

Tensors = tp.Dict[str, torch.Tensor]
_KEY = "lumina"


class Damaged(LuminaError):
    """A file that cannot be what its writer wrote."""


class Row(tp.NamedTuple):
    """One song's fingerprint: per channel a vector [D], the raw norm before normalisation, perhaps its chunks' [n]."""

    vectors: Tensors
    norms: tp.Dict[str, float]
    chunk_norms: tp.Optional[Tensors] = None


def independent(tensors: tp.Mapping[str, torch.Tensor], floats: tp.Optional[torch.dtype] = None) -> Tensors:
    """Contiguous CPU tensors that share no memory, as safetensors wants them; floats cast to `floats` if given."""
    seen: tp.Set[int] = set()
    result: Tensors = {}
    for name, tensor in tensors.items():
        dtype = floats if floats is not None and tensor.is_floating_point() else tensor.dtype
        tensor = tensor.detach().to("cpu", dtype).contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def encode(tensors: tp.Mapping[str, torch.Tensor], body: tp.Dict[str, tp.Any]) -> bytes:
    """The bytes of a file that holds `tensors` (contiguous, on the CPU) and `body`; equal content gives equal bytes."""
    tensors = dict(tensors)
    return save(tensors, {_KEY: canonical({"body": body, "sha256": _digest(tensors, body)}).decode()})


def decode(path: Path) -> tp.Tuple[Tensors, tp.Dict[str, tp.Any]]:
    """Memory-mapped tensors and body of a file by `encode`, checked. Raises Damaged."""
    tensors, metadata = load(path)
    try:
        header = json.loads(metadata[_KEY])
        body, digest = header["body"], header["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path} is damaged: its header is unreadable") from error
    if _digest(tensors, body) != digest:
        raise Damaged(f"{path} is damaged: content and checksum differ")
    return tensors, body


def load(path: Path) -> tp.Tuple[Tensors, tp.Dict[str, str]]:
    """Memory-mapped tensors and raw metadata of any safetensors file, unchecked. Raises Damaged."""
    try:
        with safe_open(str(path), "pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata() or {}
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error


def _digest(tensors: tp.Mapping[str, torch.Tensor], body: tp.Dict[str, tp.Any]) -> str:
    digest = hashlib.sha256(canonical(body))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"|{name} {tensor.dtype} {tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stack(rows: tp.Sequence[Row], channels: tp.Sequence[str], dim: int, dtype: torch.dtype) -> Tensors:
    """Rows as tensors: per channel C, "C" [n, D] of `dtype` and "C.norm" [n] fp32.

    Where any row has chunk norms, too: "C.chunk_norms" [chunks of all rows] fp32, row after row, of which row i has
    "C.chunk_ends"[i - 1] to "C.chunk_ends"[i] (int64 [n]).
    """
    tensors: Tensors = {}
    ragged = any(row.chunk_norms is not None for row in rows)
    for channel in channels:
        vectors = torch.empty(len(rows), dim, dtype=dtype)
        for index, row in enumerate(rows):
            vectors[index] = row.vectors[channel]
        tensors[channel] = vectors
        tensors[f"{channel}.norm"] = torch.tensor([row.norms[channel] for row in rows], dtype=torch.float32)
        if ragged:
            parts = [row.chunk_norms[channel] if row.chunk_norms else torch.empty(0) for row in rows]
            tensors[f"{channel}.chunk_norms"] = torch.cat(parts)
            tensors[f"{channel}.chunk_ends"] = torch.tensor([len(part) for part in parts]).cumsum(0)
    return tensors


def chunk_norms(tensors: Tensors, channel: str, count: int) -> tp.List[torch.Tensor]:
    """Per row its chunks' norms [chunks], views; empty ones where none were kept."""
    if f"{channel}.chunk_ends" not in tensors:
        return [torch.empty(0)] * count
    ends = tensors[f"{channel}.chunk_ends"].tolist()
    return [tensors[f"{channel}.chunk_norms"][first:end] for first, end in zip([0, *ends], ends, strict=False)]


def unstack(tensors: Tensors, channels: tp.Sequence[str], count: int) -> tp.List[Row]:
    """The inverse of `stack`; vectors are views of the (mapped) tensors."""
    norms = {channel: tensors[f"{channel}.norm"].tolist() for channel in channels}
    chunks = {channel: chunk_norms(tensors, channel, count) for channel in channels}
    return [Row({channel: tensors[channel][index] for channel in channels},
                {channel: norms[channel][index] for channel in channels},
                {channel: chunks[channel][index] for channel in channels}
                if any(len(chunks[channel][index]) for channel in channels) else None) for index in range(count)]


def check_row(name: str, row: tp.Tuple[tp.Mapping[str, torch.Tensor], tp.Optional[tp.Mapping[str, float]],
                                       tp.Optional[tp.Mapping[str, torch.Tensor]]],
              channels: tp.Sequence[str], dim: int, dtype: torch.dtype) -> Row:
    """A song's row (vectors, norms, chunk norms), cast to the store's `dtype` and copied.

    Raises LuminaError, naming the song, for a wrong one.
    """
    vectors, norms, chunks = row
    if any(part is not None and set(part) != set(channels) for part in row):
        raise LuminaError(f"the fingerprint of song '{name}' must have exactly the channels {', '.join(channels)}")
    kept: Tensors = {}
    for channel, vector in vectors.items():
        if tuple(vector.shape) != (dim,):
            raise LuminaError(f"channel {channel} of song '{name}' has shape {list(vector.shape)}; the "
                              f"store holds [{dim}]")
        kept[channel] = vector.detach().to("cpu", dtype, copy=True)
        if not bool(torch.isfinite(kept[channel]).all()):
            raise LuminaError(f"channel {channel} of song '{name}' holds NaN or infinity (as {dtype}); mark the song "
                              "as skipped, or fingerprint it again")
    if norms is None:
        norms = {channel: float(vectors[channel].detach().float().norm()) for channel in channels}
    return Row(kept, {channel: float(norms[channel]) for channel in channels}, _check_chunks(name, chunks))


def _check_chunks(name: str, chunks: tp.Optional[tp.Mapping[str, torch.Tensor]]) -> tp.Optional[Tensors]:
    if chunks is None:
        return None
    kept = {channel: norms.detach().to("cpu", torch.float32, copy=True) for channel, norms in chunks.items()}
    if any(norms.dim() != 1 or not bool(torch.isfinite(norms).all()) for norms in kept.values()):
        raise LuminaError(f"the chunk norms of song '{name}' must be finite, of shape [chunks] per channel")
    return kept if any(len(norms) for norms in kept.values()) else None
