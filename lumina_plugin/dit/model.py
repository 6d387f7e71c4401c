"""A latent diffusion model of Stable Audio's classes: what it is asked, and what it makes.

The convention is the one of `StableAudioDiTModel` and its pipeline: the transformer is told t in (0, 1), which stands
for the angle φ = t·π/2; it reads x_t = cos φ·x0 + sin φ·ε and gives v = cos φ·ε − sin φ·x0. (diffusers'
`CosineDPMSolverMultistepScheduler` says the same in other letters: t = atan(σ)·2/π with σ = tan φ.) When a recording
begins and how long it is are conditions; shorter recordings are zero-padded to the model's one length.
"""

import dataclasses
import math
import typing as tp

import torch
from torch import nn

from ..errors import LuminaError
from .text import TextEncoder


@dataclasses.dataclass(frozen=True)
class LatentExample:
    """One window of a recording as the model sees it.

    Args:
        latents (torch.Tensor): Shape [C, T], T being the model's one length; what follows the music is coded silence.
        valid_frames (int): The first so many frames are music.
        seconds (float): Length of the whole recording, as the timing condition tells it.
        text (str, optional): Description. id (str): Of the song.
        start (float): Seconds at which the window begins.
        counted (torch.Tensor, optional): True for valid frames that count in a loss, [T]; all of them unless given.
    """
    latents: torch.Tensor
    valid_frames: int
    seconds: float
    text: tp.Optional[str]
    id: str
    start: float = 0.
    counted: tp.Optional[torch.Tensor] = None

    @property
    def weight(self) -> float:
        """Windows of a song are averaged with these weights: the frames that count."""
        if self.counted is None:
            return float(self.valid_frames)
        return float(self.counted[:self.valid_frames].sum())


class Conditions(tp.NamedTuple):
    """What B examples are conditioned on.

    Args:
        states, mask (torch.Tensor, optional): Text, [B, S, E] and [B, S]; None for a model without texts.
        start, seconds (torch.Tensor): Timing, [B].
        keep (torch.Tensor): [B], 1, or 0 where texts and timing are hidden from the cross attention, as a pipeline's
            classifier-free guidance does it.
    """
    states: tp.Optional[torch.Tensor]
    mask: tp.Optional[torch.Tensor]
    start: torch.Tensor
    seconds: torch.Tensor
    keep: torch.Tensor

    def take(self, rows: torch.Tensor) -> 'Conditions':
        """Those of some examples, in any order."""
        states, mask = (None if part is None else part[rows] for part in (self.states, self.mask))
        return Conditions(states, mask, self.start[rows], self.seconds[rows], self.keep[rows])

    def hidden(self) -> 'Conditions':
        """The same examples with texts and timing hidden from the cross attention."""
        return self._replace(keep=torch.zeros_like(self.keep))


