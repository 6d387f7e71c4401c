"""From the gradients of a channel's blocks to one vector of D numbers.

Two stages. `BlockReducers` (inside the capture) keeps at most `block_width` numbers on each side of a weight.
`RandomProjection` or `FittedProjection` then maps the joined blocks, R numbers, to D.
"""

import abc
import hashlib
import typing as tp

import torch
from torch import nn

from .capture import Moments, Reducer, TwoSided, full_gradient
from .channels import Block
from .errors import LuminaError

Tensors = tp.Dict[str, torch.Tensor]

_DIRECTIONS_AT_ONCE = 64  # a basis can be large, and signs are applied to a copy
ENOUGH_SIGNS = 64  # for a residual, where a recipe leaves it open
_NONZEROS = 4  # signs per input coordinate of a sparse projection (Kane & Nelson 2014); more cost time, not accuracy


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Scale rows to length 1; a row of zeros stays zero."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm.clamp(min=torch.finfo(x.dtype).tiny), torch.zeros_like(x))


class SparseSigns:
    """A seeded R×D matrix with `_NONZEROS` signs per row, scaled so that squared lengths are kept on average.

    Each input coordinate is added to one place in each of `_NONZEROS` equal parts of the output, so that its signs
    never collide. Nothing but the seed needs to be stored.
    """

    def __init__(self, in_dim: int, dim: int, seed: int):
        parts = min(_NONZEROS, dim)
        generator = torch.Generator().manual_seed(seed)
        edges = torch.linspace(0, dim, parts + 1).long()
        columns, signs = [], []
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            columns.append(torch.randint(low, high, (in_dim,), generator=generator))
            signs.append(torch.randint(0, 2, (in_dim,), generator=generator, dtype=torch.int8) * 2 - 1)
        self.columns, self.signs, self.dim = columns, signs, dim
        self.scale = parts ** -0.5

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Project x of shape [n, R] to [n, D]."""
        if self.columns[0].device != x.device:
            self.columns = [columns.to(x.device) for columns in self.columns]
            self.signs = [signs.to(x.device) for signs in self.signs]
        out = x.new_zeros(x.shape[0], self.dim)
        for columns, signs in zip(self.columns, self.signs, strict=True):
            out.index_add_(1, columns, x * signs)
        return out * self.scale


class BlockReducers:
    """The two-sided factors of a channel's blocks, and how its reduced gradients are joined.

    Args:
        blocks (list of Block): The channel's weights.
        factors (dict): `'<block>.in'` [i, w_i] and `'<block>.out'` [o, w_o]; a missing side is kept whole.
        block_norm (bool): Scale each block to length 1 before joining.
        made_from (mapping, optional): The facts that random factors can be made from again, so that they need not be
            stored; nothing for fitted ones.
    """

    def __init__(self, blocks: tp.Sequence[Block], factors: Tensors, block_norm: bool,
                 made_from: tp.Optional[tp.Mapping[str, str]] = None):
        self.blocks, self.factors, self.block_norm = list(blocks), factors, block_norm
        self._made_from = dict(made_from or {})

    @classmethod
    def fit(cls, blocks: tp.Sequence[Block], moments: tp.Mapping[str, Moments], width: tp.Optional[int],
            block_norm: bool) -> 'BlockReducers':
        """Keep the `width` leading eigenvectors of both second moments of each block."""
        factors: Tensors = {}
        for block in blocks:
            seen = moments.get(block.name)
            for side, size, moment in (('in', block.in_features, seen.a if seen else None),
                                       ('out', block.out_features, seen.delta if seen else None)):
                if width is not None and size > width and moment is not None:
                    factors[f'{block.name}.{side}'] = _leading_directions(moment, width)
        return cls(blocks, factors, block_norm)

    @classmethod
    def random(cls, blocks: tp.Sequence[Block], width: int, seed: int, block_norm: bool,
               device: tp.Union[str, torch.device] = 'cpu') -> 'BlockReducers':
        """Seeded random factors on every side that is wider than `width`; they depend on no song.

        Each has a generator of its own, seeded by (seed, block, side), whatever other blocks there are.
        """
        factors = {f'{block.name}.{side}': random_factor(size, width, seed, f'{block.name}.{side}').to(device)
                   for block in blocks for side, size in (('in', block.in_features), ('out', block.out_features))
                   if size > width}
        facts = {'factors': 'random', 'block_width': str(width), 'factor_seed': str(seed)}
        return cls(blocks, factors, block_norm, facts)

    def tensors(self) -> Tensors:
        """What must be stored, by name: fitted factors."""
        return {} if self._made_from else {f'factor.{name}': tensor for name, tensor in self.factors.items()}

    def facts(self) -> tp.Dict[str, str]:
        """What random factors are made from again, as text; nothing for fitted ones."""
        return dict(self._made_from)

    @classmethod
    def load(cls, blocks: tp.Sequence[Block], tensors: Tensors, facts: tp.Mapping[str, str], block_norm: bool,
             device: tp.Union[str, torch.device]) -> 'BlockReducers':
        """Rebuild from what `tensors` and `facts` gave; others among them are ignored."""
        if facts.get('factors') == 'random':
            return cls.random(blocks, int(facts['block_width']), int(facts['factor_seed']), block_norm, device)
        prefix = 'factor.'
        return cls(blocks, {name[len(prefix):]: tensor.to(device) for name, tensor in tensors.items()
                            if name.startswith(prefix)}, block_norm)

    def reducers(self) -> tp.Dict[str, Reducer]:
        """One reducer per block, for `GradientCapture`."""
        out: tp.Dict[str, Reducer] = {}
        for block in self.blocks:
            u_in, u_out = self.factors.get(f'{block.name}.in'), self.factors.get(f'{block.name}.out')
            out[block.name] = full_gradient if u_in is None and u_out is None else TwoSided(u_in, u_out)
        return out

    @property
    def dim(self) -> int:
        """Length R of a joined gradient."""
        return sum(self._width(b, 'in', b.in_features) * self._width(b, 'out', b.out_features) for b in self.blocks)

    def _width(self, block: Block, side: str, whole: int) -> int:
        factor = self.factors.get(f'{block.name}.{side}')
        return whole if factor is None else factor.shape[1]

    def join(self, gradients: tp.Mapping[str, torch.Tensor]) -> tp.Tuple[torch.Tensor, torch.Tensor]:
        """Join the blocks' gradients into rows.

        Args:
            gradients (mapping): By block name, of shape [n, o', i'].
        Returns:
            torch.Tensor: Joined rows of length 1 and shape [n, R]; with `block_norm` each block counts the same.
            torch.Tensor: Length of each row before any scaling, of shape [n].
        """
        rows = [gradients[block.name].flatten(1).float() for block in self.blocks]
        norms = torch.stack([row.norm(dim=-1) for row in rows], dim=-1).norm(dim=-1)  # [n]
        if self.block_norm:
            rows = [unit_rows(row) for row in rows]
        return unit_rows(torch.cat(rows, dim=-1)), norms


def random_factor(size: int, width: int, seed: int, name: str) -> torch.Tensor:
    """A seeded random matrix Q of shape [size, width] that keeps inner products in expectation: E[QQᵀ] = 1.

    Its columns are orthogonal and of length √(size/width), in uniformly distributed directions (QR of Gaussian numbers
    with a positive diagonal, Mezzadri 2007). Independent signs keep inner products in expectation too, but err more
    where `width` is no small part of `size` (docs/projection.md): at width = size orthogonal columns are exact.

    Args:
        seed (int), name (str): Together they seed the generator; equal ones give the same matrix.
    """
    digest = hashlib.sha256(f'{seed}/{name}'.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], 'big'))
    q, r = torch.linalg.qr(torch.randn(size, width, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign() * (size / width) ** 0.5).float().contiguous()


def _leading_directions(moment: torch.Tensor, width: int) -> torch.Tensor:
    """The `width` leading eigenvectors of a symmetric matrix as columns, with a fixed sign, in fp32."""
    _, vectors = torch.linalg.eigh(moment.double().cpu())
    return _fix_signs(vectors[:, -width:].flip(1)).float().contiguous().to(moment.device)


def _fix_signs(vectors: torch.Tensor) -> torch.Tensor:
    """Make each column's largest entry positive: eigenvectors are known up to a sign."""
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * torch.where(largest < 0, -1., 1.)


