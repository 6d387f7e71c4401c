"""Which training songs shaped a generated song, by how much, and how sure are we?

    from lumina_plugin import Attributor, Fingerprinter, FingerprintStore, attach

Names are loaded on first use: importing this package costs nothing, importing audiocraft takes several seconds.
"""

import importlib
import typing as tp

__version__ = '0.1.0'

_HOMES = {
    'Attributor': 'attribution', 'Fingerprinter': 'fingerprint', 'FingerprintStore': 'store', 'attach': 'musicgen',
    'Recipe': 'recipe', 'get_recipe': 'recipe', 'Catalogue': 'catalogue', 'AttributionReport': 'report',
    'load_codec': 'codec', 'load_musicgen': 'models', 'LuminaError': 'errors',
}
__all__ = ['__version__', *_HOMES]

if tp.TYPE_CHECKING:
    from .attribution import Attributor as Attributor
    from .catalogue import Catalogue as Catalogue
    from .codec import load_codec as load_codec
    from .errors import LuminaError as LuminaError
    from .fingerprint import Fingerprinter as Fingerprinter
    from .models import load_musicgen as load_musicgen
    from .musicgen import attach as attach
    from .recipe import Recipe as Recipe
    from .recipe import get_recipe as get_recipe
    from .report import AttributionReport as AttributionReport
    from .store import FingerprintStore as FingerprintStore


def __getattr__(name: str) -> tp.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f'.{_HOMES[name]}', __name__), name)
