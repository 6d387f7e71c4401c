"""Representer points (RPS, Yeh et al. 2018, arXiv 1811.09720): a prediction as a sum over training examples.

Let a model end in a linear map, Φ(x) = W f(x), and let W minimise (1/n) Σ_i L(W f_i, y_i) + λ‖W‖². Where that is so the
gradient vanishes, hence W = Σ_i α_i f_iᵀ with α_i = -(1/2λn) ∂L/∂Φ(x_i), and every prediction falls into one share per
training example: Φ(x) = Σ_i α_i ⟨f_i, f(x)⟩. The share of x_i in the value of class c is the c-th number of
α_i ⟨f_i, f(x)⟩: positive where the example speaks for the class, negative where it speaks against it.

No trained model is at such a minimum, so its last layer is fitted to be: as published for a model that is given, to
that model's own predictions (cross entropy, from its own weights on), or, which `targets='codes'` asks for, to the
music's codes.

Of sequences. Every step of every song is one training example, with features f_t and, per codebook, one linear map and
one code. A song's share is the sum over its steps, and what is explained of a query are the values of the codes that it
consists of, each the class of its step s, averaged over steps and then over codebooks:

    score(song, query) = Σ_k mean_s Σ_t α_{t,k}[y_{s,k}] ⟨f_t, f_s⟩ / K
                       = Σ_k ⟨ Σ_t α_{t,k} f_tᵀ , mean_s e(y_{s,k}) f_sᵀ ⟩ / K

so that the products of all pairs of steps are never formed: one matrix [card, D] per codebook and song is kept, and one
is made per query. Over all songs the scores add up to the query's mean value under the fitted layer, which is tested.
"""

import dataclasses
import tempfile
import typing as tp
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import LuminaError
from ..gradients import Example
from ..validation.methods import Indexed
from ..validation.queries import Query
from ..validation.truth import FloatArray
from .inside import batches, read

CHANNEL = 'output linears'
RIDGE = 0.003  # λ, as in the authors' code
TARGETS = ('own', 'codes')
ENOUGH = 1e-3  # a fit ends where W and Σ α_i f_iᵀ differ by no more than this part of the length of W at first
STEPS = 500  # of L-BFGS, at most


@dataclasses.dataclass(frozen=True)
class Steps:
    """What one codebook's linear map is given of one piece of music.

    Args:
        features (torch.Tensor): Of the steps that count, [n, D]. codes (torch.Tensor): Those to be predicted, [n].
    """
    features: torch.Tensor
    codes: torch.Tensor


def residuals(weight: torch.Tensor, steps: Steps, given: tp.Optional[torch.Tensor]) -> torch.Tensor:
    """∂L/∂Φ of cross entropy, [n, O]: probabilities under `weight` [O, D] less those that are wanted, which `given`
    weights or the codes say."""
    return _losses(weight, steps, given)[1]


