"""What a training's own table says of its fingerprints: cheap figures of one checkpoint that is complete."""

import typing as tp

import numpy as np

from .errors import LuminaError
from .recipe import Recipe
from .reliability import diagnose_store
from .scoring import StackedRows, fit_scorers
from .store import RECORDING, FingerprintStore

__all__ = ['checkpoint_figures']


def checkpoint_figures(store: FingerprintStore, checkpoint: str, recipe: Recipe) -> tp.Dict[str, float]:
    """Whether a checkpoint's fingerprints tell music apart, per channel C. No figure knows the truth.

    Args:
        store (FingerprintStore): With the checkpoint complete. checkpoint (str): Its name.
        recipe (Recipe): Whose score is meant.
    Returns:
        dict: `spread_C`, the standard deviation of the cosines between the catalogue's songs. Where the checkpoint has
            outside songs, also of what these score against the catalogue: `alike_C`, the mean absolute rank correlation
            between two of them (1: one ranking whatever is asked); `hubs_C`, the skewness of how often a song is among
            the first (well above 1: a few songs are everybody's neighbours). See `reliability.Diagnosis`.
    """
    found = {f'spread_{channel}': float(spread) for channel, spread in store.checkpoint(checkpoint).noise.items()}
    try:
        null = store.null(checkpoint)
    except LuminaError:  # damaged: whoever reads a report is told, and the next pass makes it again
        return found
    if null is None:
        return found
    outside = [row for row, song in enumerate(null.songs) if song.kind == RECORDING]
    for channel in store.channels:
        shards = list(store.iter_vectors(checkpoint, channel, partial=True))
        ids = [track_id for names, _ in shards for track_id in names]
        songs = StackedRows([rows for _, rows in shards], store.identity.dim)
        method = recipe.scoring.method
        score = fit_scorers([method], songs, recipe.scoring.ridge,
                            unit=not recipe.projection.keeps_lengths(channel))[method]
        diagnosis = diagnose_store(np.asarray(score(null.vectors[channel][outside].numpy())), ids)
        if diagnosis is not None:
            found[f'alike_{channel}'] = diagnosis.ranking_correlation
            found[f'hubs_{channel}'] = diagnosis.hub_skewness
    return found