class Denoiser(nn.Module):
    """The part that learns: diffusers' transformer and the projection of its conditions, as one module.

    Args:
        transformer (StableAudioDiTModel): What predicts v. projection (StableAudioProjectionModel): Of its conditions.
    """

    def __init__(self, transformer: tp.Any, projection: tp.Any):
        super().__init__()
        self.transformer, self.projection = transformer, projection
        self._rotary: tp.Dict[tp.Tuple[int, torch.device], tp.Tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(self, latents: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Predicted v [B, C, T] of noisy latents [B, C, T] at t [B]."""
        projected = self.projection(text_hidden_states=conditions.states, start_seconds=conditions.start,
                                    end_seconds=conditions.seconds)
        timing = [projected.seconds_start_hidden_states, projected.seconds_end_hidden_states]  # [B, 1, D] each
        heard = timing
        if conditions.states is not None and conditions.mask is not None:
            heard = [projected.text_hidden_states * conditions.mask[..., None].to(latents.dtype), *timing]
        return self.transformer(
            latents, t, encoder_hidden_states=torch.cat(heard, dim=1) * conditions.keep[:, None, None],
            global_hidden_states=torch.cat(timing, dim=2), return_dict=False,
            rotary_embedding=self._rotate(latents.shape[-1] + 1, latents.device))[0]

    def _rotate(self, length: int, device: torch.device) -> tp.Tuple[torch.Tensor, torch.Tensor]:
        """Rotary embedding of so many places, one of which is the global condition's, as the pipeline makes it."""
        if (length, device) not in self._rotary:
            from diffusers.models.embeddings import get_1d_rotary_pos_embed
            cos, sin = get_1d_rotary_pos_embed(self.transformer.config.attention_head_dim // 2, length, use_real=True,
                                               repeat_interleave_real=False)
            self._rotary[length, device] = cos.to(device), sin.to(device)
        return self._rotary[length, device]


class LatentDiT:
    """A latent diffusion model with everything that it needs between a recording and its loss, or noise and sound.

    Args:
        denoiser (Denoiser): Transformer and projection. vae (AutoencoderOobleck): Between sound and latents.
        text (TextEncoder, optional): Of descriptions; None for a model that hears none.
        name (str): Where it comes from, for reports.
    Raises:
        LuminaError: when transformer, projection, autoencoder and text encoder do not fit each other.
    """

    def __init__(self, denoiser: Denoiser, vae: tp.Any, text: tp.Optional[TextEncoder] = None, name: str = 'dit'):
        self.denoiser, self.vae, self.text, self.name = denoiser, vae.eval().requires_grad_(False), text, name
        channels, expected = int(vae.config.decoder_input_channels), int(self.transformer.config.in_channels)
        if channels != expected:
            raise LuminaError(f"The transformer of {name} takes latents of {expected} channels, its autoencoder gives "
                              f"{channels}; take both from one model.")
        if text is not None and text.dim != int(self.projection.config.text_encoder_dim):
            raise LuminaError(f"The projection of {name} takes text states of "
                              f"{self.projection.config.text_encoder_dim} numbers, its text encoder gives {text.dim}; "
                              "take both from one model.")

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def transformer(self) -> tp.Any:
        """The `StableAudioDiTModel`."""
        return self.denoiser.transformer

    @property
    def projection(self) -> tp.Any:
        """The `StableAudioProjectionModel`."""
        return self.denoiser.projection

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def sample_rate(self) -> int:
        return int(self.vae.config.sampling_rate)

    @property
    def channels(self) -> int:
        """Audio channels."""
        return int(self.vae.config.audio_channels)

    @property
    def latent_channels(self) -> int:
        """Channels C of a latent."""
        return int(self.transformer.config.in_channels)

    @property
    def frames(self) -> int:
        """Frames T of every latent."""
        return int(self.transformer.config.sample_size)

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / int(self.vae.hop_length)

    @property
    def seconds(self) -> float:
        """Length of a window."""
        return self.frames / self.frame_rate

    def to(self, device: tp.Union[str, torch.device]) -> 'LatentDiT':
        """Move all parts. Returns self."""
        self.denoiser.to(device)
        self.vae.to(device)
        if self.text is not None:
            self.text = TextEncoder(self.text.tokenizer, self.text.encoder.to(device))
        return self

    # -- between sound and latents ----------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Latents [C, T] of a recording [channels, samples], cut or zero-padded to the model's length: the posterior's
        mean, which draws no noise."""
        length = self.frames * int(self.vae.hop_length)
        wav = nn.functional.pad(wav[:, :length], (0, max(0, length - wav.shape[-1])))
        dtype = next(self.vae.parameters()).dtype
        return self.vae.encode(wav[None].to(self.device, dtype)).latent_dist.mode()[0].float().cpu()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Sound [B, channels, samples] of latents [B, C, T]; one at a time, as memory grows with each."""
        dtype = next(self.vae.parameters()).dtype
        return torch.cat([self.vae.decode(one[None].to(self.device, dtype)).sample.float().cpu() for one in latents])

    def valid_frames(self, seconds: float) -> int:
        """How many of a window's frames hold any of so many seconds of sound, at least one."""
        return max(1, min(self.frames, math.ceil(seconds * self.frame_rate - 1e-6)))

    def windows(self, wav: torch.Tensor, id: str, text: tp.Optional[str] = None, most: int = 1
                ) -> tp.List[LatentExample]:
        """A recording [channels, samples] as up to `most` windows; a last one of less than a quarter is left out."""
        total, step = wav.shape[-1] / self.sample_rate, self.frames * int(self.vae.hop_length)
        pieces = [piece for i, piece in enumerate(wav.split(step, dim=-1)[:most])
                  if i == 0 or 4 * piece.shape[-1] >= step]
        return [LatentExample(self.encode(piece), self.valid_frames(piece.shape[-1] / self.sample_rate), total, text,
                              id, i * self.seconds) for i, piece in enumerate(pieces)]

    # -- asking -----------------------------------------------------------------------------------------------------

    def conditions(self, examples: tp.Sequence[LatentExample]) -> Conditions:
        """What examples are conditioned on, on the model's device."""
        states, mask = self.text([e.text for e in examples]) if self.text is not None else (None, None)
        start, seconds = (torch.tensor(values, dtype=torch.float32, device=self.device) for values in (
            [e.start for e in examples], [e.seconds for e in examples]))
        return Conditions(states, mask, start, seconds, torch.ones(len(examples), device=self.device))

    @torch.no_grad()
    def generate(self, n: int, seconds: tp.Optional[float] = None, seed: int = 0,
                 text: tp.Union[None, str, tp.Sequence[tp.Optional[str]]] = None, steps: int = 50,
                 guidance: float = 1., batch_size: int = 8) -> tp.List[LatentExample]:
        """Draw latents by DDIM (Song et al. 2021, η = 0) in the angle φ, from seeded noise.

        Each draw depends on its own index and the seed alone, not on n or the batch.

        Args:
            n (int): How many. seconds (float, optional): Length; a whole window unless given.
            seed (int): Of the noise. text (str or sequence, optional): One for all, or one each.
            steps (int): Of the sampler. guidance (float): Scale of classifier-free guidance; 1 does without.
            batch_size (int): At once.
        Returns:
            list of LatentExample: Named `free-000` and so on; `decode` makes sound of their latents.
        Raises:
            LuminaError: as many texts as draws are needed, or one.
        """
        from .sampling import draw
        seconds = self.seconds if seconds is None else seconds
        texts = list(text) if isinstance(text, (list, tuple)) else [tp.cast(tp.Optional[str], text)] * n
        if len(texts) != n:
            raise LuminaError(f"{n} generations were asked for with {len(texts)} texts; give one text for each, or one "
                              "for all.")
        empty = torch.zeros(self.latent_channels, self.frames)
        asked = [LatentExample(empty, self.valid_frames(seconds), seconds, texts[i], f'free-{i:03d}') for i in range(n)]
        training = self.denoiser.training
        self.denoiser.eval()
        try:
            made = [latents for first in range(0, n, batch_size)
                    for latents in draw(self, asked[first:first + batch_size], first, seed, steps, guidance)]
        finally:
            self.denoiser.train(training)
        return [dataclasses.replace(e, latents=latents) for e, latents in zip(asked, made, strict=True)]
