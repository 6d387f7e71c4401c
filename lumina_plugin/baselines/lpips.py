"""Perceptual distance of activations (LPIPS, Zhang et al. 2018, arXiv 1801.03924), inside the generator itself.

LPIPS runs two pictures through a network, brings the activations of every place of every layer to length 1 over their
channels, and takes the mean square difference over places, averaged over layers. Here the network is the generator,
whose own view of the music counts, and a place is a moment. The third second of a song has nothing to do with the third
second of a generation, so activations of length 1 are averaged over time first and compared then. The weights per
channel that LPIPS learnt from people's judgement of pictures do not exist for music: every channel counts the same.
"""

import functools
import typing as tp

import numpy as np
import torch

from ..conditions import attributes_for
from ..gradients import Example
from ..validation.methods import Indexed
from ..validation.queries import Query
from ..validation.truth import FloatArray
from .inside import batches, read

CHANNEL = 'activations'
Profiles = tp.List[FloatArray]  # by layer, [n, C]
Listen = tp.Callable[[tp.Sequence[tp.Any], bool], Profiles]


def profile(activations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Activations of length 1 over their channels, averaged over time.

    Args:
        activations (torch.Tensor): Of one layer, [B, S, C]. weights (torch.Tensor): What each moment counts, [B, S].
    Returns:
        torch.Tensor: [B, C], fp64.
    """
    given = activations.double()
    unit = given / (given.square().sum(-1, keepdim=True).sqrt() + 1e-10)  # as LPIPS does, in that place
    part = weights.double() / weights.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.einsum('bsc,bs->bc', unit, part)


def distances(queries: Profiles, songs: Profiles) -> FloatArray:
    """Mean over layers of the square distance of profiles, [Q, C] and [N, C] per layer -> [Q, N]."""
    layers = [np.square(q[:, None] - s[None]).sum(-1) for q, s in zip(queries, songs, strict=True)]
    return np.asarray(np.mean(layers, axis=0), dtype=np.float64)


class Lpips(Indexed):
    """Songs by how much less than the others they differ from a query inside of a generator.

    A score is the songs' mean distance less the song's own: distances have no value that means 'no influence', and what
    is summed over groups of songs, as the suite does, must not depend on how many they are.

    Args:
        listen (callable): Of queries, with their prompts masked or not, the profile of each layer: of a language model
            `codes_profiles`; another generator brings its own, made by `profile`.
        songs (sequence): Songs, each with its id as `source`.
        facts: All that `listen` depends on besides the model, ready for JSON.
    """

    def __init__(self, listen: Listen, songs: tp.Sequence[tp.Any], facts: tp.Any = 'lpips'):
        super().__init__('LPIPS', [str(song.source) for song in songs])
        self._listen, self._queries, self.facts = listen, list(songs), facts

    def _index(self) -> None:
        self._songs = self._listen(self._queries, False)

    def _scores(self, queries: tp.Sequence[tp.Any], masked: bool) -> tp.Dict[str, FloatArray]:
        found = distances(self._listen(queries, masked), self._songs)
        return {CHANNEL: found.mean(1, keepdims=True) - found}

    def _bytes(self) -> float:
        return 4. * sum(layer.shape[1] for layer in self._songs)


def codes_profiles(lm: tp.Any) -> Listen:
    """How a language model hears codes: the outputs of its transformer's layers, without any text.

    Equal codes have equal profiles, whatever they were described as.
    """
    def listen(queries: tp.Sequence[Query], masked: bool) -> Profiles:
        layers = list(lm.transformer.layers)
        nothing = attributes_for(lm, None)
        examples = [Example(query.codes, query.prompt_frames if masked else 0, query.codes.shape[-1], nothing)
                    for query in queries]
        found: tp.List[tp.List[FloatArray]] = [[np.empty(0)] * len(queries) for _ in layers]
        for batch in batches(lm, examples):
            for layer, rows in enumerate(read(lm, batch, layers, functools.partial(profile, weights=batch.heard))):
                for place, row in zip(batch.index, rows.cpu().numpy(), strict=True):
                    found[layer][place] = row
        return [np.stack(rows) for rows in found]
    return listen