class Projection(abc.ABC):
    """Map joined gradients [n, R] of length 1 to fingerprints [n, D]."""
    kind: tp.ClassVar[str]
    dim: int

    @abc.abstractmethod
    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Project without scaling: [n, R] -> [n, D]."""

    @abc.abstractmethod
    def tensors(self) -> Tensors:
        """What must be stored, by name."""

    @abc.abstractmethod
    def facts(self) -> tp.Dict[str, str]:
        """What describes this projection, as text (kind, seed, rank, songs used)."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return unit_rows(self.project(rows))


class RandomProjection(Projection):
    """Sparse random signs; inner products of unit vectors are kept up to a noise of about 1/√D."""
    kind = 'random'

    def __init__(self, in_dim: int, dim: int, seed: int):
        self.in_dim, self.dim, self.seed = in_dim, dim, seed
        self._signs = SparseSigns(in_dim, dim, seed)

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        return self._signs(rows)

    def tensors(self) -> Tensors:
        return {}

    def facts(self) -> tp.Dict[str, str]:
        return {'kind': self.kind, 'in_dim': str(self.in_dim), 'dim': str(self.dim), 'seed': str(self.seed)}


class FittedProjection(Projection):
    """Principal directions of the songs' gradients, and what to do about all that lies outside of them.

    The r leading directions keep inner products with the fitted songs. Without `residual` they are all there is: a
    vector is as much shorter than 1 as its gradient lies outside, and the inner product of two vectors is the cosine of
    the whole gradients but for what both have in common out there. With it, vectors have length 1, and the other D - r
    numbers are sparse random signs of the residual, which keep a cosine on average, up to a noise of about 1/√(D - r)
    of the lengths outside (docs/projection.md measures both).

    Args:
        mean (torch.Tensor): Subtracted first, of shape [R].
        basis (torch.Tensor): Orthonormal columns, of shape [R, r], r < D.
        dim (int): D. seed (int): of the residual's signs. songs (int): how many songs the fit used.
        residual (bool): Whether there are any.
    """
    kind = 'fitted'

    def __init__(self, mean: torch.Tensor, basis: torch.Tensor, dim: int, seed: int, songs: int,
                 residual: bool = True):
        self.mean, self.basis, self.dim, self.seed, self.songs = mean, basis, dim, seed, songs
        self._keeps_lengths = not residual
        room = dim - basis.shape[1] if residual else 0
        self._residual = SparseSigns(mean.shape[0], room, seed) if room else None
        # signs of the basis [r, D - r]: S(x - BBᵀx) = Sx - (SB)(Bᵀx), so that a residual is never formed
        self._basis_signs = None if self._residual is None else torch.cat(
            [self._residual(part.T.contiguous()) for part in basis.split(_DIRECTIONS_AT_ONCE, dim=1)])
        self._centred = bool(mean.any())

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    @classmethod
    def fit(cls, rows: torch.Tensor, dim: int, residual_dim: tp.Optional[int], center: bool, seed: int
            ) -> 'FittedProjection':
        """Fit on joined gradients of songs, of shape [n, R], through their n×n Gram matrix (exact, deterministic).

        Without a `residual_dim` there are signs while the songs leave room for `ENOUGH_SIGNS`: the songs of the fit are
        then exact all the same, and a song that is added later is found by its own recording. Where they leave none,
        few signs would bring more noise than what they tell.
        """
        mean = rows.mean(0) if center else torch.zeros_like(rows[0])
        centred = rows - mean if center else rows
        gram = (centred @ centred.T).double().cpu()
        values, vectors = torch.linalg.eigh(gram)
        keep = values > values[-1].clamp(min=0) * 1e-6  # fp32 rows: smaller ones are rounding
        needed = int(keep.sum())
        if residual_dim is None:
            residual_dim = ENOUGH_SIGNS if needed <= dim - ENOUGH_SIGNS else 0
        rank = min(needed, dim - residual_dim)
        values, vectors = values[-rank:].flip(0) if rank else values[:0], vectors[:, vectors.shape[1] - rank:].flip(1)
        basis = centred.T @ (_fix_signs(vectors) / values.sqrt()).to(rows) if rank else rows.new_zeros(rows.shape[1], 0)
        return cls(mean, basis, dim, seed, rows.shape[0], residual_dim > 0)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return self.project(rows) if self._keeps_lengths else super().__call__(rows)

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        centred = rows - self.mean if self._centred else rows
        inside = centred @ self.basis  # [n, r]
        if self._keeps_lengths:
            inside = inside / centred.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
            return nn.functional.pad(inside, (0, self.dim - self.rank))
        if self._residual is None or self._basis_signs is None:
            return inside
        return torch.cat([inside, self._residual(centred) - inside @ self._basis_signs], dim=-1)

    def tensors(self) -> Tensors:
        return {'mean': self.mean, 'basis': self.basis}

    def facts(self) -> tp.Dict[str, str]:
        return {'kind': self.kind, 'in_dim': str(self.mean.shape[0]), 'dim': str(self.dim), 'seed': str(self.seed),
                'rank': str(self.rank), 'songs': str(self.songs), 'centred': str(self._centred),
                'residual': 'none' if self._keeps_lengths else 'signs'}


