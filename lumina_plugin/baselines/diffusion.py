"""LPIPS, representer points and statistics of latents, for a latent diffusion transformer.

What a denoiser does with music depends on the angle and on the noise, so both are asked at the draws of
`dit.objective`: the same ones for all songs and queries, and the longer set begins with the shorter one.

Representer points (Yeh et al. 2018, arXiv 1811.09720) of squared errors. What the transformer ends in, `proj_out` and
the 1x1 convolution with its residual behind it, is one linear map A [C, D] of the features f that `proj_out` reads. Let
A minimise

    (1/n) Σ_i ‖A f_i - v_i‖² / C + λ‖A‖²,

i over all n triples of a song's frame, its draw and its window. That is a ridge regression, whose minimum is known:

    A = B (S + nλC)⁻¹,  S = Σ_i f_i f_iᵀ,  B = Σ_i v_i f_iᵀ,

and there A = Σ_i α_i f_iᵀ with α_i = (v_i - A f_i) / (nλC), which is -1/(2λn) ∂L/∂Φ(x_i) as in `rps`. Songs need not be
kept frame by frame: a song's part of A is (B_song - A S_song) / (nλC), of its own S and B.

What is explained of a query is how far it is foretold: the mean over its frames and draws of ⟨A f, v⟩ / C, in place of
the value of the right class in `rps`. A song's score is its share in that; the scores of all songs add up to it, which
is tested. Targets are, as in `rps`, what the model itself says (A is then its own map A₀, shrunk by the ridge, and v_i
above is A₀ f_i), or v.
"""

import dataclasses
import functools
import tempfile
import typing as tp
from pathlib import Path

import numpy as np
import torch

from ..dit.model import LatentDiT, LatentExample
from ..dit.objective import angle_time, frame_weights, noise, noisy
from ..dit.queries import LatentQuery
from ..errors import LuminaError
from ..validation.black_boxes import BLACK_BOX, Statistics
from ..validation.methods import Indexed
from ..validation.truth import FloatArray
from .inside import Reduce, overhear
from .lpips import Listen, Lpips, Profiles, profile
from .rps import RIDGE

CHANNEL = 'output map'
SEED = 0  # of the draws, as in ground truths
TARGETS = ('own', 'v')
TOGETHER = 16  # windows at once


@dataclasses.dataclass(frozen=True)
class Pass:
    """Some windows at one draw.

    Args:
        index (list of int): Which query each of the B windows is of. draw (int): Which.
        shares (torch.Tensor): What each frame counts, of sum 1 per window, [B, T]. v (torch.Tensor): [B, C, T].
        heard (list of torch.Tensor): What was kept of each module.
    """
    index: tp.List[int]
    draw: int
    shares: torch.Tensor
    v: torch.Tensor
    heard: tp.List[torch.Tensor]


def passes(dit: LatentDiT, queries: tp.Sequence[LatentQuery], draws: int, modules: tp.Sequence[torch.nn.Module],
           reduce: tp.Callable[[torch.Tensor], Reduce], inputs: bool = False) -> tp.Iterator[Pass]:
    """Ask a denoiser about every window at every draw, and overhear some of its modules.

    Args:
        reduce (callable): Of `shares`, what makes activations [B, T, D] into what is kept of them.
        inputs (bool): What goes into the modules, in place of what comes out.
    """
    windows = [(place, example) for place, query in enumerate(queries) for example in query.examples]
    for first in range(0, len(windows), TOGETHER):
        index, examples = (list(part) for part in zip(*windows[first:first + TOGETHER], strict=True))
        x0 = torch.stack([example.latents for example in examples]).to(dit.device)  # [B, C, T]
        shares = frame_weights(examples, None, dit.frames).to(dit.device)
        conditions = dit.conditions(examples)
        for draw in range(draws):
            eps = noise(draw, SEED, *x0.shape[1:]).to(x0).expand_as(x0)
            t = x0.new_full((len(x0),), angle_time(draw, SEED))
            x, v = noisy(x0, eps, t)
            heard = overhear(dit.denoiser, functools.partial(dit.denoiser, x, t, conditions), dit.frames, modules,
                             reduce(shares), inputs)
            yield Pass(index, draw, shares, v, heard)