def _losses(weight: torch.Tensor, steps: Steps, given: tp.Optional[torch.Tensor]
            ) -> tp.Tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy in fp64, and its residuals [n, O].

    Less the entropy of what is wanted, which no weight changes and in which the rest would drown.
    """
    logs = (steps.features @ weight.T).log_softmax(-1)
    if given is None:
        lost = -logs.gather(1, steps.codes[:, None]).sum(dtype=torch.float64)
        return lost, logs.exp() - nn.functional.one_hot(steps.codes, logs.shape[-1])
    wanted = (steps.features @ given.T).log_softmax(-1)
    chances = wanted.exp()
    return (chances * (wanted - logs)).sum(dtype=torch.float64), logs.exp() - chances


def fitted(start: torch.Tensor, songs: tp.Sequence[Steps], ridge: float, given: tp.Optional[torch.Tensor]
           ) -> torch.Tensor:
    """The linear map [O, D] that minimises mean cross entropy + λ‖W‖², by L-BFGS from `start`.

    Args:
        ridge (float): λ. given (torch.Tensor, optional): Whose predictions it is fitted to; to the codes unless said.
    """
    weight = start.clone().requires_grad_()
    count = sum(len(song.codes) for song in songs)

    def objective() -> torch.Tensor:
        with torch.no_grad():  # written down rather than traced: steps x classes numbers, song by song
            value, slope = ridge * weight.double().square().sum(), 2 * ridge * weight
            for song in songs:
                lost, found = _losses(weight, song, given)
                value = value + lost / count
                slope = slope + found.T @ song.features / count
            weight.grad = slope
        return tp.cast(torch.Tensor, value)

    enough = ENOUGH * 2 * ridge * float(start.square().mean().sqrt())  # the slope is 2λ times that difference
    torch.optim.LBFGS([weight], max_iter=STEPS, tolerance_grad=enough, tolerance_change=0., history_size=20,
                      line_search_fn='strong_wolfe').step(objective)
    return weight.detach()


def representer(weight: torch.Tensor, song: Steps, count: int, ridge: float, given: tp.Optional[torch.Tensor]
                ) -> torch.Tensor:
    """A song's part Σ_t α_t f_tᵀ of the fitted map, [O, D].

    Args:
        count (int): Steps of all songs, n.
    """
    return -residuals(weight, song, given).T @ song.features / (2 * ridge * count)


def explained(steps: Steps, classes: int) -> torch.Tensor:
    """mean_s e(y_s) f_sᵀ of a query, [O, D]."""
    found = steps.features.new_zeros(classes, steps.features.shape[1])
    return found.index_add_(0, steps.codes, steps.features) / max(1, len(steps.codes))


class Representers(Indexed):
    """Songs by their share in the values that a model gives to a query's codes.

    The songs' matrices wait in a temporary file.

    Args:
        lm (nn.Module): audiocraft `LMModel`. songs (sequence of Query): Of the family 'songs'.
        ridge (float): λ. targets (str): 'own' or 'codes', what the last layer is fitted to.
    Raises:
        LuminaError: when a setting is out of range.
    """

    def __init__(self, lm: tp.Any, songs: tp.Sequence[Query], ridge: float = RIDGE, targets: str = 'own'):
        super().__init__('RPS' if targets == 'own' else 'RPS, fitted to codes', [str(song.source) for song in songs])
        if not ridge > 0 or targets not in TARGETS:
            raise LuminaError(f"Representer points need a ridge above 0 and targets that are one of "
                              f"{', '.join(TARGETS)}, not {ridge:g} and '{targets}'.")
        self.lm, self.ridge, self.targets, self._queries = lm, ridge, targets, list(songs)
        self._folder = tempfile.TemporaryDirectory(prefix='lumina-rps-')
        self.fitted: tp.List[torch.Tensor] = []  # by codebook, [card, D] or, where the linears have a bias, D + 1

    @property
    def facts(self) -> tp.Any:
        """All that scores depend on besides model, songs and queries."""
        return ['rps', self.ridge, self.targets]

    def steps(self, queries: tp.Sequence[Query], masked: bool) -> tp.List[tp.List[Steps]]:
        """By query and codebook, the steps that count."""
        examples: tp.List[Example] = [query.example(self.lm, masked) for query in queries]
        found: tp.List[tp.List[Steps]] = [[] for _ in queries]
        biased = self.lm.linears[0].bias is not None
        for batch in batches(self.lm, examples):
            features, = read(self.lm, batch, [self.lm.linears[0]], lambda a: a, inputs=True)  # [B, S, D], all see it
            if biased:
                features = nn.functional.pad(features, (0, 1), value=1.)
            for row, place in enumerate(batch.index):
                found[place] = [Steps(features[row, counts], codes[counts])
                                for counts, codes in zip(batch.counted[row], batch.targets[row], strict=True)]
        return found

    def _index(self) -> None:
        songs = self.steps(self._queries, False)
        for k, linear in enumerate(self.lm.linears):
            steps = [song[k] for song in songs]
            start = linear.weight.detach().float()
            if linear.bias is not None:
                start = torch.cat([start, linear.bias.detach().float()[:, None]], dim=1)
            given = start if self.targets == 'own' else None
            self.fitted.append(fitted(start, steps, self.ridge, given))
            count = sum(len(song.codes) for song in steps)
            if k == 0:
                shape = (len(songs), len(self.lm.linears), start.numel())
                self._parts = np.memmap(Path(self._folder.name) / 'parts.bin', np.float32, 'w+', shape=shape)
            for row, song in enumerate(steps):
                part = representer(self.fitted[k], song, count, self.ridge, given)
                self._parts[row, k] = part.cpu().flatten().numpy()

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        rows = [torch.cat([explained(one, len(self.fitted[k])).flatten() for k, one in enumerate(query)])
                for query in self.steps(queries, masked)]  # [K * card * D] each
        wanted = (torch.stack(rows) / len(self.fitted)).cpu().numpy()  # [Q, K * card * D]
        return {CHANNEL: (wanted @ self._parts.reshape(len(self.songs), -1).T).astype(np.float64)}

    def _bytes(self) -> float:
        return float(self._parts.nbytes) / len(self.songs)
