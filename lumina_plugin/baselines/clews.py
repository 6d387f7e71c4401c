"""CLEWS (Serrà et al. 2025, arXiv 2502.16936): embeddings of segments that find other versions of a composition.

Its network is taken as TorchScript, which needs none of its code, or as anything that can be called: [B, samples] at
its rate to [B, D]. Beside the file stands a JSON that says how it listens:

    {"file": "clews.pt", "weights": "shs-clews", "sample_rate": 16000, "window": 20.0, "hop": 10.0, "reduction": "best"}

The authors release a checkpoint and code; `torch.jit.script` or `torch.jit.trace` of the loaded network makes the file.
"""

import typing as tp
import warnings
from pathlib import Path

import pydantic
import torch

from ..audio import file_sha256
from ..errors import LuminaError
from .embedding import Embedder, Windows

SETTINGS = 'clews.json'
TOGETHER = 8  # windows at once
Network = tp.Callable[[torch.Tensor], torch.Tensor]


class Settings(pydantic.BaseModel):
    """What stands beside the weights."""
    model_config = pydantic.ConfigDict(extra='forbid')

    file: str = pydantic.Field(description="Name of the TorchScript file in the same folder.")
    weights: str = pydantic.Field(min_length=1, description="Whose weights they are, as tables print it.")
    sample_rate: int = pydantic.Field(description="Hz that the network takes.")
    window: float = pydantic.Field(20., description="Seconds of a segment; shorter ones are padded with silence.")
    hop: float = pydantic.Field(10., description="Seconds from one segment to the next.")
    reduction: str = pydantic.Field('best', description="best or mean, see `Windows`.")


class Segments(Embedder):
    """A network on segments of one length.

    Args:
        network (callable): [B, samples] to [B, D]. weights (str): Whose they are. windows (Windows): How it listens.
        facts: What tells its weights from others. device (str, optional): Where the network is.
    """

    def __init__(self, network: Network, weights: str, windows: Windows, facts: tp.Any,
                 device: tp.Optional[str] = None):
        super().__init__(f'CLEWS ({weights})', windows, ['clews', facts])
        self.network, self.device = network, device or 'cpu'
        self._size = round(windows.seconds * windows.sample_rate)

    @torch.no_grad()
    def embed(self, pieces: tp.Sequence[torch.Tensor]) -> torch.Tensor:
        padded = torch.stack([torch.nn.functional.pad(piece, (0, self._size - len(piece))) for piece in pieces])
        return torch.cat([self._checked(part.to(self.device)) for part in padded.split(TOGETHER)])

    def _checked(self, waves: torch.Tensor) -> torch.Tensor:
        try:
            found = self.network(waves)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise LuminaError(f"{self.name} fails on audio of {waves.shape[1]} samples ({reason}); it must take "
                              f"[B, samples] at {self.windows.sample_rate} Hz: mend its export, or 'sample_rate' and "
                              f"'window' in {SETTINGS}.") from error
        if not isinstance(found, torch.Tensor) or found.dim() != 2 or len(found) != len(waves):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise LuminaError(f"{self.name} turns audio [B, samples] into {shape} rather than [B, D]; export a network "
                              "that returns one embedding per segment.")
        return found


def load_clews(folder: tp.Union[str, Path], device: tp.Optional[str] = None) -> Segments:
    """A network from a folder with `clews.json` and a TorchScript file.

    Raises:
        LuminaError: when one of them is missing or damaged, or they disagree about the sample rate.
    """
    folder = Path(folder)
    settings = _settings(folder)
    windows = Windows(settings.sample_rate, settings.window, settings.hop, settings.reduction)
    path = folder / settings.file
    if not path.is_file():
        raise LuminaError(f"{folder / SETTINGS} names the weights {settings.file}, which are not beside it; put the "
                          "TorchScript file there.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message=r'`torch\.jit')  # its successor cannot be read without its code
            network = torch.jit.load(str(path), map_location=device or 'cpu').eval()
    except (RuntimeError, ValueError) as error:
        raise LuminaError(f"{path} cannot be read as TorchScript ({str(error).strip().splitlines()[0][:120]}); export "
                          "the network again with torch.jit.script or torch.jit.trace.") from error
    rate = getattr(network, 'sample_rate', None)
    if rate is not None and int(rate) != settings.sample_rate:
        raise LuminaError(f"The network in {path} takes {int(rate)} Hz, but {SETTINGS} says {settings.sample_rate} Hz; "
                          "mend 'sample_rate' there.")
    return Segments(network, settings.weights, windows, file_sha256(path), device)


def _settings(folder: Path) -> Settings:
    try:
        return Settings.model_validate_json((folder / SETTINGS).read_bytes())
    except OSError as error:
        raise LuminaError(f"There is no CLEWS in {folder} (no {SETTINGS}); put a TorchScript of the network and its "
                          f"{SETTINGS} there, as the docstring of lumina_plugin.baselines.clews says.") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = '.'.join(map(str, first['loc'])) or 'the file'
        raise LuminaError(f"{folder / SETTINGS} cannot be used: {where}: {first['msg']}; mend it there.") from error