# -- LPIPS ----------------------------------------------------------------------------------------------------------

def latent_profiles(dit: LatentDiT, draws: int) -> Listen:
    """How a denoiser hears latents: the outputs of its blocks at each draw, without any text, each a layer of its own.

    Frames behind the music are left out. Equal latents of equal length have equal profiles, whatever their text.
    """
    blocks = list(dit.transformer.transformer_blocks)

    def listen(queries: tp.Sequence[LatentQuery], masked: bool) -> Profiles:
        plain = [LatentQuery(query.id, [dataclasses.replace(one, text=None) for one in query.examples])
                 for query in queries]
        width = int(dit.transformer.inner_dim)
        found = np.zeros((draws, len(blocks), len(queries), width))
        weights = [one.weight for query in plain for one in query.examples]
        totals = np.array([sum(one.weight for one in query.examples) for query in plain])
        seen = dict.fromkeys(range(draws), 0)  # windows of each draw so far
        for some in passes(dit, plain, draws, blocks, lambda shares: functools.partial(profile, weights=shares)):
            for row, place in enumerate(some.index):
                part = weights[seen[some.draw] + row] / totals[place]
                for layer, rows in enumerate(some.heard):
                    found[some.draw, layer, place] += part * rows[row].cpu().numpy()
            seen[some.draw] += len(some.index)
        return list(found.reshape(-1, len(queries), width))
    return listen


def latent_lpips(dit: LatentDiT, songs: tp.Sequence[LatentQuery], draws: int) -> Lpips:
    """LPIPS inside of a denoiser, at so many draws."""
    return Lpips(latent_profiles(dit, draws), songs, ['lpips', draws, SEED])


# -- representer points -----------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Moments:
    """What a ridge regression needs of one piece of music, fp64.

    Args:
        square (torch.Tensor): Σ f fᵀ, [D, D]. wanted (torch.Tensor): Σ v fᵀ, [C, D]. count (int): Frames times draws.
    """
    square: torch.Tensor
    wanted: torch.Tensor
    count: int


def output_map(dit: LatentDiT) -> torch.Tensor:
    """All that a transformer does with the features that `proj_out` reads, as one matrix [C, D], fp64."""
    last = dit.transformer.proj_out.weight.detach().double()  # [C, D]
    return tp.cast(torch.Tensor, last + dit.transformer.postprocess_conv.weight.detach().double()[..., 0] @ last)


def ridge_map(square: torch.Tensor, wanted: torch.Tensor, penalty: float) -> torch.Tensor:
    """B (S + penalty)⁻¹ of sums over all songs: [C, D]."""
    eye = torch.eye(len(square), dtype=square.dtype, device=square.device)
    return tp.cast(torch.Tensor, torch.linalg.solve(square + penalty * eye, wanted.T).T)


