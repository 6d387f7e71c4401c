"""Make channels mean what they say: turn down what a channel should not hear.

Channel P is to find songs of the same composition, whatever their production, and M the reverse. Raw gradients mix the
two. Pairs of recordings that share the composition and differ in production show in which directions a production moves
a gradient (the nuisance of P), and pairs that share the production show the nuisance of M. A `Separation` keeps the
leading directions of such recordings and whitens the nuisance there (within-class covariance normalisation, Hatch et
al. 2006): directions in which it scatters widely count little, those in which it hardly moves count much.

It is a linear map on rows of numbers. On the joined gradients of a channel's blocks, before anything else has projected
them, it takes the place of `FittedProjection` and gives fingerprints that a store can keep. It can be fitted on a
store's finished fingerprints as well, but hardly on those of random signs: their noise hides the nuisance
(docs/validation.md, Channels).
"""

import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import nn

from .atomic import write_atomic
from .errors import LuminaError
from .projection import Projection, Tensors
from .recipe import KEEPS

OTHER: tp.Dict[str, str] = {'composition': 'production', 'production': 'composition'}
FACTOR = 1.5  # so many times better must a channel find what it is to find
RANK, SHRINKAGE = 256, 0.05
TIMES = 6  # that a song is changed, where a pass over a catalogue fits
RECORDINGS = 2048  # that it fits on at most, changed and as they are: as many as its Gram matrix is wide
FORMAT = 'lumina-separation-1'


class Separation(Projection):
    """A whitening of nuisance within the leading directions of some recordings.

    Args:
        mean (torch.Tensor): Subtracted first, of shape [R].
        map (torch.Tensor): What a centred row is multiplied with, of shape [R, r].
        dim (int): Width D >= r of what comes out; zeros follow the r numbers.
        songs (int): How many groups of recordings the fit used; 0 where that is not known.
    """
    kind = 'separated'

    def __init__(self, mean: torch.Tensor, map: torch.Tensor, dim: int, songs: int = 0):
        self.mean, self.map, self.dim, self.songs = mean, map, dim, songs

    @classmethod
    def fit(cls, rows: torch.Tensor, groups: npt.ArrayLike, rank: int = RANK, shrinkage: float = SHRINKAGE,
            dim: tp.Optional[int] = None) -> 'Separation':
        """Fit on recordings of which some share what is to be kept.

        With the covariance S of what differs within groups, in the r leading directions B of all rows, the map is
        B·((1 - s)·S + s·tr(S)/r·1)^(-1/2). All of it goes through the n×n Gram matrix of the rows, however long.

        Args:
            rows (torch.Tensor): Joined gradients or fingerprints, of shape [n, R].
            groups (array): [n]; equal ones share what is to be kept and differ in nuisance alone.
            rank (int): r, at most; no more than the rows span.
            shrinkage (float): s, in (0, 1]; at 1 nothing is whitened.
            dim (int, optional): D; r unless given.
        Raises:
            LuminaError: where nothing differs within any group, or a number is out of range.
        """
        if not 0 < shrinkage <= 1 or rank < 1 or (dim is not None and dim < rank):
            raise LuminaError(f"A separation of rank {rank} with shrinkage {shrinkage} in {dim or rank} numbers cannot "
                              "be fitted; the shrinkage lies in (0, 1], and the rank between 1 and the numbers.")
        mean = rows.float().mean(0)
        centred = rows.float() - mean
        values, vectors = torch.linalg.eigh((centred @ centred.T).double().cpu())
        kept = min(rank, int((values > values[-1].clamp(min=0) * 1e-6).sum()))
        values, vectors = values[len(values) - kept:], vectors[:, len(values) - kept:]
        inside = vectors * values.sqrt()  # [n, r], each row in the leading directions
        scatter, freedom = _within(inside.numpy(), np.asarray(groups))
        if not freedom or not np.trace(scatter) > 0:
            raise LuminaError("No two recordings differ in what a separation is to turn down; give it at least two "
                              "different ones of a group.")
        shrunk = (1 - shrinkage) * scatter + shrinkage * np.trace(scatter) / kept * np.eye(kept)
        spread, axes = np.linalg.eigh(shrunk)
        whitening = torch.from_numpy((axes / np.sqrt(spread)) @ axes.T)
        map = centred.T @ (vectors / values.sqrt() @ whitening).to(centred)
        # the size of a map means nothing, as only directions are compared: let it keep the nuisance's mean square
        return cls(mean, map * float(np.sqrt(np.trace(scatter) / kept)), kept if dim is None else dim,
                   len(np.unique(groups)))

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.shape[-1] != len(self.mean):
            raise LuminaError(f"This separation takes {len(self.mean)} numbers, but a row has {rows.shape[-1]}; fit it "
                              "again on what it is to be used on.")
        return nn.functional.pad((rows.to(self.map) - self.mean) @ self.map, (0, self.dim - self.map.shape[1]))

    def tensors(self) -> Tensors:
        return {'mean': self.mean, 'map': self.map}

    def facts(self) -> tp.Dict[str, str]:
        return {'kind': self.kind, 'in_dim': str(len(self.mean)), 'dim': str(self.dim),
                'rank': str(self.map.shape[1]), 'songs': str(self.songs)}


