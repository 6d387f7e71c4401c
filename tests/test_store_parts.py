"""A pass that several processes share: whoever writes a shard, and whoever is killed, the store is that of one writer.

The processes are forked, meet by pipes, and die by a real SIGKILL. Each tells which songs it has fingerprinted.
"""

import os
import shutil
import signal
import typing as tp
from pathlib import Path

import pytest

from lumina_plugin.errors import LuminaError
from lumina_plugin.store import FingerprintStore, changes, merge, pack
from lumina_plugin.store.layout import shard_size_for

from .test_store import (
    EPOCHS,
    NOISE,
    SHARD,
    SILENT,
    SKIPPED,
    checkpoint,
    content,
    fill,
    flipped,
    forked,
    identity,
    make,
    memory,
    names,
    prepare,
    projection,
    settle,
    tmp_path,
    tracks,
    undisturbed,
    weights,
    whole_run,
)

__all__ = ["memory", "tmp_path", "undisturbed"]  # fixtures
NEVER = 999


class Pass:
    """One pass of `count` processes over a checkpoint; process r is killed before its `until[r]`-th song.

    Process 0 is the one that calls; `killed` says that it is to die before it adopts. `redone` counts the songs that
    all of them have fingerprinted.
    """

    def __init__(self, path: Path, epoch: int, count: int, until: tp.Optional[tp.Dict[int, int]] = None,
                 killed: bool = False) -> None:
        self.path, self.epoch, self.count, self.until = path, epoch, count, until or {}
        self.hear, self.say = os.pipe()
        self.killed, self.redone = killed, 0

    def __call__(self) -> tp.List[int]:
        """Wait statuses of the parts."""
        store = FingerprintStore.open(self.path) if FingerprintStore.exists(self.path) else make(self.path)
        with store.writer(checkpoint(self.epoch), self.count) as writer:
            prepare(store, writer, self.epoch)
            opened, go = os.pipe(), os.pipe()
            children = [self._fork(rank, opened[1], go[0]) for rank in range(1, self.count)]
            for _ in children:
                os.read(opened[0], 1)
            os.write(go[1], b"!" * len(children))
            self._work(0, writer)
            statuses = [os.waitpid(child, 0)[1] for child in children]
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            writer.adopt()
            if not any(statuses):
                writer.finish(NOISE)
        return statuses

    def songs(self) -> int:
        """How many songs were fingerprinted since this was last asked, by processes that are through."""
        os.write(self.say, b"!")
        return len(os.read(self.hear, 1 << 16)) - 1

    def _fork(self, rank: int, opened: int, go: int) -> int:
        child = os.fork()
        if child == 0:
            try:
                with FingerprintStore.open(self.path).part(checkpoint(self.epoch), rank, self.count) as part:
                    os.write(opened, b"!")
                    os.read(go, 1)
                    self._work(rank, part)
            except BaseException:
                os.write(opened, b"!")  # nobody waits for it
                os._exit(1)
            os._exit(0)
        return child

    def _work(self, rank: int, part: tp.Any) -> None:
        mine, done = part.mine, part.done_ids
        for name in (SKIPPED, SILENT):  # every process knows of all songs that cannot be read
            settle(part, name, self.epoch)
        left = [name for name in reversed(mine) if name not in done and name not in (SILENT, SKIPPED)]
        for index, name in enumerate(left):
            if index == self.until.get(rank, NEVER):
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(self.say, b".")
            settle(part, name, self.epoch)


def finish_all(path: Path, count: int = 2) -> int:
    """Passes over all checkpoints by so many processes; returns how many songs they had to fingerprint."""
    redone = 0
    for epoch in EPOCHS:
        shared = Pass(path, epoch, count)
        assert shared() == [0] * (count - 1)
        redone += shared.songs()
    return redone


# -- the same store ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [2, 3, 7])
def test_parts_make_the_store_of_one_writer(undisturbed: Path, tmp_path: Path, count: int) -> None:
    assert finish_all(tmp_path / "store", count) == 2 * (len(names()) - 2)
    assert content(tmp_path / "store") == content(undisturbed)
    assert finish_all(tmp_path / "store", count) == 0  # again: nothing happens
    assert content(tmp_path / "store") == content(undisturbed)


def test_songs_that_were_added_withdrawn_and_replaced(undisturbed: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "today", lambda: "2031-05-06")
    one, several = (shutil.copytree(undisturbed, tmp_path / name) for name in ("one", "several"))
    for path in (one, several):
        store = FingerprintStore.open(path)
        store.withdraw([SILENT, "song-07", "song-20", "song-21", "song-22"], "opted out")
        store.replace([{"id": "song-08", "title": "better"}])
        store.add_tracks([{"id": f"song-{number}"} for number in range(30, 42)])
    for epoch in (*EPOCHS, 6):
        Quiet(one, epoch, 1)()
        Quiet(several, epoch, 3)()
    assert content(several) == content(one)
    assert "song-07" not in FingerprintStore.open(several).vectors("epoch-0006", "P")[0]