class ChannelProjection:
    """Both stages of one channel, as they are stored and loaded together."""

    def __init__(self, reducers: BlockReducers, projection: Projection):
        self.reducers, self.projection = reducers, projection

    def __call__(self, gradients: tp.Mapping[str, torch.Tensor]) -> tp.Tuple[torch.Tensor, torch.Tensor]:
        """Fingerprints [n, D] and raw lengths [n] of n examples, from their blocks' reduced gradients [n, o', i']."""
        rows, norms = self.reducers.join(gradients)
        return self.projection(rows), norms

    def tensors(self) -> Tensors:
        kept = {f'projection.{name}': tensor for name, tensor in self.projection.tensors().items()}
        return {**self.reducers.tensors(), **kept}

    def facts(self) -> tp.Dict[str, str]:
        return {**self.projection.facts(), **self.reducers.facts()}

    @classmethod
    def load(cls, blocks: tp.Sequence[Block], tensors: Tensors, facts: tp.Mapping[str, str],
             block_norm: bool, device: tp.Union[str, torch.device] = 'cpu') -> 'ChannelProjection':
        """Rebuild from what `tensors` and `facts` gave.

        Raises:
            LuminaError: when they do not belong to these blocks.
        """
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        reducers = BlockReducers.load(blocks, tensors, facts, block_norm, device)
        if int(facts['in_dim']) != reducers.dim:
            raise LuminaError(f"The stored projection takes {facts['in_dim']} numbers, but this model's channel gives "
                              f"{reducers.dim}; fingerprint again with this model.")
        projection: Projection
        if facts['kind'] == 'fitted':
            projection = FittedProjection(tensors['projection.mean'], tensors['projection.basis'],
                                          int(facts['dim']), int(facts['seed']), int(facts['songs']),
                                          facts.get('residual', 'signs') == 'signs')
        elif facts['kind'] == 'separated':
            from .separation import Separation
            projection = Separation(tensors['projection.mean'], tensors['projection.map'], int(facts['dim']),
                                    int(facts.get('songs', 0)))
        else:
            projection = RandomProjection(int(facts['in_dim']), int(facts['dim']), int(facts['seed']))
        return cls(reducers, projection)
