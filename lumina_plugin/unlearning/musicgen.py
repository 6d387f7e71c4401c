"""MusicGen as what is unlearnt from."""

import typing as tp
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..attribution import Attributor
from ..errors import LuminaError
from ..gradients import Example, GradientModel
from ..recipe import get_recipe
from ..sampling import TOGETHER, Sampling, generate_codes
from ..store import FingerprintStore
from ..tokens import Tokenizer
from .embeddings import Sound, codec_sound
from .masks import Masker, Piece, named
from .recipe import UnlearningRecipe
from .scoring import FloatArray
from .subject import Subject

CHANNELS = {'P': 'self_attention', 'M': 'output_linears'}
SECONDS = 10.


class MusicGenSubject(Subject):
    """A MusicGen and its songs.

    Args:
        lm (nn.Module): audiocraft `LMModel`. codec: audiocraft `CompressionModel`.
        tokenizer (Tokenizer, optional): What recordings are encoded by.
        folder, songs, state, titles: As `Subject`.
    """

    def __init__(self, folder: Path, lm: nn.Module, codec: tp.Any, songs: tp.Sequence[tp.Any],
                 state: tp.Optional[tp.Mapping[str, torch.Tensor]] = None, tokenizer: tp.Optional[Tokenizer] = None,
                 titles: tp.Optional[tp.Mapping[str, tp.Optional[str]]] = None):
        super().__init__(folder, lm, songs, state, titles)
        self.codec, self.tokenizer = codec, tokenizer

    def adapted(self, recipe: UnlearningRecipe) -> UnlearningRecipe:
        return recipe

    def learner(self, recipe: UnlearningRecipe, batch_size: int = 8) -> GradientModel:
        if recipe.objective == 'v_objective':
            raise LuminaError("A MusicGen cannot answer the v-objective; choose objective cross_entropy or margin.")
        layers = CHANNELS.get(recipe.layers, recipe.layers)
        keys = get_recipe('default', objective=recipe.objective, channels={recipe.layers: [layers]})
        return GradientModel(self.module, keys, self.state, batch_size)

    def masker(self, recipe: UnlearningRecipe) -> Masker:
        return Masker(self.codec, recipe.silence_db)

    def pieces(self, files: tp.Sequence[Path], text: tp.Optional[str] = None) -> tp.List[Piece]:
        from ..conditions import attributes_for
        if self.tokenizer is None:
            raise ValueError("a subject without a tokenizer reads no recordings")
        found = []
        for file in files:
            tokenized = self.tokenizer.file(file)
            if tokenized.silent:
                raise LuminaError(f"{file} is silent: there is nothing in it to forget; give a recording with sound.")
            found.append(Piece(named(file), [Example(chunk.codes, 0, chunk.frames, attributes_for(self.module, text))
                                             for chunk in tokenized.chunks if not chunk.silent]))
        return found

    def generated(self, count: int, seed: int) -> tp.List[torch.Tensor]:
        frames = round(SECONDS * self.codec.frame_rate)
        return [one for first in range(0, count, TOGETHER)
                for one in generate_codes(self.module, None, [None] * min(TOGETHER, count - first), frames,
                                          Sampling(seed=seed), first)]

    def sounds(self, song: tp.Any) -> tp.List[torch.Tensor]:
        return [example.codes[:, :example.stop] for example in song.examples]

    @property
    def sound(self) -> Sound:
        return codec_sound(self.codec)

    def attributor(self, store: FingerprintStore) -> Attributor:
        return Attributor(self.module, self.codec, store)

    def fingerprint_scores(self, attributor: tp.Any, piece: tp.Any) -> tp.Dict[str, FloatArray]:
        return {channel: np.asarray(rows, dtype=np.float64)
                for channel, rows in attributor.scores(list(piece.examples), 0).items()}
