"""Scores of a query's fingerprint against every song of a store.

A score is a function `(query, songs) -> [Q, N]` known by its name (`score_names()`), so that a recipe can carry it and
a report can print it. Songs are read in blocks, so a memory-mapped store never has to fit in memory, and no score ever
forms an N x N matrix. All arithmetic is in float64, whatever the store's own type is.

A zero vector (silence) scores 0 against everything. Vectors that hold NaN or infinity are refused.
"""

import inspect
import typing as tp

import numpy as np
import numpy.typing as npt

from .errors import LuminaError

FloatArray = npt.NDArray[np.float64]
ScoreFunction = tp.Callable[..., FloatArray]

DEFAULT_RIDGE = 0.01
BLOCK = 4096  # songs read at a time: 16 MiB of float64 at D = 512
_SCORES: tp.Dict[str, ScoreFunction] = {}


def register_score(name: str) -> tp.Callable[[ScoreFunction], ScoreFunction]:
    """Make a function `(query, songs, [ridge]) -> [Q, N]` known under `name`."""
    def add(function: ScoreFunction) -> ScoreFunction:
        if name in _SCORES:
            raise ValueError(f"a score named {name!r} is already registered")
        _SCORES[name] = function
        return function
    return add


def score_names() -> tp.List[str]:
    """Names that a recipe may use, sorted."""
    return sorted(_SCORES)


def compute_scores(name: str, query: npt.ArrayLike, songs: npt.ArrayLike, ridge: float = DEFAULT_RIDGE) -> FloatArray:
    """The named score of each query against each song.

    Args:
        name: one of `score_names()`.
        query: `[D]` or `[Q, D]`.
        songs: `[N, D]`, memory-mapped or not.
        ridge: λ, passed to the scores that take one and of no effect on the others.
    Returns:
        `[Q, N]` float64.
    Raises:
        LuminaError: for an unknown name, widths that differ, or a vector that is not finite.
    """
    if name not in _SCORES:
        raise LuminaError(f"Recipe key 'scoring.method' is {name!r}, which is no score: "
                          f"use one of {', '.join(score_names())}.")
    function = _SCORES[name]
    if 'ridge' in inspect.signature(function).parameters:
        return function(query, songs, ridge=ridge)
    return function(query, songs)


@register_score('cosine')
def cosine(query: npt.ArrayLike, songs: npt.ArrayLike) -> FloatArray:
    """Cosine of each query with each song, in [-1, 1] (LUMINA v7, cosine score).

    Args:
        query: `[D]` or `[Q, D]`, of any length.
        songs: `[N, D]`, of any length.
    Returns:
        `[Q, N]`; 0 wherever either vector is zero.
    """
    queries, rows = _as_queries(query), _as_songs(songs)
    _check_widths(queries, rows)
    unit = unit_rows(queries)
    blocks = [unit @ unit_rows(block).T for block in _blocks(rows)]  # [Q, n] each
    return np.clip(_join(blocks, len(queries)), -1.0, 1.0)


@register_score('dot')
def dot(query: npt.ArrayLike, songs: npt.ArrayLike) -> FloatArray:
    """Inner product of each query with each song, lengths included: `[D]` or `[Q, D]`, `[N, D]` -> `[Q, N]`."""
    queries, rows = _as_queries(query), _as_songs(songs)
    _check_widths(queries, rows)
    return _join([queries @ block.T for block in _blocks(rows)], len(queries))


@register_score('kernel')
def kernel(query: npt.ArrayLike, songs: npt.ArrayLike, ridge: float = DEFAULT_RIDGE) -> FloatArray:
    """Kernel ridge regression of the query on the songs: K (Kᵀ K + λ I)⁻¹ g, with K and g of unit rows.

    The paper prints the N x N form (K Kᵀ + λ I)⁻¹ K g (LUMINA v7, kernel regression; `kernel_reference` here). By the
    push-through identity both are the same vector; this one solves D x D and passes over the songs twice.

    Args:
        query: `[D]` or `[Q, D]`.
        songs: `[N, D]`.
        ridge: λ > 0. Without it the D x D matrix is singular for fewer than D songs.
    Returns:
        `[Q, N]`; 0 wherever either vector is zero.
    """
    _check_ridge(ridge)
    queries, rows = _as_queries(query), _as_songs(songs)
    _check_widths(queries, rows)
    width = queries.shape[1]
    gram = np.zeros((width, width))
    for block in _blocks(rows):
        unit = unit_rows(block)
        gram += unit.T @ unit  # [D, n] @ [n, D]
    gram[np.diag_indices(width)] += ridge
    solved = np.linalg.solve(gram, unit_rows(queries).T)  # [D, Q]
    return _join([(unit_rows(block) @ solved).T for block in _blocks(rows)], len(queries))


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
    """Songs as something with `.shape` and slices; arrays and memory maps pass through unread."""
    rows = songs if hasattr(songs, 'shape') else np.asarray(songs, dtype=np.float64)
    if len(rows.shape) != 2:
        raise LuminaError(f"The songs' fingerprints have shape {tuple(rows.shape)}, but [N, D] is expected: "
                          "pass one channel's rows.")
    return rows


def _blocks(rows: tp.Any) -> tp.Iterator[FloatArray]:
    for start in range(0, rows.shape[0], BLOCK):
        yield finite_rows(np.asarray(rows[start:start + BLOCK], dtype=np.float64), 'song', start)


def _join(blocks: tp.List[FloatArray], queries: int) -> FloatArray:
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((queries, 0))


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
