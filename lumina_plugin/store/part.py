"""One process's part of a pass that several share: it writes whole shards and nothing else.

Process 0 has the `StoreWriter`, with the lock and the manifest; the others have a part each. All meet three times:

    with store.writer(info, count=4) as writer:     | with store.part(info, rank, 4) as part:  # opened after
        writer.put_projection(...)                  |     ...                                  # barrier 1
        ...                                         | # barrier 2: nobody adds a song before all parts are open
        for song in writer.mine: writer.add(...)    |     for song in part.mine: part.add(...)
        ...                                         | # barrier 3: all shards are on disk
        writer.adopt()                              |
        writer.finish(noise)                        |

| killed                 | leaves                                 | what the rerun, by however many processes, does    |
|------------------------|----------------------------------------|----------------------------------------------------|
| a part, within a shard | the shards that it has finished        | takes them up and redoes the one that was not full |
| the writer, anywhere   | all finished shards, perhaps not named | takes them up                                      |
"""

import typing as tp

from ..errors import LuminaError
from .filling import Filling
from .records import CheckpointInfo

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore


class StorePart(Filling):
    """What process `rank` of `count` writes. Made by `FingerprintStore.part`; use it as a context manager.

    It takes no lock and never touches the manifest: what it has written is the store's once process 0 adopts it. The
    songs of shards that are not full are dropped when the block is left. Entering it raises LuminaError where process 0
    has not begun the checkpoint, with the same weights; `reload` the store to see what became of it in the end.
    """

    def __init__(self, store: "FingerprintStore", info: CheckpointInfo, rank: int, count: int) -> None:
        if not 0 < rank < count:
            raise ValueError(f"rank {rank} of {count} has no part; rank 0 has the writer, parts are 1 to count - 1")
        super().__init__(store, info, rank, count)

    def __enter__(self) -> "StorePart":
        self._store.reload()
        record = self._store.manifest.find(self._info.name)
        if record is None or (record.epoch, record.model_hash) != (self._info.epoch, self._info.model_hash):
            found = "is not begun" if record is None else f"was begun with model {record.model_hash}"
            raise LuminaError(f"checkpoint '{self._info.name}' of {self._store.path} {found}, and a part was to be "
                              f"written with model {self._info.model_hash}; let process 0 begin it with the same one")
        self._learn()
        self._deal()
        return self

    def __exit__(self, *_: tp.Any) -> None:
        pass
