"""Songs that are added, replaced and withdrawn: only they are redone, what is withdrawn is gone from answers at once,
from the disk after `compact`; killed between any two steps the store is the old one or the new one."""

import contextlib
import errno
import functools
import os
import shutil
import signal
import typing as tp
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumina_plugin.errors import LuminaError
from lumina_plugin.store import FingerprintStore, TrackRecord, changes

from .test_store import (
    DIM,
    NOISE,
    SHARD,
    SILENT,
    checkpoint,
    content,
    fill,
    forked,
    make,
    memory,
    names,
    prepare,
    settle,
    tmp_path,
    undisturbed,
    vector,
    whole_run,
)

__all__ = ["memory", "tmp_path", "undisturbed"]  # fixtures

DATE = "2031-05-06"
ADDED = ["song-30", "song-31", "song-32"]
GONE = "song-07"


@pytest.fixture(autouse=True)
def _one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "today", lambda: DATE)


@pytest.fixture
def path(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the filled store: 23 songs in shards of 5, two checkpoints."""
    return shutil.copytree(undisturbed, tmp_path / "store")


def record(name: str, **others: tp.Any) -> TrackRecord:
    return TrackRecord(id=name, title=f"Title of {name}", path=f"/music/{name}.wav", sha256=f"audio-{name}", **others)


def added() -> tp.List[TrackRecord]:
    return [record(name) for name in ADDED]


def refill(store: FingerprintStore, epoch: int = 2, until: int = 999) -> tp.List[str]:
    """A pass as `run_pass` does it: over all songs of the store, in groups by shard; returns those that it did."""
    did: tp.List[str] = []
    with store.writer(checkpoint(epoch)) as writer:
        prepare(store, writer, epoch)
        done = writer.done_ids
        for group in store.by_shard(track.id for track in store.tracks if track.id not in done):
            for name in group[:until - len(did)]:
                settle(writer, name, epoch)
                did.append(name)
        if until == 999:
            writer.finish(NOISE)
    return did


def bytes_of(name: str, epoch: int = 2) -> tp.List[bytes]:
    """What must not be found on disk: the vectors of a song, as fp32 and as fp16."""
    return [vector(name, channel, epoch).to(dtype).numpy().tobytes() for channel in "PM"
            for dtype in (torch.float32, torch.float16)]


def files_with(path: Path, needles: tp.Sequence[bytes]) -> tp.List[str]:
    return [name for name, data in content(path).items() if any(needle in data for needle in needles)]


# -- adding -----------------------------------------------------------------------------------------------------------

def test_only_added_songs_are_redone(path: Path) -> None:
    store, before = FingerprintStore.open(path), content(path)
    assert store.add_tracks(added(), catalogue_hash="catalogue-2") == ADDED
    assert store.add_tracks(added()) == []  # again: nothing happens
    assert not store.checkpoint("epoch-0002").complete
    with pytest.raises(LuminaError, match="not complete.*23 of 26"):
        store.vectors("epoch-0002", "P")
    with store.writer(checkpoint()) as writer:
        assert writer.begun and {track.id for track in store.tracks} - writer.done_ids == set(ADDED)
    assert [refill(store, epoch) for epoch in (2, 4)] == [ADDED, ADDED]
    after = content(path)
    assert {name: after[name] for name in before if "shard" in name or "weights" in name or "projection" in name} == {
        name: data for name, data in before.items() if "shard" in name or "weights" in name or "projection" in name}
    reopened = FingerprintStore.open(path)
    assert reopened.vectors("epoch-0004", "M")[0][-3:] == ADDED and reopened.verify() == []
    assert torch.equal(reopened.vectors("epoch-0004", "M")[1][-1], vector(ADDED[-1], "M", 4))
    assert reopened.identity.catalogue_hash == "catalogue-2" and reopened.checkpoint("epoch-0004").complete


def test_added_songs_fill_up_a_block_that_is_not_begun(tmp_path: Path) -> None:
    store = make(tmp_path / "s")  # 23 songs: the last block has 3
    store.add_tracks(added()[:1])
    assert [block.span for block in store.layout.blocks] == [5, 5, 5, 5, 4]
    refill(store)
    store.add_tracks(added()[1:2])
    store.add_tracks(added()[2:])
    assert [block.span for block in store.layout.blocks] == [5, 5, 5, 5, 4, 2]
    assert refill(store) == ADDED[1:]
    assert store.by_shard(["song-32", "song-22", "song-30", "song-31"]) == [["song-22", "song-30"], ADDED[1:]]


def test_pending_rows_survive_an_addition(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    refill(store, until=7)
    store.add_tracks(added())
    store.withdraw(["song-05"])
    with store.writer(checkpoint()) as writer:
        assert writer.done_ids == {*names()[:8]} - {"song-07"}
    assert refill(store)[0] == "song-07" and store.verify() == []


def test_additions_that_contradict_the_store_are_refused(path: Path) -> None:
    store, before = FingerprintStore.open(path), content(path)
    store.add_tracks([])
    with pytest.raises(LuminaError, match="song-02.*already"):
        store.add_tracks([*added(), record("song-02")])
    with pytest.raises(LuminaError, match="withdrawn"):
        store.add_tracks([record("x", status="withdrawn")])
    with pytest.raises(LuminaError, match="stranger"):
        store.replace([record("stranger")])
    with pytest.raises(LuminaError, match="stranger"):
        store.withdraw([GONE, "stranger"])
    with store.writer(checkpoint()), pytest.raises(LuminaError, match="has a writer open"):
        store.withdraw([GONE])
    with store.writer(checkpoint()):
        for change in (lambda other: other.withdraw([GONE]), lambda other: other.compact()):
            with pytest.raises(LuminaError, match=f"being written by pid {os.getpid()} "):
                change(FingerprintStore.open(path))
    assert content(path) == before


def test_a_catalogue_is_compared_with_the_store(path: Path) -> None:
    store = FingerprintStore.open(path)
    store.add_tracks(added())
    store.withdraw([GONE])
    moved = record("song-30").model_copy(update={"path": "/elsewhere.wav"})
    other = record("song-31").model_copy(update={"sha256": "other"})
    found = store.compare([moved, other, record("new"), record(GONE)])
    assert ([t.id for t in found.new], [t.id for t in found.changed], found.withdrawn) == (["new"], ["song-31"], [GONE])
    assert set(found.missing) == {*names(), "song-32"} - {GONE}


# -- withdrawing ------------------------------------------------------------------------------------------------------

def test_a_withdrawn_song_is_in_no_answer_at_once(path: Path) -> None:
    store = FingerprintStore.open(path)
    digest, all_ids = store.hash, store.vectors("epoch-0002", "P")[0]
    assert store.withdraw([GONE, GONE], "the owner opted out") == [GONE]
    assert store.withdraw([GONE]) == [] and store.hash != digest
    for reader in (store, FingerprintStore.open(path)):
        ids, vectors = reader.vectors("epoch-0002", "P")
        assert ids == [name for name in all_ids if name != GONE]
        assert torch.equal(vectors, torch.stack([vector(name, "P") for name in ids]))
        assert len(reader.norms("epoch-0002", "M")) == len(reader.chunk_norms("epoch-0002", "M")) == len(ids)
        assert [name for part, _ in reader.iter_vectors("epoch-0004", "M") for name in part] == ids
        assert torch.equal(torch.cat([part for _, part in reader.iter_vectors("epoch-0002", "P")]), vectors)
        assert GONE not in {track.id for track in reader.tracks} and reader.checkpoint("epoch-0002").complete
        with pytest.raises(LuminaError, match=f"{GONE}.*withdrawn.*{DATE}.*opted out"):
            reader.track(GONE)
        (tombstone,) = reader.tombstones
        assert tombstone == TrackRecord(id=GONE, status="withdrawn", reason="the owner opted out", gone_on=DATE)
        assert reader.info()["tracks"]["withdrawn"] == 1 and "lumina store compact" in reader.info()["notes"][-1]
        assert reader.verify() == []
    title = f"Tītle\u2028{GONE}".encode()
    assert not files_with(path, [title, title.replace("\u2028".encode(), b"\\u2028")]) or all(
        "shard" in name for name in files_with(path, [title]))


def test_a_withdrawn_song_is_not_asked_for_again(path: Path) -> None:
    store = FingerprintStore.open(path)
    store.withdraw([GONE], "opted out")
    with store.writer(checkpoint(6)) as writer:  # a checkpoint to come
        assert GONE in writer.done_ids
        with pytest.raises(LuminaError, match="withdrawn"):
            writer.add(GONE, {channel: vector(GONE, channel) for channel in "PM"})
    assert GONE not in refill(store, 6) and store.verify() == []
    assert not files_with(path, bytes_of(GONE, 6))
    with pytest.raises(LuminaError, match="withdrawn.*opted out"):
        store.add_tracks([record(GONE)])
    store.add_tracks([record(GONE)], readmit=True)
    assert refill(store, 6) == [GONE] and store.withdrawn == {} and len(store.tombstones) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_withdrawn_song_leaves_the_disk(tmp_path: Path, dtype: str) -> None:
    store, path = make(tmp_path / "s", dtype=dtype), tmp_path / "s"
    fill(store)
    refill(store, 4, until=7)  # song-07 waits in a pending file of the second checkpoint
    needles = [*bytes_of(GONE), *bytes_of(GONE, 4), f"{GONE}.wav".encode(), f"Tītle\u2028{GONE}".encode(),
               f"T\\u012btle\\u2028{GONE}".encode()]
    store.withdraw([GONE, SILENT], "opted out")
    litter = path / "epoch-0002" / "shard-00001-00000000.safetensors"  # of writers and compactions that were killed
    shutil.copy(path / store.checkpoint("epoch-0002").shards[1].file, litter)
    shutil.copy(litter, path / "epoch-0004" / ".tmp-shard")
    shutil.copytree(path / "epoch-0004", path / "epoch-0003")  # of a checkpoint that was dropped
    make(tmp_path / "other")
    shutil.copy(next((tmp_path / "other").glob("index-*")), path)
    kept = {name: data for name, data in content(path).items() if "epoch-0002/shard-0000" in name}
    assert len(files_with(path, needles)) == 7, files_with(path, needles)
    assert len(store.compact()) == 3  # in epoch 4, a shard says why the silent song was left out
    assert files_with(path, needles) == []
    assert not [name for name, data in content(path).items() if b"below -60 dBFS" in data and SILENT.encode() in data]
    assert len([name for name in kept if (path / name).exists()]) == 3
    for reader in (store, FingerprintStore.open(path)):
        ids, vectors = reader.vectors("epoch-0002", "M")
        assert torch.equal(vectors, torch.stack([vector(name, "M") for name in ids]).to(reader.dtype))
        assert GONE not in ids and reader.verify() == [] and reader.info()["notes"] == store.info()["notes"]
    assert len(refill(store, 4)) == len(names()) - 2 - 7  # the rest of the pending file was kept
    assert files_with(path, needles) == [] and store.compact() == [] and store.verify() == []


def test_whoever_reads_while_the_store_changes_is_told(path: Path) -> None:
    reader, store = FingerprintStore.open(path), FingerprintStore.open(path)
    fresh = FingerprintStore.open(path)
    kept = reader.vectors("epoch-0002", "P")[1]
    copy = kept.clone()
    store.withdraw([GONE])
    store.compact()
    assert torch.equal(kept, copy)  # what is mapped stays
    with pytest.raises(LuminaError, match="open it again"):
        fresh.vectors("epoch-0002", "P")
    with pytest.raises(LuminaError, match="open it again"):
        reader.vectors("epoch-0004", "P")


# -- replacing --------------------------------------------------------------------------------------------------------

def test_only_a_replaced_song_is_redone(path: Path) -> None:
    store = FingerprintStore.open(path)
    refill(store, 6, until=9)  # pending rows of the old recording
    better = record(GONE, artist="The Remixers")
    assert store.replace([better], "catalogue-2") == [GONE] and store.replace([better]) == []
    assert GONE not in store.vectors("epoch-0002", "P", partial=True)[0]
    assert store.track(GONE) == better and store.withdrawn == {}
    assert [(t.id, t.status, t.title) for t in store.tombstones] == [(GONE, "replaced", "")]
    assert refill(store) == [GONE]
    assert store.vectors("epoch-0002", "P")[0][-1] == GONE and len(store.vectors("epoch-0002", "P")[0]) == 21
    store.compact()
    assert refill(store, 6)[-1] == GONE and refill(store, 4) == [GONE] and store.verify() == []
    assert files_with(path, bytes_of(GONE)) == [store.checkpoint("epoch-0002").shards[-1].file]


# -- repairing --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("lost", ["manifest", "manifest and index"])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_rebuild_brings_no_withdrawn_song_back(path: Path, lost: str, compacted: bool) -> None:
    store = FingerprintStore.open(path)
    old = path / store.checkpoint("epoch-0002").shards[1].file
    store.add_tracks(added(), catalogue_hash="catalogue-2")
    refill(store)
    store.withdraw([GONE], "opted out")
    if compacted:
        kept = old.read_bytes()
        store.compact()
    before = content(path)
    if compacted:
        old.write_bytes(kept)  # a compaction killed before it deleted this
    (path / "manifest.json").unlink()
    if "index" in lost:
        (path / store.manifest.tracks.file).write_text("gone")
    rebuilt = FingerprintStore.rebuild_manifest(path)
    assert {name: data for name, data in content(path).items() if name in before} == before
    assert rebuilt.withdrawn == store.withdrawn and rebuilt.verify() == []
    rebuilt.compact()
    assert not files_with(path, bytes_of(GONE))


def test_damage_of_the_second_copy_of_tombstones_is_found_and_mended(path: Path) -> None:
    store = FingerprintStore.open(path)
    store.withdraw([GONE], "opted out")
    before = content(path)
    (path / "withdrawn.json").write_text("{}")
    assert "withdrawn.json" in store.verify()[0]
    with store.writer(checkpoint()):
        pass
    assert content(path) == before


# -- killed, and out of room ------------------------------------------------------------------------------------------

def add_some(path: Path) -> None:
    FingerprintStore.open(path).add_tracks(added(), catalogue_hash="catalogue-2")


def replace_some(path: Path) -> None:
    FingerprintStore.open(path).replace([record(GONE), record("song-21")])


def withdraw_some(path: Path) -> None:
    FingerprintStore.open(path).withdraw([GONE, "song-20"], "opted out")


def compact_all(path: Path) -> None:
    FingerprintStore.open(path).compact()


def fill_all(path: Path) -> None:
    for epoch in (2, 4):
        refill(FingerprintStore.open(path), epoch)


Operation = tp.Callable[[Path], None]
WORKS: tp.Dict[str, tp.Tuple[tp.Sequence[Operation], Operation]] = {  # what comes before, what is disturbed
    "add": ([], add_some), "fill up": ([add_some], fill_all), "replace": ([add_some], replace_some),
    "withdraw": ([add_some], withdraw_some), "compact": ([withdraw_some], compact_all),
    "compact rows that wait": ([lambda p: refill(FingerprintStore.open(p), 6, 9), withdraw_some], compact_all)}
STEPS = ("replace", "fsync", "unlink", "mkdir", "open")


def at_step(number: int, work: tp.Callable[[], None]) -> int:
    """Run `work`, killed before its `number`-th step on the file system; returns how many there were."""
    count = 0

    def counted(step: tp.Callable, *args: tp.Any, **options: tp.Any) -> tp.Any:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, functools.partial(counted, getattr(os, name)))
        work()
    return count


@pytest.mark.parametrize("what", WORKS)
def test_killed_between_any_two_steps(path: Path, what: str) -> None:
    first, work = WORKS[what]
    for step in first:
        step(path)
    start, old = path.with_name("start"), FingerprintStore.open(path).tracks
    shutil.copytree(path, start)
    count = at_step(0, lambda: work(path))
    expected, new = content(path), FingerprintStore.open(path).tracks
    assert count > 4
    for number in range(1, count + 1, 1 if count < 60 else 3):
        victim = shutil.copytree(start, path.with_name(f"victim-{number}"))
        status = forked(lambda number=number, victim=victim: at_step(number, lambda: work(victim)))  # type: ignore[misc]
        assert os.WTERMSIG(status) == signal.SIGKILL
        survivor = FingerprintStore.open(victim)
        assert survivor.verify() == [] and survivor.tracks in (old, new)
        ids, vectors = survivor.vectors("epoch-0002", "P", partial=True)
        assert torch.equal(vectors, torch.stack([vector(name, "P") for name in ids]))
        work(victim)
        assert {name: data for name, data in content(victim).items() if name != ".lock"} == {
            name: data for name, data in expected.items() if name != ".lock"}
        shutil.rmtree(victim)


@pytest.mark.parametrize("what", WORKS)
def test_a_full_disk_at_any_write(path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, work = WORKS[what]
    for step in first:
        step(path)
    start = shutil.copytree(path, path.with_name("start"))
    work(path)
    expected, real, refused = content(path), os.fsync, 0
    for number in range(1, 200):
        left = iter(range(number))
        victim = shutil.copytree(start, path.with_name(f"victim-{number}"))

        def sync(handle: int, left: tp.Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        monkeypatch.setattr(os, "fsync", sync)
        finished = False
        with contextlib.suppress(LuminaError):
            work(victim)
            finished = True
        monkeypatch.setattr(os, "fsync", real)
        if finished:
            break
        refused += 1
        assert FingerprintStore.open(victim).verify() == []
        work(victim)
        assert content(victim) == expected
        shutil.rmtree(victim)
    assert refused > 1


# -- fits and norms ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["fitted", "random"])
def test_info_says_when_a_projection_should_be_fitted_again(tmp_path: Path, kind: str) -> None:
    store = make(tmp_path / "s")
    with store.writer(checkpoint()) as writer:
        writer.put_projection("P", {"basis": torch.ones(2)}, {"kind": kind, "songs": "20"})
        writer.put_projection("M", {"basis": torch.ones(2)}, {"kind": kind}, seen=False)
        settle(writer, "song-00", 2)
    fit = FingerprintStore.open(store.path).checkpoint("epoch-0002").projections["P"].fit
    assert (fit.kind, fit.songs, fit.live, fit.spans) == (kind, 20, 23, [(0, 23)])

    def told() -> tp.List[str]:
        return [note for note in store.info()["notes"] if "fitted again" in note]

    assert len([note for note in told() if "channel M" in note]) == (kind == "fitted")  # a fit on other songs
    store.add_tracks(added())
    store.withdraw(["song-01"])
    assert not [note for note in told() if "channel P" in note]  # 4 of 23
    store.withdraw(["song-02"])
    assert store.info()["checkpoints"][0]["changed_since_fit"]["P"] == pytest.approx(5 / 23, abs=1e-3)
    assert len([note for note in told() if "channel P" in note and "3 were added and 2 withdrawn" in note]) == (
        kind == "fitted")


def test_chunk_norms_come_back_ragged(tmp_path: Path) -> None:
    def norms(index: int) -> tp.Dict[str, torch.Tensor]:
        return {"P": torch.arange(index % 4).float(), "M": torch.full((index % 4,), float(index), dtype=torch.float64)}

    store = make(tmp_path / "s")
    for _ in range(2):  # the second writer takes up pending rows
        with store.writer(checkpoint()) as writer:
            done = writer.done_ids
            for index, name in enumerate(names()[:8 if not done else None]):
                if name not in done:
                    writer.add(name, {c: vector(name, c) for c in "PM"}, None, norms(index) if index != 5 else None)
            for bad in (torch.ones(2, 2), torch.tensor([torch.nan])) if not done else ():
                with pytest.raises(LuminaError, match="song-22"):
                    writer.add("song-22", {c: vector("song-22", c) for c in "PM"}, None, {c: bad for c in "PM"})
    store.withdraw([GONE])
    for _ in range(2):
        kept = [index for index in range(len(names())) if names()[index] != GONE]
        for channel in "PM":
            found = FingerprintStore.open(store.path).chunk_norms("epoch-0002", channel)
            assert [f.tolist() for f in found] == [norms(i)[channel].tolist() if i != 5 else [] for i in kept]
            assert all(f.dtype == torch.float32 for f in found)
        store.compact()
    assert store.verify() == []


# -- any history ------------------------------------------------------------------------------------------------------

Step = tp.Tuple[str, int]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(st.tuples(st.sampled_from(["add", "withdraw", "replace", "fill", "part", "compact", "rebuild"]),
                                  st.integers(0, 40)), max_size=12))
def test_any_history_answers_with_just_the_songs_that_are_live(tmp_path: Path, history: tp.List[Step]) -> None:
    store, version = make(tmp_path / "s", overwrite=True), 0
    live = {track.id: track for track in store.tracks}
    refill(store)
    for what, number in history:
        version += 1
        name = f"song-{number:02d}"
        if what == "add" and name not in live:
            live[name] = record(name, iswc=str(version))
            store.add_tracks([live[name]], readmit=True)
        elif what == "withdraw" and name in live:
            store.withdraw([name])
            del live[name]
        elif what == "replace" and name in live:
            del live[name]
            live[name] = record(name, iswc=str(version))
            store.replace([live[name]])
        elif what in ("fill", "part"):
            refill(store, until=999 if what == "fill" else 2)
        elif what == "compact":
            store.compact()
        elif what == "rebuild":
            (store.path / "manifest.json").unlink()
            store = FingerprintStore.rebuild_manifest(store.path)
    store = FingerprintStore.open(store.path)
    assert [track.id for track in store.tracks] == list(live) and store.verify() == []
    refill(store)
    ids, vectors = store.vectors("epoch-0002", "P")
    assert ids == [track.id for track in store.tracks if track.status == "ok"]
    assert torch.equal(vectors, torch.stack([vector(name, "P") for name in ids]) if ids else torch.empty(0, DIM))
    store.compact()
    assert store.verify() == [] and len(store.layout.blocks) <= 5 + len(history) and SHARD == store.shard_size
    gone = {f"song-{number:02d}" for number in range(41)} - set(live)
    assert not files_with(store.path, [needle for name in gone for needle in bytes_of(name)])


def test_whole_run_after_changes_is_still_whole(path: Path) -> None:
    store = FingerprintStore.open(path)
    store.withdraw([GONE])
    whole_run(path)
    assert store.verify() == [] and FingerprintStore.open(path).checkpoint("epoch-0004").complete


def test_a_checkpoint_to_come_begins_although_all_songs_of_a_shard_are_gone(path: Path) -> None:
    """That shard has nothing to wait for, but its header names projections that are not put yet."""
    store = FingerprintStore.open(path)
    store.withdraw(names()[5:10], "opted out")
    with store.writer(checkpoint(6)):
        pass
    assert len(refill(store, 6)) == len(names()) - 5 - 2 and store.verify() == []
    assert store.vectors("epoch-0006", "P")[0] == store.vectors("epoch-0004", "P")[0]
