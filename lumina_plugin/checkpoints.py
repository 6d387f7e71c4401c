"""Which checkpoint of a store a model is, which one it is to be, and which of them a query is compared at."""

import dataclasses
import typing as tp
from pathlib import Path

from torch import nn

from .errors import LuminaError
from .hashing import state_hash
from .models import training_weights
from .store import CheckpointInfo, FingerprintStore

SERVABLE = 0.8  # of the songs must be fingerprinted at a checkpoint for it to serve while the others are waited for


@dataclasses.dataclass(frozen=True)
class Served:
    """The checkpoints that queries are scored at, and how many fingerprinted songs these do not hold yet."""
    checkpoints: tp.List[CheckpointInfo]
    waiting: int


def find_checkpoint(store: FingerprintStore, named: tp.Union[str, Path]) -> CheckpointInfo:
    """One of a store's checkpoints whose weights it keeps.

    Args:
        store (FingerprintStore): The store.
        named (str or path): Its name, e.g. epoch-0004; or a `checkpoint.th` of the training that has its weights.
    Raises:
        LuminaError: for one that the store does not know, or knows without its weights.
    """
    known = [info for info in store.checkpoints if info.weights is not None]
    if not known:
        raise LuminaError(f"The store {store.path} keeps weights of no checkpoint, so that there is none to choose; "
                          "leave --checkpoint away.")
    found = [info for info in known if info.name == str(named)]
    if not found and Path(named).is_file():
        digest = state_hash(training_weights(Path(named)))
        found = [info for info in known if info.model_hash == digest]
    if not found:
        raise LuminaError(f"The store {store.path} has no checkpoint '{named}' whose weights were kept; choose of "
                          f"{', '.join(info.name for info in known)}.")
    return found[-1]


def live_checkpoint(store: FingerprintStore, lm: nn.Module, named: tp.Optional[str] = None) -> CheckpointInfo:
    """The checkpoint whose weights a model has; another training of the same shape is another model.

    Args:
        named (str, optional): The one that it must be.
    Raises:
        LuminaError: when it is none of them, or not the one that was named.
    """
    live, known = state_hash(lm.state_dict()), store.checkpoints if named is None else [store.checkpoint(named)]
    found = [info for info in known if info.model_hash == live]
    if not found:
        raise LuminaError(f"the store {store.path} was made with another model (store: {known[-1].model_hash}, yours: "
                          f"{live}); load the model that it was made with, or fingerprint the catalogue again")
    return found[-1]


def later_than(store: FingerprintStore, name: str) -> tp.List[CheckpointInfo]:
    """The checkpoints that a training came to after one of them.

    Raises:
        LuminaError: for a name that the store does not know.
    """
    known = store.checkpoints
    return known[known.index(store.checkpoint(name)) + 1:]


def servable(store: FingerprintStore, until: tp.Optional[str] = None) -> Served:
    """The checkpoints that queries are scored at: those that hold the same songs, as many as there are.

    While a store takes new songs some checkpoints have them already and others do not. The ones that agree with most
    others serve, and the songs that wait are counted.

    Args:
        until (str, optional): The last to be considered.
    Raises:
        LuminaError: when none is finished.
    """
    later = set() if until is None else {info.name for info in later_than(store, until)}
    enough = SERVABLE * store.manifest.tracks.count
    finished = [checkpoint for checkpoint in store.checkpoints
                if checkpoint.name not in later and (checkpoint.complete or checkpoint.covered >= enough)]
    if not finished:
        raise LuminaError(f"Store {store.path} holds no finished checkpoint{f' up to {until}' if until else ''}; "
                          "finish it with `lumina fingerprint` or `dora run ... execute_only=fingerprint`.")
    groups: tp.Dict[tp.Tuple[str, ...], tp.List[CheckpointInfo]] = {}
    for checkpoint in finished:
        shards = store.iter_vectors(checkpoint.name, store.channels[0], partial=True)
        groups.setdefault(tuple(track_id for names, _ in shards for track_id in names), []).append(checkpoint)
    ids, agreed = max(groups.items(), key=lambda group: (len(group[1]), len(group[0])))
    return Served(agreed, sum(track.status == 'ok' for track in store.tracks) - len(ids))
