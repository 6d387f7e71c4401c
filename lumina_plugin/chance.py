"""What a store knows of chance: its outside songs, read for queries of one kind and turned into nulls.

A recording is judged by recordings, a generation by generations where the store has some (`outside_generations`), else
by recordings, which a report then says.
"""

import typing as tp

import numpy as np

from .calibration import Null, songs_needed
from .errors import LuminaError
from .reliability import Diagnosis, diagnose_store
from .scoring import Scorer, score_together
from .store import GENERATION, RECORDING, CheckpointInfo, FingerprintStore, Kind, StoredNull

KINDS: tp.Tuple[Kind, ...] = (RECORDING, GENERATION)


class Chance(tp.NamedTuple):
    """One channel's null of one kind; `origin` says in words where its outside songs come from.

    `diagnosis` is of what recordings score, whatever the kind: its limits were set on those, and generations are more
    alike by nature.
    """
    null: Null
    diagnosis: tp.Optional[Diagnosis]
    origin: str


class OutsideSongs:
    """The outside songs of a store's checkpoints, by kind: the same at each, and none that the catalogue holds by now.

    Args:
        store (FingerprintStore): The store. checkpoints: Those that queries are scored at.
        rate (float): Of the calibrated gate, which says how many songs it takes.
    Attributes:
        missing (dict): By kind, why there are none of it.
    """

    def __init__(self, store: FingerprintStore, checkpoints: tp.Sequence[CheckpointInfo], rate: float):
        self.missing: tp.Dict[Kind, str] = {}
        self._found: tp.Dict[Kind, tp.List[StoredNull]] = {}
        known = {track.sha256 for track in store.tracks}
        nulls = {checkpoint.name: store.null(checkpoint) for checkpoint in checkpoints}
        for kind in KINDS:
            try:
                self._found[kind] = [_in_order(null, kind, common)
                                     for common in [_common(nulls, kind, known, songs_needed(rate))]
                                     for null in nulls.values() if null is not None]
            except LuminaError as reason:
                self.missing[kind] = str(reason)

    def kind_for(self, kind: Kind) -> tp.Optional[Kind]:
        """By which kind queries of a kind are judged; None where there are no outside songs at all."""
        return next((one for one in (kind, RECORDING) if one in self._found), None)

    def chances(self, channel: str, scorers: tp.Sequence[tp.Mapping[str, Scorer]], method: str, ids: tp.Sequence[str]
                ) -> tp.Dict[Kind, Chance]:
        """What the outside songs of each kind score against a channel's songs, by the recipe's score over the
        checkpoints.

        Args:
            scorers: per checkpoint, by name. method: the recipe's. ids: of the N songs.
        """
        found: tp.Dict[Kind, Chance] = {}
        for kind, nulls in self._found.items():
            total: tp.Any = 0.
            for each, null in zip(scorers, nulls, strict=True):  # one after the other: each is [n, N]
                total = total + score_together([each[method]], null.vectors[channel].numpy())[0]
            scores = np.asarray(total) / len(scorers)
            diagnosis = diagnose_store(scores, ids) if kind == RECORDING else (
                found[RECORDING].diagnosis if RECORDING in found else None)
            found[kind] = Chance(Null(scores), diagnosis, nulls[0].words(kind))
        return found


def _common(nulls: tp.Mapping[str, tp.Optional[StoredNull]], kind: Kind, known: tp.Collection[tp.Optional[str]],
            needed: int) -> tp.List[str]:
    """SHA-256 of the songs of a kind that all checkpoints have, in a fixed order.

    Raises:
        LuminaError: why they cannot measure chance.
    """
    sets = []
    for name, null in nulls.items():
        if null is None:
            raise LuminaError(f"checkpoint {name} of this store has no outside songs")
        sets.append({song.sha256 for song in null.songs if song.kind == kind} - set(known))
    common = set.intersection(*sets)
    if len(common) < needed:
        what = 'songs' if kind == RECORDING else 'generations'
        raise LuminaError(f"this store's checkpoints share {len(common)} outside {what}, where {needed} are needed")
    return sorted(common)


def _in_order(null: StoredNull, kind: Kind, common: tp.Sequence[str]) -> StoredNull:
    rows = {song.sha256: row for row, song in enumerate(null.songs) if song.kind == kind}
    index = [rows[name] for name in common]
    return null._replace(songs=[null.songs[row] for row in index],
                         vectors={channel: tensor[index] for channel, tensor in null.vectors.items()})
