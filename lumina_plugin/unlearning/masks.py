"""What does not count in a loss: padding behind a recording's end, and silence.

A mask is given per frame of codes and holds for all codebooks of that frame. MusicGen predicts codebook k of a frame k
steps later (the delay pattern); masks are applied to codes before they are brought into that order, so that every
frame's codes follow it.
"""

import dataclasses
import typing as tp
from pathlib import Path

import torch

from ..errors import LuminaError
from ..gradients import Example

E = tp.TypeVar('E')


@dataclasses.dataclass(frozen=True)
class Piece:
    """A song or query: chunks that are averaged by what counts in them.

    Args:
        id (str): Unique. examples (sequence of Example): At least one.
    """
    id: str
    examples: tp.Sequence[tp.Any]


def named(file: Path) -> str:
    """What a recording is called: `lumina generate` calls each clip's audio, and its folder by the clip."""
    return file.absolute().parent.name if file.stem == 'audio' else file.stem


def frame_levels(wav: torch.Tensor, frames: int) -> torch.Tensor:
    """Level of each frame in dBFS, of audio [C, S] that lasts so many frames: [frames], -inf for zeros."""
    mono = wav.float().square().mean(0)  # [S]
    edges = torch.linspace(0, mono.numel(), frames + 1).round().long()
    sums = torch.nn.functional.pad(mono.double().cumsum(0), (1, 0))[edges]
    power = (sums[1:] - sums[:-1]) / (edges[1:] - edges[:-1]).clamp(min=1)
    return 10 * power.clamp(min=0).log10()


class MaskedSong:
    """A song whose examples are read, and masked, whenever they are asked for; where it counts is remembered.

    Args:
        song: An `id` and `examples`. masker: What masks them.
    """

    def __init__(self, song: tp.Any, masker: tp.Any):
        self.id, self._song, self._masker = song.id, song, masker
        self._counted: tp.Optional[tp.List[torch.Tensor]] = None  # per example, [T] bool

    @property
    def examples(self) -> tp.List[tp.Any]:
        """Those of which something is left.

        Raises:
            LuminaError: when nothing is left of any.
        """
        examples = list(self._song.examples)
        if self._counted is None:
            self._counted = [self._masker.sounding(example) for example in examples]
        return list(self._masker.left_of(self.id, examples, self._counted))


class WholeSong:
    """A song whose examples count whole; read whenever they are asked for."""

    def __init__(self, song: tp.Any, masker: tp.Any):
        self.id, self._song, self._masker = song.id, song, masker

    @property
    def examples(self) -> tp.List[tp.Any]:
        return list(self._masker.whole(self._song).examples)


def left_of(name: str, examples: tp.Sequence[E], counted: tp.Sequence[torch.Tensor], silence_db: float) -> tp.List[E]:
    """Examples with what counts of them [T]; those of which nothing does are left out.

    Raises:
        LuminaError: when none is left.
    """
    kept = [dataclasses.replace(tp.cast(tp.Any, example), counted=one)
            for example, one in zip(examples, counted, strict=True)]
    left = [example for example in kept if example.weight > 0]
    if not left:
        raise LuminaError(f"Nothing of {name} is left once padding and silence below {silence_db:g} dBFS are masked; "
                          "leave it out, lower silence_db, or use the mask 'none'.")
    return left


class Masker:
    """Take padding and silence out of examples of MusicGen.

    Levels are those of what the codec makes of the codes: the same way for recordings and for generations, of which
    there is nothing else.

    Args:
        codec: audiocraft `CompressionModel`. silence_db (float): A frame below this level is silent.
    """

    def __init__(self, codec: tp.Any, silence_db: float = -60.):
        self.codec, self.silence_db = codec, silence_db

    def masked(self, piece: tp.Any) -> Piece:
        """Only music counts.

        Raises:
            LuminaError: when nothing is left.
        """
        examples = list(piece.examples)
        return Piece(piece.id, self.left_of(piece.id, examples, [self.sounding(example) for example in examples]))

    def left_of(self, name: str, examples: tp.Sequence[Example], counted: tp.Sequence[torch.Tensor]
                ) -> tp.List[Example]:
        """Examples with what counts of them [T]; those of which nothing does are left out."""
        return left_of(name, examples, counted, self.silence_db)

    @staticmethod
    def whole(piece: tp.Any) -> Piece:
        """All music counts, silence too. Padding never does: MusicGen is not trained on it. Nor does a prompt that was
        left out."""
        return Piece(piece.id, [dataclasses.replace(example, counted=None) for example in piece.examples])

    @torch.no_grad()
    def sounding(self, example: Example) -> torch.Tensor:
        """Which frames are no silence, [T]."""
        device = next(iter(self.codec.parameters())).device
        wav = self.codec.decode(example.codes[None].to(device))[0].cpu()  # [C, S]
        return frame_levels(wav, example.codes.shape[-1]) >= self.silence_db
