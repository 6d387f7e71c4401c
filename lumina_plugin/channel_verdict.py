"""Whether a store's channels find what they are named for.

The verdict of `lumina validate channels` is kept beside the store that it was measured on, for all reports made with
that.
"""

import json
import typing as tp
from pathlib import Path

from .atomic import write_json
from .store import FingerprintStore


def verdict_file(store: FingerprintStore) -> Path:
    """Where the verdict on a store's channels is kept: beside the store."""
    return store.path.with_name(f'{store.path.name}.channels.json')


def keep_verdict(store: FingerprintStore, text: str) -> Path:
    """Keep a verdict for the reports of this store."""
    path = verdict_file(store)
    write_json(path, {**_measured_on(store), 'verdict': text})
    return path


def known_verdict(store: FingerprintStore) -> tp.Optional[str]:
    """The verdict that was measured on this store; None where there is none, or it is of other fingerprints."""
    try:
        kept = json.loads(verdict_file(store).read_text(encoding='utf-8'))
        facts = _measured_on(store)
        return str(kept['verdict']) if {key: kept.get(key) for key in facts} == facts else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _measured_on(store: FingerprintStore) -> tp.Dict[str, tp.Any]:
    """The weights and the recipe that a verdict is about."""
    return {'recipe': store.identity.recipe_hash, 'model': [point.model_hash for point in store.checkpoints]}