class Quiet(Pass):
    """A pass that marks no songs: they are known."""

    def _work(self, rank: int, part: tp.Any) -> None:
        for name in [name for name in part.mine if name not in part.done_ids]:
            settle(part, name, self.epoch)


def test_shards_are_dealt_out_in_order(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    with store.writer(checkpoint()) as writer:
        assert writer.mine == names()
        prepare(store, writer)
        for name in names()[SHARD:2 * SHARD]:  # shard 1: those still open are 0, 2, 3, 4
            settle(writer, name, 2)
    blocks = [names()[first:first + SHARD] for first in range(0, len(names()), SHARD)]
    with store.writer(checkpoint(), 3) as writer:
        parts = [FingerprintStore.open(store.path).part(checkpoint(), rank, 3).__enter__() for rank in (1, 2)]
        assert [each.mine for each in (writer, *parts)] == [blocks[0] + blocks[4], blocks[2], blocks[3]]
        assert set(blocks[1]) <= parts[0].done_ids
        assert parts[0].projection_if_any("P") is not None and parts[0].projection_if_any("X") is None
        for each, foreign in ((writer, "song-10"), (parts[0], "song-00")):
            before = content(store.path)
            each.mark(foreign, "silent")
            with pytest.raises(LuminaError, match=f"{foreign}.*another process"):
                settle(each, foreign, 2)
            assert content(store.path) == before and foreign not in each.done_ids
        with pytest.raises(LuminaError, match="song-05.*already"):
            settle(parts[0], "song-05", 2)


def test_a_part_of_what_is_not_begun_is_refused(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    with pytest.raises(LuminaError, match="epoch-0002.*is not begun"), store.part(checkpoint(), 1, 2):
        pass
    with store.writer(checkpoint()):
        pass
    with pytest.raises(LuminaError, match="model-2.*model-3"), store.part(checkpoint(model_hash="model-3"), 1, 2):
        pass
    for rank, count in ((0, 2), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="rank"):
            store.part(checkpoint(), rank, count)


# -- killed -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("again", [1, 2, 3])
@pytest.mark.parametrize("until", [2, 5, 7])  # within its first shard, after it, within its second one
def test_a_part_is_killed(undisturbed: Path, tmp_path: Path, until: int, again: int) -> None:
    path = tmp_path / "store"
    broken = Pass(path, 2, 2, {1: until})
    assert [os.WTERMSIG(status) for status in broken()] == [signal.SIGKILL]
    assert FingerprintStore.open(path).verify() == []
    kept = FingerprintStore.open(path).vectors("epoch-0002", "P", partial=True)[0]
    assert 0 <= broken.songs() - len(kept) < SHARD and len(kept) == (18 if until > 4 else 13) - 2
    assert finish_all(path, again) == 2 * (len(names()) - 2) - len(kept)
    assert content(path) == content(undisturbed)


@pytest.mark.parametrize("how", ["one process", "several", "a change in between", "rebuilt"])
def test_process_0_is_killed_before_it_adopts(undisturbed: Path, tmp_path: Path, how: str) -> None:
    path = tmp_path / "store"
    shared = Pass(path, 2, 3, killed=True)
    assert os.WTERMSIG(forked(lambda: shared() and None)) == signal.SIGKILL  # type: ignore[func-returns-value]
    assert shared.songs() == len(names()) - 2
    survivor = FingerprintStore.open(path)
    assert survivor.verify() == [] and len(survivor.checkpoint("epoch-0002").shards) == 2
    assert len(list(path.glob(f"*/{pack.PATTERN}"))) == 5
    if how == "a change in between":
        survivor.describe(tracks())  # changes nothing, but puts the folder in order
        assert len(survivor.checkpoint("epoch-0002").shards) == 5
    if how == "rebuilt":
        (path / "manifest.json").unlink()
        FingerprintStore.rebuild_manifest(path)
    if how == "one process":
        with FingerprintStore.open(path).writer(checkpoint()) as writer:
            assert writer.begun and writer.done_ids == set(names())
        whole_run(path)
    else:
        assert finish_all(path) == len(names()) - 2  # those of the other checkpoint
    assert content(path) == content(undisturbed)


def test_one_writer_killed_between_shard_and_manifest_redoes_nothing(
        undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"

    def die(*_: tp.Any, **__: tp.Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_one() -> None:
        store = make(path)
        with store.writer(checkpoint()) as writer:
            prepare(store, writer)
            monkeypatch.setattr(FingerprintStore, "commit", die)
            for name in names():
                settle(writer, name, 2)

    assert os.WTERMSIG(forked(write_one)) == signal.SIGKILL
    assert FingerprintStore.open(path).checkpoint("epoch-0002").shards == []
    with FingerprintStore.open(path).writer(checkpoint()) as writer:
        assert writer.done_ids == set(names()[:SHARD])
    whole_run(path)
    assert content(path) == content(undisturbed)


def test_rows_that_waited_for_one_process_give_way_to_the_shards_of_several(undisturbed: Path, tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    with store.writer(checkpoint()) as writer:
        prepare(store, writer)
        for name in ("song-00", "song-06", "song-22"):
            settle(writer, name, 2)
    assert list(store.path.rglob("pending-*"))
    finish_all(store.path, 2)
    assert content(store.path) == content(undisturbed)


# -- shards that do not belong ----------------------------------------------------------------------------------------

Facts = tp.Dict[str, tp.Any]
STALE: tp.Dict[str, tp.Tuple[Facts, Facts, Facts]] = {  # of the identity, the checkpoint, and the projection
    "another projection": ({}, {}, projection(9)), "another model": ({}, {"model_hash": "other"}, projection()),
    "another recipe": ({"recipe_hash": "recipe-2"}, {}, projection()),
    "another table": ({"catalogue_hash": "catalogue-2"}, {}, projection()), "nothing": ({}, {}, projection())}


@pytest.mark.parametrize("what", [*STALE, "another type", "another title", "damage", "another name"])
def test_a_shard_that_does_not_belong_is_deleted(undisturbed: Path, tmp_path: Path, what: str) -> None:
    """"nothing" is the control: made just as ours, a shard is taken up wherever it comes from."""
    facts, info, basis = STALE.get(what, ({}, {}, projection()))
    songs = [track.model_copy(update={"title": "Other"}) if what == "another title" else track for track in tracks()]
    foreign = FingerprintStore.create(tmp_path / "foreign", identity(**facts), songs, shard_size=SHARD,
                                      dtype="float16" if what == "another type" else "float32")
    with foreign.writer(checkpoint(**info)) as writer:
        foreign.save_weights(checkpoint(), weights())
        for channel in "PM":
            writer.put_projection(channel, basis, {"rank": "3", "kind": "fitted"})
        for name in names()[:SHARD]:
            settle(writer, name, 2)
    store = make(tmp_path / "store")
    with store.writer(checkpoint(), 2) as writer:
        prepare(store, writer)
        file = foreign.checkpoint("epoch-0002").shards[0].file
        name = file.replace("shard-00000", "shard-00001") if what == "another name" else file
        shutil.copy(foreign.path / file, store.path / name)
        if what == "damage":
            with flipped(store.path / name, -5):
                writer.adopt()
            (store.path / name).unlink()
        else:
            writer.adopt()
        assert ("song-00" in writer.done_ids) == (what == "nothing")
        assert (store.path / name).exists() == (what == "nothing")
    fill(store)
    fill(store, 4)
    assert content(store.path) == content(undisturbed)


# -- the size of a shard ----------------------------------------------------------------------------------------------

def test_a_store_has_as_many_shards_as_processes_may_share(tmp_path: Path) -> None:
    assert [shard_size_for(count) for count in (1, 97, 4096, 4097, 20_000, 65_536, 10 ** 6)] == [
        64, 64, 64, 65, 313, 1024, 1024]
    songs = [{"id": f"s{number}"} for number in range(130)]
    store = FingerprintStore.create(tmp_path / "s", identity(), songs)
    assert store.shard_size == 64 and [block.span for block in store.layout.blocks] == [64, 64, 2]


def test_stores_of_different_shard_sizes_are_merged(tmp_path: Path) -> None:
    parts = [names()[:9], names()[9:]]
    sources = []
    for size, ids in zip((2, 5), parts, strict=True):
        store = FingerprintStore.create(tmp_path / f"of-{size}", identity(),
                                        [track for track in tracks() if track.id in ids], shard_size=size)
        for epoch in EPOCHS:
            with store.writer(checkpoint(epoch)) as writer:
                prepare(store, writer, epoch)
                for name in ids:
                    settle(writer, name, epoch)
                writer.finish(NOISE)
        sources.append(store.path)
    made = merge(tmp_path / "m", sources)
    assert [block.span for block in made.layout.blocks] == [2, 2, 2, 2, 1, 5, 5, 4] and made.shard_size == 5
    assert made.vectors("epoch-0004", "M")[0] == [name for name in names() if name not in (SILENT, SKIPPED)]
    made.add_tracks([{"id": f"song-{number}"} for number in range(30, 37)])
    made.withdraw(["song-02"])
    made.compact()
    Quiet(made.path, 2, 3)()
    (made.path / "manifest.json").unlink()
    rebuilt = FingerprintStore.rebuild_manifest(made.path)
    assert rebuilt.verify() == [] and rebuilt.vectors("epoch-0002", "P")[0][-1] == "song-36"
