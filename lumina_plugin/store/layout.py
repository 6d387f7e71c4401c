"""Which shard a song belongs in, for good.

Songs have slots in the track table, which only grows: a song added later gets a slot at the end, one that is withdrawn
leaves a tombstone in its slot. The table is cut into batches (see `starts`), and each batch into blocks of `size`
slots, the last one shorter. Block k of the table is shard k of every checkpoint, whatever else happens to the store.
"""

import bisect
import typing as tp


def shard_size_for(tracks: int) -> int:
    """Songs per shard of a store of so many `tracks`: 64 shards, that many processes may share, of 64 to 1024 songs."""
    return min(max(-(-tracks // 64), 64), 1024)


class Block(tp.NamedTuple):
    """The slots [first, first + span) of shard `ordinal`."""

    ordinal: int
    first: int
    span: int

    @property
    def slots(self) -> range:
        """Its slots."""
        return range(self.first, self.first + self.span)


class Layout:
    """All blocks of a table of `count` slots, in batches that begin at `starts`."""

    def __init__(self, starts: tp.Sequence[int], count: int, size: int) -> None:
        self.blocks: tp.List[Block] = []
        for start, end in zip(starts, [*starts[1:], count], strict=True):
            for first in range(start, end, size):
                self.blocks.append(Block(len(self.blocks), first, min(size, end - first)))
        self._firsts = [block.first for block in self.blocks]

    def of(self, slot: int) -> Block:
        """The block that holds `slot`."""
        return self.blocks[bisect.bisect_right(self._firsts, slot) - 1]


def grown(starts: tp.Sequence[int], count: int, size: int, begun: tp.Callable[[int], bool]) -> tp.List[int]:
    """`starts` of a table that is about to get slots from `count` on.

    They fill up the last block, unless it is `begun` (by its first slot): a shard that is written never changes its
    span, so then a new batch begins.
    """
    last = starts[-1] + (count - starts[-1]) // size * size  # first slot of the block that slot `count` would join
    return [*starts] if last == count or not begun(last) else [*starts, count]
