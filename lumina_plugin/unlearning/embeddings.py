"""What music sounds like, as vectors: to pick targets that differ, and to compare generations before and after.

Of the sources, the first that is there is used, and named in every result: openl3 where it is installed, CLAP from a
folder, else the latents of the model's own codec, averaged over windows of a second.
"""

import dataclasses
import importlib.util
import typing as tp

import numpy as np
import numpy.typing as npt
import torch

from ..errors import LuminaError

FloatArray = npt.NDArray[np.float64]
WINDOW = 1.  # seconds


@dataclasses.dataclass(frozen=True)
class Sound:
    """How codes [K, T] or latents [C, T] become sound.

    Args:
        name (str): Of the latents, for tables. latents (callable): To [D, T]. decode (callable): To samples [S].
        sample_rate (int): Of the samples. frame_rate (float): Of the latents.
    """
    name: str
    latents: tp.Callable[[torch.Tensor], torch.Tensor]
    decode: tp.Callable[[torch.Tensor], torch.Tensor]
    sample_rate: int
    frame_rate: float


@dataclasses.dataclass(frozen=True)
class Embedder:
    """Codes or latents to vectors.

    Args:
        name (str): Of what embeds, for tables. windows (callable): One chunk to vectors [windows, D].
        facts: What its vectors depend on besides its name and the model, ready for JSON.
    """
    name: str
    windows: tp.Callable[[torch.Tensor], FloatArray]
    facts: tp.Any = None

    def song(self, chunks: tp.Sequence[torch.Tensor]) -> FloatArray:
        """Mean and spread over all windows of a song's chunks, [2 D]."""
        rows = np.concatenate([self.windows(one) for one in chunks])
        return np.concatenate([rows.mean(0), rows.std(0)])


def codec_sound(codec: tp.Any) -> Sound:
    """Codes of an audiocraft `CompressionModel`."""
    device = next(iter(codec.parameters())).device

    @torch.no_grad()
    def latents(codes: torch.Tensor) -> torch.Tensor:
        return tp.cast(torch.Tensor, codec.decode_latent(codes[None].to(device))[0].cpu())

    @torch.no_grad()
    def decode(codes: torch.Tensor) -> torch.Tensor:
        return tp.cast(torch.Tensor, codec.decode(codes[None].to(device))[0].mean(0).cpu())
    return Sound("latents of the model's codec", latents, decode, codec.sample_rate, codec.frame_rate)


def embedder(sound: Sound, kind: str = 'auto', clap: tp.Optional[str] = None) -> Embedder:
    """The best embedder that is there, or the one of a kind: auto, openl3, clap, codec.

    Raises:
        LuminaError: when the kind asked for is not there.
    """
    has_openl3 = importlib.util.find_spec('openl3') is not None
    if kind == 'openl3' or kind == 'auto' and has_openl3:
        if not has_openl3:
            raise LuminaError("openl3 is not installed; install it, or choose the embedding clap or codec.")
        return _openl3(sound)
    if kind == 'clap' or kind == 'auto' and clap is not None:
        if clap is None:
            raise LuminaError("The embedding clap needs a folder or a hub name; give --clap.")
        return _clap(sound, clap)
    if kind not in ('auto', 'codec'):
        raise LuminaError(f"There is no embedding '{kind}'; choose openl3, clap or codec.")
    return _latents(sound)


def _latents(sound: Sound) -> Embedder:
    frames = max(1, round(WINDOW * sound.frame_rate))

    def windows(chunk: torch.Tensor) -> FloatArray:
        found = sound.latents(chunk).double()  # [D, T]
        whole = max(1, found.shape[-1] // frames)
        return np.stack([part.mean(-1).numpy() for part in found[:, :whole * frames].split(frames, dim=-1)])
    return Embedder(sound.name, windows)


def _openl3(sound: Sound) -> Embedder:
    import openl3  # type: ignore[import-not-found]

    def windows(chunk: torch.Tensor) -> FloatArray:
        found, _ = openl3.get_audio_embedding(sound.decode(chunk).numpy(), sound.sample_rate, content_type='music',
                                              embedding_size=512, hop_size=WINDOW, verbose=False)
        return np.asarray(found, dtype=np.float64)
    return Embedder('openl3, music, 512', windows)


def _clap(sound: Sound, source: str) -> Embedder:
    from ..audio import resample
    from ..baselines.clap import load_clap
    clap = load_clap(source)

    def windows(chunk: torch.Tensor) -> FloatArray:
        wav = resample(sound.decode(chunk)[None], sound.sample_rate, clap.windows.sample_rate)[0]
        return clap.embed(clap.windows.cut(wav)).double().cpu().numpy()
    return Embedder(clap.name, windows, clap.facts)


def pick_targets(rows: FloatArray, count: int, seed: int = 0) -> tp.List[int]:
    """Rows that cover all of them: k-means, and of each cluster the row nearest to its centre.

    Args:
        rows (array): [N, D]. count (int): How many; all where there are no more.
    """
    from scipy.cluster.vq import kmeans2
    if count >= len(rows):
        return list(range(len(rows)))
    spread = rows.std(0)
    scaled = (rows - rows.mean(0)) / np.where(spread > 0, spread, 1.)
    centres, labels = kmeans2(scaled, count, iter=50, minit='++', seed=seed)
    picked: tp.List[int] = []
    for cluster in range(count):
        members = np.flatnonzero(labels == cluster)
        distance = np.linalg.norm(scaled[members] - centres[cluster], axis=1)
        picked += [int(members[np.argmin(distance)])] if len(members) else []
    others = sorted(set(range(len(rows))) - set(picked), key=lambda row: -np.linalg.norm(scaled[row]))
    picked += others[:count - len(picked)]  # a cluster can end empty
    return sorted(picked)


def frechet(first: FloatArray, second: FloatArray) -> float:
    """Fréchet distance between Gaussians fitted to two sets of vectors [n, D] (Heusel et al. 2017; FAD for audio).

    ‖μ1 - μ2‖² + tr(C1 + C2 - 2 (C1 C2)^½); the trace of the root by the eigenvalues of C1^½ C2 C1^½, which is
    symmetric.
    """
    means = first.mean(0) - second.mean(0)
    one, two = np.atleast_2d(np.cov(first, rowvar=False)), np.atleast_2d(np.cov(second, rowvar=False))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ two @ root)
    return float(means @ means + np.trace(one) + np.trace(two) - 2 * np.sqrt(np.clip(crossed, 0, None)).sum())
