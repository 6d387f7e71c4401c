"""Scores of a query's fingerprint against every song of a store.

A score is known by its name (`score_names()`), so that a recipe can carry it and a report can print it. What does not
depend on a query is computed once (`fit_scorers`); songs are read in blocks, so a memory-mapped store never has to fit
in memory, and no score ever forms an N x N matrix. Up to `EXACT_SONGS` songs all arithmetic is in float64, whatever
the store's own type is. Beyond, products with songs are in float32, with one or two queries in the store's own float16
(three digits), and those of the `REFINED` highest songs are made again in float64: the top has exact numbers.

A zero vector (silence) scores 0 against everything. Vectors that hold NaN or infinity are refused.
"""

import abc
import typing as tp

import numpy as np
import numpy.typing as npt
import torch

from .errors import LuminaError

FloatArray = npt.NDArray[np.float64]

DEFAULT_RIDGE = 0.01
BLOCK = 4096  # songs read at a time: 16 MiB of float64 at D = 512
EXACT_SONGS, REFINED = 1 << 16, 256
SAMPLED = 64  # of so many songs one tells where the highest begin
_SCORES: tp.Dict[str, tp.Type['Scorer']] = {}


class StackedRows:
    """Several [n, D] tensors, memory-mapped or not, as one [N, D] that is read in slices and never joined.

    Args:
        parts (sequence of torch.Tensor or array): Of one width.
        width (int): D, for no parts at all.
    """

    def __init__(self, parts: tp.Sequence[tp.Any], width: int):
        self.parts = [part for part in parts if len(part)]
        self.shape = (sum(len(part) for part in self.parts), width)

    def take(self, index: npt.NDArray[np.int64]) -> FloatArray:
        """Some rows, of ascending index, in float64."""
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        taken = [np.asarray(part[index[(index >= first) & (index < last)] - first], dtype=np.float64)
                 for part, first, last in zip(self.parts, starts[:-1], starts[1:], strict=True)]
        return np.concatenate([np.zeros((0, self.shape[1])), *taken])

    def blocks(self, size: int) -> tp.Iterator[tp.Any]:
        """At most `size` rows at a time, in order, never across two parts."""
        for part in self.parts:
            for start in range(0, len(part), size):
                yield part[start:start + size]


class Scorer(abc.ABC):
    """One score of a channel's songs, ready for queries.

    Args:
        songs: [N, D]: an array, a tensor or `StackedRows`, memory-mapped or not.
        ridge (float): λ, for the scores that have one.
    Raises:
        LuminaError: for songs of another shape, or of which one is not finite.
    """
    unit: bool = True  # whether songs and queries count by direction alone

    def __init__(self, songs: tp.Any, ridge: float = DEFAULT_RIDGE):
        self.songs, self.ridge = _as_songs(songs), ridge
        self.dtype = torch.float64 if self.songs.shape[0] <= EXACT_SONGS else torch.float32
        self.scales = torch.ones(self.songs.shape[0], dtype=self.dtype)  # of each song's products

    def learn(self, songs: torch.Tensor) -> None:  # noqa: B027 (most scores keep nothing)
        """What a score keeps of all songs; called for blocks [n, D] of them, of length 1 if `unit`, in order."""

    def pool(self, total: tp.Callable[[torch.Tensor], torch.Tensor]) -> None:  # noqa: B027
        """Make what these songs taught what all songs teach; `total` sums over the processes that hold them."""

    def ready(self) -> None:  # noqa: B027
        """Called after the last block."""

    @abc.abstractmethod
    def directions(self, queries: torch.Tensor) -> torch.Tensor:
        """What songs are multiplied with, [Q, D] in float64, of queries [Q, D] (of length 1 if `unit`)."""

    def finish(self, scores: FloatArray) -> FloatArray:
        """The scores from the scaled products, both [Q, N]."""
        return scores

    def __call__(self, query: npt.ArrayLike) -> FloatArray:
        """Score of each query [D] or [Q, D] against each song: [Q, N], float64, or float32 beyond `EXACT_SONGS`."""
        return score_together([self], query)[0]