class LatentRepresenters(Indexed):
    """Songs by their share in how far a query's v is foretold.

    The songs' sums wait in a temporary file.

    Args:
        dit (LatentDiT): The model. songs (sequence of LatentQuery): N songs. draws (int): Of timestep and noise.
        ridge (float): λ. targets (str): 'own' or 'v', what the last layer is fitted to.
    Raises:
        LuminaError: when a setting is out of range.
    """

    def __init__(self, dit: LatentDiT, songs: tp.Sequence[LatentQuery], draws: int, ridge: float = RIDGE,
                 targets: str = 'own'):
        super().__init__('RPS' if targets == 'own' else 'RPS, fitted to v', [str(song.source) for song in songs])
        if not ridge > 0 or targets not in TARGETS:
            raise LuminaError(f"Representer points need a ridge above 0 and targets that are one of "
                              f"{', '.join(TARGETS)}, not {ridge:g} and '{targets}'.")
        self.dit, self.draws, self.ridge, self.targets, self._queries = dit, draws, ridge, targets, list(songs)
        self._folder = tempfile.TemporaryDirectory(prefix='lumina-rps-')

    @property
    def facts(self) -> tp.Any:
        """All that scores depend on besides model, songs and queries."""
        return ['rps', self.ridge, self.targets, self.draws, SEED]

    def moments(self, query: LatentQuery) -> Moments:
        """Of one song or query, over its valid frames and all draws."""
        own, device = output_map(self.dit), self.dit.device
        square = torch.zeros(own.shape[1], own.shape[1], dtype=torch.float64, device=device)
        wanted, count = torch.zeros_like(own), 0
        for some in passes(self.dit, [query], self.draws, [self.dit.transformer.proj_out], lambda _: _as_it_is, True):
            counts = some.shares > 0  # [B, T]
            features = some.heard[0][counts].double()  # [n, D]
            square += features.T @ features
            wanted += some.v.transpose(1, 2)[counts].double().T @ features
            count += len(features)
        return Moments(square, wanted, count)

    def _index(self) -> None:
        own = output_map(self.dit).cpu()
        channels, width = own.shape
        shape = (len(self._queries), width + channels, width)
        kept = np.memmap(Path(self._folder.name) / 'sums.bin', np.float64, 'w+', shape=shape)
        total, count = torch.zeros(shape[1:], dtype=torch.float64), 0
        for row, song in enumerate(self._queries):
            found = self.moments(song)
            square = found.square.cpu()
            sums = torch.cat([square, own @ square if self.targets == 'own' else found.wanted.cpu()])
            kept[row] = sums.numpy()
            total, count = total + sums, count + found.count
        penalty = count * self.ridge * channels
        self.fitted = ridge_map(total[:width], total[width:], penalty)  # [C, D]
        self._parts = np.stack([(one[width:] - self.fitted.numpy() @ one[:width]) / penalty for one in kept])

    def _scores(self, queries: tp.Sequence[LatentQuery], masked: bool) -> tp.Dict[str, FloatArray]:
        rows = []
        for query in queries:
            found = self.moments(query)
            rows.append(found.wanted.cpu().numpy() / (found.count * len(found.wanted)))  # mean of v fᵀ, over C, [C, D]
        return {CHANNEL: np.einsum('qcd,ncd->qn', np.stack(rows), self._parts)}

    def _bytes(self) -> float:
        return float(self._parts.nbytes) / len(self.songs)


def _as_it_is(activations: torch.Tensor) -> torch.Tensor:
    return activations


# -- black boxes -------------------------------------------------------------------------------------------------------

class LatentStatistics(Statistics):
    """Mean and standard deviation of each channel of latents over the frames that hold music."""

    def __init__(self, songs: tp.Sequence[LatentQuery]):
        super().__init__('latent statistics', songs)

    def _statistics(self, query: LatentQuery, masked: bool) -> FloatArray:
        frames = torch.cat([_music(one) for one in query.examples], dim=1).double()  # [C, T]
        return torch.cat([frames.mean(1), frames.std(1, correction=0)]).numpy()


class Calmness(Indexed):
    """Songs by how little their latents vary, whatever the query: a control that looks at no query at all.

    What it foretells of retraining is what songs do to all queries alike; a method that foretells no more than it has
    said nothing of who shaped what.
    """
    facts: tp.Any = None

    def __init__(self, songs: tp.Sequence[LatentQuery]):
        super().__init__('calm latents, query unseen', [str(song.source) for song in songs])
        self._queries = list(songs)

    def _index(self) -> None:
        music = [torch.cat([_music(one) for one in song.examples], dim=1).double() for song in self._queries]
        self._songs = -np.array([float(one.var(correction=0)) for one in music])  # [N]

    def _scores(self, queries: tp.Sequence[LatentQuery], masked: bool) -> tp.Dict[str, FloatArray]:
        return {BLACK_BOX: np.tile(self._songs, (len(queries), 1))}

    def _bytes(self) -> float:
        return 4.


def _music(example: LatentExample) -> torch.Tensor:
    return example.latents[:, :example.valid_frames]
