"""The embedded catalogue: 97 songs, and 16 held out, composed and rendered by code.

Compositions (`composition`, out of `figures`) are crossed with productions (`production`, made audible by `voices`,
`drums`, `effects`), played by `render`, chosen and credited in `songs`, written to disk by `build`.
"""
from .build import EmbeddedCatalogue, build_embedded
from .composition import Composition, Note, compose
from .production import Production, make_production
from .render import render
from .songs import DEFAULT_SEED, SongSpec, endless_songs, heldout_songs, training_songs
from .voices import SAMPLE_RATE

__all__ = ['DEFAULT_SEED', 'SAMPLE_RATE', 'Composition', 'EmbeddedCatalogue', 'Note', 'Production', 'SongSpec',
           'build_embedded', 'compose', 'endless_songs', 'heldout_songs', 'make_production', 'render',
           'training_songs']