def _within(rows: npt.NDArray[np.float64], groups: npt.NDArray[tp.Any]) -> tp.Tuple[npt.NDArray[np.float64], int]:
    """Covariance [r, r] of rows [n, r] about the means of their groups, and its degrees of freedom."""
    _, of = np.unique(groups, return_inverse=True)
    counts = np.bincount(of)
    means = np.zeros((len(counts), rows.shape[1]))
    np.add.at(means, of, rows)
    apart = rows - (means / counts[:, None])[of]
    freedom = len(rows) - len(counts)
    return apart.T @ apart / max(1, freedom), freedom


def separation_file(store: tp.Union[str, Path]) -> Path:
    """Where the separations of a store lie: beside its folder."""
    store = Path(store)
    return store.parent / f'{store.name}.separation.safetensors'


def save(path: tp.Union[str, Path], separations: tp.Mapping[tp.Tuple[str, str], Separation],
         facts: tp.Mapping[str, str]) -> Path:
    """Write separations by (checkpoint, channel), with facts of what they belong to."""
    tensors = {f'{checkpoint}/{channel}/{name}': tensor.cpu().contiguous()
               for (checkpoint, channel), one in separations.items() for name, tensor in one.tensors().items()}
    dims = {f'{checkpoint}/{channel}/dim': str(one.dim) for (checkpoint, channel), one in separations.items()}
    return write_atomic(path, safetensors.torch.save(tensors, {**facts, **dims, 'format': FORMAT}))


def load(path: tp.Union[str, Path], **expected: str) -> tp.Dict[tp.Tuple[str, str], Separation]:
    """Read what `save` wrote, by (checkpoint, channel).

    Args:
        expected: Facts that must be the same, such as `recipe_hash`.
    Raises:
        LuminaError: when it is missing, damaged, or belongs to something else.
    """
    try:
        with safetensors.safe_open(str(path), 'pt') as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise LuminaError(f"{path} cannot be read as separations ({str(error).splitlines()[0]}); make them with "
                          "`lumina validate channels`.") from error
    if facts.get('format') != FORMAT:
        raise LuminaError(f"{path} holds no separations of this version ({facts.get('format')}); make them with "
                          "`lumina validate channels`.")
    for name, value in expected.items():
        if facts.get(name) != value:
            raise LuminaError(f"{path} was made for another store ({name}: {facts.get(name)}, yours: {value}); make "
                              "it again with `lumina validate channels`.")
    names = dict.fromkeys(tuple(name.split('/')[:2]) for name in tensors)
    return {(checkpoint, channel): Separation(tensors[f'{checkpoint}/{channel}/mean'],
                                              tensors[f'{checkpoint}/{channel}/map'],
                                              int(facts[f'{checkpoint}/{channel}/dim']))
            for checkpoint, channel in names}


class Estimate(tp.NamedTuple):
    """A mean with its 95 % interval."""
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f'{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]'


class ChannelFigures(tp.NamedTuple):
    """What a channel was measured to find, in chance-corrected average precision (0: chance, 1: perfect).

    Args:
        kept (Estimate): Of what it is to find. other (Estimate): Of what it is not to find.
        lead (Estimate): kept - `FACTOR` · other.
    """
    kept: Estimate
    other: Estimate
    lead: Estimate

    @property
    def separated(self) -> bool:
        """Whether it is known to find `FACTOR` times better what it is to find, and to find that at all."""
        return self.lead.low > 0 and self.kept.low > 0


def verdict(figures: tp.Mapping[str, ChannelFigures]) -> str:
    """What the figures of the channels P and M allow to say, in words: one or two sentences per channel."""
    return ' '.join(_sentence(channel, figures[channel]) for channel in KEEPS if channel in figures)


def _sentence(channel: str, found: ChannelFigures) -> str:
    kept, other = KEEPS[channel], OTHER[KEEPS[channel]]
    measured = (f"on songs that nothing was fitted on it finds those of the same {kept} with an average precision of "
                f"{found.kept} above chance, and those of the same {other} with {found.other}")
    if found.separated:
        return f"Channel {channel} tells {kept} from {other}: {measured}."
    if found.kept.low <= 0:
        return (f"Channel {channel} is not separated on this model: {measured}, which is not clearly more than chance. "
                f"Its shares are no evidence of {kept}.")
    if found.lead.high > 0:
        return (f"Channel {channel} is not known to be separated on this model: {measured}; these intervals are too "
                f"wide to tell. Read it as a witness of both.")
    return (f"Channel {channel} is not separated on this model: {measured}. Its shares speak of {other} as well as of "
            f"{kept}.")