def score_together(scorers: tp.Sequence[Scorer], query: npt.ArrayLike) -> tp.List[FloatArray]:
    """Several scores of the same songs and queries, reading the songs once; each as the scorer alone gives it."""
    songs, dtype = scorers[0].songs, scorers[0].dtype
    queries = _as_queries(query)
    _check_widths(queries, songs)
    unit, raw = torch.from_numpy(unit_rows(queries)), torch.from_numpy(queries)
    directions = torch.cat([scorer.directions(unit if scorer.unit else raw) for scorer in scorers])  # [S * Q, D]
    products = torch.empty(len(directions), songs.shape[0], dtype=dtype)
    first = 0
    for block in _blocks(songs):
        last = first + len(block)
        products[:, first:last] = _products(block, directions, dtype)
        first = last
    if dtype != torch.float64:
        _refine(products, directions, songs)
    return [scorer.finish(part.mul_(scorer.scales).numpy())
            for scorer, part in zip(scorers, products.split(len(queries)), strict=True)]


def _products(block: torch.Tensor, directions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inner products [Q, n] of directions [Q, D] with songs [n, D]; float16 songs of a large store stay as they are."""
    if block.dtype != torch.float16 or dtype == torch.float64 or len(directions) > 4:
        return (block.to(dtype) @ directions.T.to(dtype)).T
    # few directions: a matrix times a vector is read at the memory's own speed, where converting it would take longer
    peaks = directions.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    scaled = (directions / peaks).half()  # as they come, they may be far below what float16 can hold
    found = torch.stack([torch.mv(block, one) for one in scaled])
    return found.to(dtype) * peaks.to(dtype)


def _refine(products: torch.Tensor, directions: torch.Tensor, songs: tp.Any) -> None:
    """Make the products [Q, N] of each direction's highest songs again, exactly. In place."""
    for product, direction in zip(products, directions, strict=True):
        index = np.sort(highest(product.numpy(), REFINED))
        rows = songs.take(index) if isinstance(songs, StackedRows) else np.asarray(songs[index], dtype=np.float64)
        product[torch.from_numpy(index)] = torch.from_numpy(rows @ direction.numpy()).to(product.dtype)


def fit_scorers(names: tp.Sequence[str], songs: tp.Any, ridge: float = DEFAULT_RIDGE,
                total: tp.Optional[tp.Callable[[torch.Tensor], torch.Tensor]] = None, unit: bool = True
                ) -> tp.Dict[str, Scorer]:
    """The named scores, made ready on songs [N, D] that are read once; λ has no effect on scores that have none.

    Args:
        unit: False for fingerprints whose length is part of what they say (`ProjectionConfig.keeps_lengths`): then no
            score scales songs or queries to length 1, and the cosine is their inner product.
        total: where `songs` are those of one process among several, sums a tensor over all of them (in float64). The
            scores are then those of these songs, as one process that holds all songs would give them.
    Raises:
        LuminaError: for an unknown name, or songs that cannot be scored.
    """
    unknown = [name for name in names if name not in _SCORES]
    if unknown:
        raise LuminaError(f"Recipe key 'scoring.method' is {unknown[0]!r}, which is no score: "
                          f"use one of {', '.join(score_names())}.")
    scorers = {name: _SCORES[name](songs, ridge) for name in names}
    rows = _as_songs(songs)
    first = 0
    dtype = next(iter(scorers.values())).dtype
    for scorer in scorers.values():
        scorer.unit = scorer.unit and unit
    for block in _blocks(rows):
        exact = block.to(dtype)
        finite_rows(exact.numpy(), 'song', first)
        scales = _inverse_lengths(exact)
        scaled = exact * scales[:, None]
        for scorer in scorers.values():
            if scorer.unit:
                scorer.scales[first:first + len(block)] = scales
            scorer.learn(scaled if scorer.unit else exact)
        first += len(block)
    for scorer in scorers.values():
        if total is not None:
            scorer.pool(total)
        scorer.ready()
    return scorers


def register_score(name: str) -> tp.Callable[[tp.Type[Scorer]], tp.Type[Scorer]]:
    """Make a Scorer known under `name`."""
    def add(kind: tp.Type[Scorer]) -> tp.Type[Scorer]:
        if name in _SCORES:
            raise ValueError(f"a score named {name!r} is already registered")
        _SCORES[name] = kind
        return kind
    return add


def score_names() -> tp.List[str]:
    """Names that a recipe may use, sorted."""
    return sorted(_SCORES)


def compute_scores(name: str, query: npt.ArrayLike, songs: tp.Any, ridge: float = DEFAULT_RIDGE) -> FloatArray:
    """The named score of each query [D] or [Q, D] against each song [N, D], as [Q, N].

    Raises:
        LuminaError: for an unknown name, widths that differ, or a vector that is not finite.
    """
    return fit_scorers([name], songs, ridge)[name](query)


@register_score('cosine')
class Cosine(Scorer):
    """Cosine of each query with each song, in [-1, 1] (LUMINA v7, cosine score); 0 where either is zero."""

    def directions(self, queries: torch.Tensor) -> torch.Tensor:
        return queries

    def finish(self, scores: FloatArray) -> FloatArray:
        return np.clip(scores, -1.0, 1.0)


@register_score('dot')
class Dot(Scorer):
    """Inner product of each query with each song, lengths included."""
    unit = False

    def directions(self, queries: torch.Tensor) -> torch.Tensor:
        return queries


@register_score('kernel')
class Kernel(Scorer):
    """Kernel ridge regression of the query on the songs: K (Kᵀ K + λ I)⁻¹ g, with K and g of unit rows.

    The paper prints the N x N form (K Kᵀ + λ I)⁻¹ K g (LUMINA v7, kernel regression; `kernel_reference` here). By the
    push-through identity both are the same vector; this one solves D x D and passes over the songs once when it is
    made, and once per batch of queries. Without λ > 0 the matrix is singular for fewer than D songs.
    """

    def __init__(self, songs: tp.Any, ridge: float = DEFAULT_RIDGE):
        _check_ridge(ridge)
        super().__init__(songs, ridge)
        width = self.songs.shape[1]
        self.gram = torch.zeros(width, width, dtype=torch.float64)

    def learn(self, songs: torch.Tensor) -> None:
        self.gram += songs.T @ songs  # [D, n] @ [n, D]

    def pool(self, total: tp.Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.gram = total(self.gram)

    def ready(self) -> None:
        self._factor = torch.linalg.cholesky(self.gram + self.ridge * torch.eye(len(self.gram), dtype=torch.float64))

    def directions(self, queries: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_solve(queries.T.contiguous(), self._factor).T


def cosine(query: npt.ArrayLike, songs: tp.Any) -> FloatArray:
    """`compute_scores('cosine', ...)`."""
    return compute_scores('cosine', query, songs)


def dot(query: npt.ArrayLike, songs: tp.Any) -> FloatArray:
    """`compute_scores('dot', ...)`."""
    return compute_scores('dot', query, songs)


def kernel(query: npt.ArrayLike, songs: tp.Any, ridge: float = DEFAULT_RIDGE) -> FloatArray:
    """`compute_scores('kernel', ...)`."""
    return compute_scores('kernel', query, songs, ridge)


def kernel_reference(query: npt.ArrayLike, songs: npt.ArrayLike, ridge: float = DEFAULT_RIDGE) -> FloatArray:
    """The kernel score as the paper prints it, (K Kᵀ + λ I)⁻¹ K g: N x N, kept as the oracle of `kernel`."""
    _check_ridge(ridge)
    queries, rows = _as_queries(query), _as_songs(songs)
    _check_widths(queries, rows)
    unit = unit_rows(finite_rows(np.asarray(rows, dtype=np.float64), 'song'))  # [N, D]
    gram = unit @ unit.T + ridge * np.eye(len(unit))
    return np.asarray(np.linalg.solve(gram, unit @ unit_rows(queries).T).T, dtype=np.float64)


def multi_checkpoint(scores: tp.Sequence[npt.ArrayLike]) -> FloatArray:
    """Mean of the scores that a query got at several checkpoints: C times `[Q, N]` (or `[N]`) -> the same shape."""
    arrays = [np.asarray(score, dtype=np.float64) for score in scores]
    if not arrays:
        raise LuminaError("No checkpoint was scored: the store holds none, so fingerprint at least one first.")
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise LuminaError(f"The checkpoints' scores differ in shape ({', '.join(map(str, sorted(shapes)))}): "
                          "fingerprint every checkpoint with the same songs.")
    return np.asarray(np.mean(arrays, axis=0), dtype=np.float64)


def mean_scores(scorers: tp.Sequence[tp.Mapping[str, Scorer]], queries: tp.Sequence[npt.ArrayLike], method: str
                ) -> tp.Tuple[FloatArray, FloatArray]:
    """Mean cosine and mean score by `method` over C checkpoints, [Q, N] each.

    Args:
        scorers: per checkpoint, from `fit_scorers`: 'cosine' and `method`, of the same songs.
        queries: per checkpoint, [Q, D].
    """
    cosines, scores = checkpoint_scores(scorers, queries, method)
    mean = multi_checkpoint(cosines)
    return mean, mean if scores is cosines else multi_checkpoint(scores)


def checkpoint_scores(scorers: tp.Sequence[tp.Mapping[str, Scorer]], queries: tp.Sequence[npt.ArrayLike], method: str
                      ) -> tp.Tuple[tp.List[FloatArray], tp.List[FloatArray]]:
    """Cosines and scores by `method` at each of C checkpoints, C times [Q, N]; one list where both are the same."""
    found = [dict(zip(each, score_together(list(each.values()), query), strict=True))
             for each, query in zip(scorers, queries, strict=True)]
    cosines = [scores['cosine'] for scores in found]
    return cosines, cosines if method == 'cosine' else [scores[method] for scores in found]


def highest(score: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """Indices of the k highest of scores `[N]`, best first, ties in their order."""
    found = np.arange(len(score))
    if len(score) > EXACT_SONGS and 0 < k < len(score) // SAMPLED:  # most of them need not be sorted at all
        sample = np.sort(score[::SAMPLED])
        likely = np.flatnonzero(score >= sample[max(0, len(sample) - 2 * k // SAMPLED - SAMPLED)])
        found = likely if len(likely) >= k else found
    if k < len(found):
        least = np.partition(score[found], len(found) - k)[len(found) - k] if k else np.inf
        found = found[score[found] >= least]
    return found[np.argsort(-score[found], kind='stable')][:k]


def unit_rows(rows: npt.ArrayLike) -> FloatArray:
    """Rows scaled to length 1, zero rows left zero: `[N, D]` -> `[N, D]`."""
    array = np.asarray(rows, dtype=np.float64)
    # Dividing by the largest entry first keeps the squares of very long or very short rows in range.
    peak = np.abs(array).max(axis=1, keepdims=True, initial=0.0)
    array = np.divide(array, peak, out=np.zeros_like(array), where=peak > 0)
    norm = np.linalg.norm(array, axis=1, keepdims=True)
    return np.divide(array, norm, out=array, where=norm > 0)


def _as_queries(query: npt.ArrayLike) -> FloatArray:
    array = np.asarray(query, dtype=np.float64)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise LuminaError(f"A query's fingerprint has shape {array.shape}, but [D] or [Q, D] is expected: "
                          "pass one channel's vector.")
    return finite_rows(array, 'query')


def _as_songs(songs: tp.Any) -> tp.Any:
    """Songs as something with `.shape`; arrays, memory maps and tensors pass through unread."""
    rows = songs if hasattr(songs, 'shape') else np.asarray(songs, dtype=np.float64)
    if len(rows.shape) != 2:
        raise LuminaError(f"The songs' fingerprints have shape {tuple(rows.shape)}, but [N, D] is expected: "
                          "pass one channel's rows.")
    return rows


def _blocks(rows: tp.Any) -> tp.Iterator[torch.Tensor]:
    """Songs a block at a time, in their own type."""
    parts = rows.blocks(BLOCK) if isinstance(rows, StackedRows) else (
        rows[start:start + BLOCK] for start in range(0, rows.shape[0], BLOCK))
    for part in parts:
        yield part if isinstance(part, torch.Tensor) else torch.from_numpy(np.array(part))


def _inverse_lengths(rows: torch.Tensor) -> torch.Tensor:
    """1/length of each row [n, D], 0 for a row of zeros. Very long and very short rows keep their range."""
    tiny = torch.finfo(rows.dtype).tiny
    peak = rows.abs().amax(dim=1).clamp(min=tiny)
    length = (rows / peak[:, None]).norm(dim=1)
    return torch.where(length > 0, 1 / (length * peak).clamp(min=tiny), 0.)


def finite_rows(rows: FloatArray, what: str, offset: int = 0) -> FloatArray:
    """The same `[N, D]` rows. Raises LuminaError naming the first that holds NaN or infinity, counted from `offset`."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise LuminaError(f"The fingerprint of {what} number {offset + int(bad[0])} holds NaN or infinity: "
                          "check that its audio is sound and fingerprint it again.")
    return rows


def _check_widths(queries: FloatArray, rows: tp.Any) -> None:
    if queries.shape[1] != rows.shape[1]:
        raise LuminaError(f"The query's fingerprint is {queries.shape[1]} wide and the songs' are {rows.shape[1]}: "
                          "fingerprint both with the same recipe.")


def _check_ridge(ridge: float) -> None:
    if not (np.isfinite(ridge) and ridge > 0):
        raise LuminaError(f"Recipe key 'scoring.ridge' is {ridge}, but it must be above 0: try {DEFAULT_RIDGE}.")
