"""A latent diffusion transformer as what is unlearnt from: the form that the method was published in.

Losses are means over fixed draws of timestep and noise, the same before and after (arXiv 2506.18312, section 4, where
2,048 are used): what a score measures is far smaller than what another noise would change.
"""

import copy
import dataclasses
import logging
import typing as tp
from pathlib import Path

import torch

from ..dit.attribution import DiTAttributor
from ..dit.fingerprint import DiTFingerprinter
from ..dit.latents import LatentEncoder
from ..dit.model import LatentDiT, LatentExample
from ..errors import LuminaError
from ..recipe import get_recipe
from ..store import FingerprintStore
from .embeddings import Sound
from .fisher import Learner
from .masks import Piece, frame_levels, left_of, named
from .recipe import UnlearningRecipe
from .scoring import FloatArray
from .subject import Subject

logger = logging.getLogger(__name__)

SECONDS = 10.
MOST_WINDOWS = 1 << 30  # of a query: all that there are
STEPS = 30  # of the sampler
_BLOCKS = r'transformer\.transformer_blocks\.\d+\.'
LAYER_GROUPS = {  # weight matrices of diffusers' `StableAudioDiTModel`
    'all': _BLOCKS + r'.*\.weight',
    'self_attention': _BLOCKS + r'attn1\.to_(q|k|v|out\.0)\.weight',
    'cross_attention': _BLOCKS + r'attn2\.to_(q|k|v|out\.0)\.weight',
    'cross_attention_key_value': _BLOCKS + r'attn2\.to_[kv]\.weight',
    'P': _BLOCKS + r'attn1\.to_(q|k|v|out\.0)\.weight',
    'M': r'transformer\.proj_out\.weight',
}


class LatentMasker:
    """Take padding and silence out of windows of latents. Levels are those of what the autoencoder makes of them."""

    def __init__(self, dit: LatentDiT, silence_db: float):
        self.dit, self.silence_db = dit, silence_db

    def masked(self, piece: tp.Any) -> Piece:
        """Only music counts.

        Raises:
            LuminaError: when nothing is left.
        """
        examples = list(piece.examples)
        return Piece(piece.id, self.left_of(piece.id, examples, [self.sounding(example) for example in examples]))

    def left_of(self, name: str, examples: tp.Sequence[LatentExample], counted: tp.Sequence[torch.Tensor]
                ) -> tp.List[LatentExample]:
        """Windows with what counts of them [T]; those of which nothing does are left out."""
        return left_of(name, examples, counted, self.silence_db)

    def whole(self, piece: tp.Any) -> Piece:
        """Everything counts, padding too."""
        return Piece(piece.id, [dataclasses.replace(example, valid_frames=self.dit.frames, counted=None)
                                for example in piece.examples])

    def sounding(self, example: LatentExample) -> torch.Tensor:
        """Which frames are no silence, [T]."""
        wav = self.dit.decode(example.latents[None])[0]  # [channels, samples]
        return frame_levels(wav, example.latents.shape[-1]) >= self.silence_db


class DiffusionSubject(Subject):
    """A `LatentDiT` and its songs.

    Args:
        dit (LatentDiT): The model. encoder (LatentEncoder, optional): What recordings are encoded by.
        folder, songs, state, titles: As `Subject`.
    """

    def __init__(self, folder: Path, dit: LatentDiT, songs: tp.Sequence[tp.Any],
                 state: tp.Optional[tp.Mapping[str, torch.Tensor]] = None,
                 encoder: tp.Optional[LatentEncoder] = None,
                 titles: tp.Optional[tp.Mapping[str, tp.Optional[str]]] = None):
        super().__init__(folder, dit.denoiser, songs, state, titles)
        self.dit, self.encoder = dit, encoder

    unit = 'squared velocity'

    def adapted(self, recipe: UnlearningRecipe) -> UnlearningRecipe:
        return recipe.model_copy(update={'objective': 'v_objective', 'reading': 'v_objective'})

    def learner(self, recipe: UnlearningRecipe, batch_size: int = 8) -> DiTFingerprinter:
        keys = get_recipe('dit', draws=recipe.draws)
        channels = {recipe.layers: [LAYER_GROUPS.get(recipe.layers, recipe.layers)]}
        return DiTFingerprinter(self.dit, keys.model_copy(update={'channels': channels}), self.state,
                                batch_size=batch_size)

    def timesteps(self, learner: tp.Any, recipe: UnlearningRecipe) -> tp.Sequence[Learner]:
        """Its first draws, one by one."""
        return [learner.at_draw(draw) for draw in range(recipe.fisher_draws)]

    def masker(self, recipe: UnlearningRecipe) -> LatentMasker:
        return LatentMasker(self.dit, recipe.silence_db)

    def pieces(self, files: tp.Sequence[Path], text: tp.Optional[str] = None) -> tp.List[Piece]:
        """All windows of each recording; a last one of less than a quarter is left out."""
        if self.encoder is None:
            raise ValueError("a subject without an encoder reads no recordings")
        whole = copy.copy(self.encoder)  # a query is read to its end, whatever part of its songs a run is trained on
        whole.windows = MOST_WINDOWS
        found = []
        for file in files:
            name = named(file)
            examples = whole.file(file, name, text)
            if not examples:
                raise LuminaError(f"{file} is silent: there is nothing in it to forget; give a recording with sound.")
            found.append(Piece(name, examples))
        longest = max(found, key=lambda piece: len(piece.examples), default=None)
        if longest is not None and len(longest.examples) > self.encoder.windows:
            logger.info("%s is asked about whole, in %d windows of %.3g s; of its songs the model knows the first %d "
                        "(dit.windows).", longest.id, len(longest.examples), self.dit.seconds, self.encoder.windows)
        return found

    def generated(self, count: int, seed: int) -> tp.List[torch.Tensor]:
        made = self.dit.generate(count, SECONDS, seed, steps=STEPS)
        return [example.latents[:, :example.valid_frames] for example in made]

    def sounds(self, song: tp.Any) -> tp.List[torch.Tensor]:
        return [example.latents[:, :example.valid_frames] for example in song.examples]

    @property
    def sound(self) -> Sound:
        return Sound("latents of the model's autoencoder", lambda latents: latents,
                     lambda latents: self.dit.decode(latents[None])[0].mean(0), self.dit.sample_rate,
                     self.dit.frame_rate)

    def attributor(self, store: FingerprintStore) -> DiTAttributor:
        return DiTAttributor(self.dit, store)

    def fingerprint_scores(self, attributor: tp.Any, piece: tp.Any) -> tp.Dict[str, FloatArray]:
        return {channel: rows[0] for channel, rows in attributor.scores([list(piece.examples)]).items()}
