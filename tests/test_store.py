"""The store: what goes in comes out, nothing that happens in between can damage it, and damage is never read as data.

Killed writers are forked from this process (torch is imported once) and die by a real SIGKILL, at a random line of the
store's own code or of the standard library beneath it, or in the middle of a write.
"""

import contextlib
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import typing as tp
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import lumina_plugin.store
from lumina_plugin.errors import LuminaError
from lumina_plugin.store import CheckpointInfo, FingerprintStore, Identity, TrackRecord

DIM, SONGS, SHARD = 8, 23, 5
HOME = str(Path(lumina_plugin.store.__file__).parent)
SILENT, SKIPPED = "song-03", "song-11"
NOISE = {"P": {"sigma": 0.25}, "M": {"sigma": 0.125}}
EPOCHS = (2, 4)


def identity(**changes: tp.Any) -> Identity:
    values: tp.Dict[str, tp.Any] = dict(
        model_id="dora:abcd1234", model_config_hash="config-1", codec_hash="codec-1", recipe_hash="recipe-1",
        recipe={"objective": "margin", "seeds": [1, 2], "nested": {"lambda": 0.01}}, catalogue_hash="catalogue-1",
        dim=DIM)
    return Identity(**{**values, **changes})


def names() -> tp.List[str]:
    return [f"song-{index:02d}" for index in range(SONGS)]


SCATTERED = sorted(names(), key=lambda name: name[::-1])  # an order that keeps all shards open for long


def tracks() -> tp.List[TrackRecord]:
    return [TrackRecord(id=name, title=f"Tītle\u2028{name}", artist="The Inventions", isrc="ZZ-XXX-00-00001",
                        duration=12.5, extra={"writers": {"A. Writer": 0.5}, "composition_id": f"c{index % 4}"})
            for index, name in enumerate(names())]


def vector(name: str, channel: str, epoch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(name[-2:]) * 1000 + epoch * 10 + len(channel) + ord(channel[0]))
    return torch.nn.functional.normalize(torch.randn(DIM, generator=generator), dim=0)


def checkpoint(epoch: int = 2, **changes: tp.Any) -> CheckpointInfo:
    return CheckpointInfo(**{**dict(name=f"epoch-{epoch:04d}", epoch=epoch, model_hash=f"model-{epoch}"), **changes})


def weights(epoch: int = 2) -> tp.Dict[str, torch.Tensor]:
    tied = torch.full((4, 3), float(epoch))
    return {"emb.weight": tied, "linears.0.weight": tied, "half": tied.half().t(), "steps": torch.tensor(epoch)}


def projection(epoch: int = 2) -> tp.Dict[str, torch.Tensor]:
    return {"basis": torch.full((3, DIM), float(epoch))}


def settle(writer: tp.Any, name: str, epoch: int) -> None:
    if name == SILENT:
        writer.mark(name, "silent", "below -60 dBFS")
    elif name == SKIPPED:
        writer.mark(name, "skipped", "no such file")
    else:
        writer.add(name, {c: vector(name, c, epoch) for c in "PM"}, {c: 2.0 + epoch for c in "PM"})


def prepare(store: FingerprintStore, writer: tp.Any, epoch: int = 2) -> None:
    store.save_weights(checkpoint(epoch), weights(epoch))
    for channel in "PM":
        writer.put_projection(channel, projection(epoch), {"rank": "3", "kind": "fitted"})


def fill(store: FingerprintStore, epoch: int = 2, order: tp.Optional[tp.Sequence[str]] = None) -> None:
    """What a fingerprinting pass does, resuming whatever is there."""
    with store.writer(checkpoint(epoch)) as writer:
        prepare(store, writer, epoch)
        done = writer.done_ids
        for name in order or names():
            if name not in done:
                settle(writer, name, epoch)
        writer.finish(NOISE)


def make(path: Path, **options: tp.Any) -> FingerprintStore:
    return FingerprintStore.create(path, identity(), tracks(), **{"shard_size": SHARD, **options})


def whole_run(path: Path, order: tp.Optional[tp.Sequence[str]] = None) -> None:
    """Create or open, and fill both checkpoints: what a user repeats after an interruption."""
    store = FingerprintStore.open(path) if FingerprintStore.exists(path) else make(path)
    for epoch in EPOCHS:
        fill(store, epoch, order)


def content(path: Path) -> tp.Dict[str, bytes]:
    """Every file of a folder: two stores are the same if this is."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def forked(work: tp.Callable[[], None]) -> int:
    """Run `work` in a forked child; returns the wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.fixture(scope="module")
def memory() -> tp.Iterator[Path]:
    """A folder in memory where the system has one: these tests call fsync thousands of times."""
    shared = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path(memory: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=memory))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "lumina" / "default"  # on a real disk
    whole_run(path)
    return path


@pytest.fixture
def store(undisturbed: Path, tmp_path: Path) -> FingerprintStore:
    """A copy of the filled store."""
    return FingerprintStore.open(shutil.copytree(undisturbed, tmp_path / "store"))


def shard_file(store: FingerprintStore, epoch: int, number: int) -> str:
    """Path of a shard relative to the store's folder."""
    return store.checkpoint(f"epoch-{epoch:04d}").shards[number].file


@contextlib.contextmanager
def flipped(path: Path, position: int) -> tp.Iterator[None]:
    data = bytearray(path.read_bytes())
    original = bytes(data)
    data[position] ^= 4
    path.write_bytes(data)
    yield
    path.write_bytes(original)


# -- what goes in comes out -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    fill(make(tmp_path / "s", dtype=dtype))
    store = FingerprintStore.open(tmp_path / "s")
    expected = [name for name in names() if name not in (SILENT, SKIPPED)]
    for channel in "PM":
        ids, vectors = store.vectors("epoch-0002", channel)
        assert ids == expected
        assert vectors.dtype == getattr(torch, dtype)
        assert torch.equal(vectors, torch.stack([vector(name, channel) for name in expected]).to(vectors.dtype))
        assert store.norms("epoch-0002", channel).tolist() == [4.0] * len(expected)
        parts = list(store.iter_vectors(checkpoint(), channel))
        assert [name for part, _ in parts for name in part] == expected
        assert torch.equal(torch.cat([part for _, part in parts]), vectors)
    assert [track.status for track in store.tracks].count("ok") == len(expected)
    assert (store.track(SILENT).status, store.track(SILENT).reason) == ("silent", "below -60 dBFS")
    assert store.track(names()[0]) == tracks()[0]
    assert store.identity == identity() and store.channels == ["P", "M"]
    record = store.checkpoint("epoch-0002")
    assert (record.complete, record.noise, record.epoch, record.model_hash) == (True, NOISE, 2, "model-2")
    tensors, metadata = store.projection("epoch-0002", "M")
    assert torch.equal(tensors["basis"], projection(2)["basis"]) and metadata == {"rank": "3", "kind": "fitted"}
    assert store.verify() == []
    summary = json.loads(json.dumps(store.info()))
    assert summary["tracks"] == {"total": SONGS, "ok": SONGS - 2, "silent": 1, "skipped": 1}


def test_one_shard_is_mapped_not_copied(tmp_path: Path) -> None:
    store = make(tmp_path / "s", shard_size=1000)
    fill(store)
    _, vectors = store.vectors("epoch-0002", "P")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    ranges = [line.split("-") for line in maps.read_text().splitlines() if "shard-00000" in line]
    spans = [(int(low, 16), int(high.split()[0], 16)) for low, high in (pair[:2] for pair in ranges)]
    assert any(low <= vectors.data_ptr() < high for low, high in spans)


def test_weights_round_trip_as_independent_fp32(store: FingerprintStore) -> None:
    loaded = store.load_weights("epoch-0004")
    for name, tensor in weights(4).items():
        assert torch.equal(loaded[name], tensor.float() if tensor.is_floating_point() else tensor)
        assert loaded[name].is_contiguous()
    assert loaded["half"].dtype == torch.float32 and loaded["steps"].dtype == torch.int64
    assert loaded["emb.weight"].data_ptr() != loaded["linears.0.weight"].data_ptr()
    assert store.checkpoint("epoch-0004").weights == "epoch-0004/weights.safetensors"
    assert set(load_file(store.path / "epoch-0004" / "weights.safetensors")) == set(weights())


def test_weights_saved_first_and_announced(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    path = store.save_weights("epoch-0002", weights())
    with store.writer(checkpoint(weights=path)):
        pass
    assert torch.equal(store.load_weights(checkpoint())["emb.weight"], weights()["emb.weight"])


def test_live_model_has_no_weights(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    with store.writer(checkpoint()):
        pass
    with pytest.raises(LuminaError, match="live model"):
        store.load_weights("epoch-0002")


def test_other_weights_are_refused_once_songs_are_stored(store: FingerprintStore) -> None:
    before = content(store.path)
    with pytest.raises(LuminaError, match="other weights"):
        store.save_weights("epoch-0002", weights(3))
    with pytest.raises(LuminaError, match="model-2.*model-other"), store.writer(checkpoint(model_hash="model-other")):
        pass
    assert content(store.path) == before


def test_a_checkpoint_without_songs_can_begin_anew(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    with store.writer(checkpoint(model_hash="first try")) as writer:
        store.save_weights(checkpoint(), weights(7))
        writer.put_projection("P", {"basis": torch.ones(2, 2)})
        settle(writer, names()[0], 7)
        writer.flush()
    fill(store)
    assert store.checkpoint("epoch-0002").model_hash == "model-2"
    assert torch.equal(store.vectors("epoch-0002", "P")[1][0], vector(names()[0], "P"))
    assert torch.equal(store.load_weights("epoch-0002")["emb.weight"], weights(2)["emb.weight"])
    assert store.verify() == []


def test_projection_cannot_change_under_stored_songs(store: FingerprintStore) -> None:
    with store.writer(checkpoint()) as writer:
        assert writer.projection_if_any("P") is not None
        with pytest.raises(LuminaError, match="projection P"):
            writer.put_projection("P", {"basis": torch.zeros(3, DIM)})
    assert store.verify() == []


def test_projection_can_change_before_the_first_song(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    with store.writer(checkpoint()) as writer:
        assert writer.projection_if_any("P") is None
        for value in (1.0, 2.0):
            writer.put_projection("P", {"basis": torch.full((2,), value)})
        writer.put_projection("M", {}, {"kind": "random", "seed": "7"})
    reopened = FingerprintStore.open(store.path)
    assert torch.equal(reopened.projection(checkpoint(), "P")[0]["basis"], torch.full((2,), 2.0))
    assert store.projection(checkpoint(), "M") == ({}, {"kind": "random", "seed": "7"})


def test_vectors_are_copied_when_added_and_read_anew_when_more_come(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    buffer = {c: torch.zeros(DIM) for c in "PM"}
    with store.writer(checkpoint()) as writer:
        for index, name in enumerate(names()):
            for channel in "PM":
                buffer[channel].fill_(float(index))
            writer.add(name, buffer)
            if (index + 1) % SHARD == 0:
                ids, vectors = store.vectors("epoch-0002", "P", partial=True)
                assert ids == names()[:index + 1] and vectors[:, 0].tolist() == list(range(index + 1))
    assert store.norms("epoch-0002", "P", partial=True)[2].item() == pytest.approx(2 * DIM ** 0.5)


def test_whoever_has_a_file_open_keeps_it_whole(tmp_path: Path) -> None:
    """A file is replaced, never written over: a reader, or a mapped tensor, goes on with what it has."""
    store = make(tmp_path / "s")
    with store.writer(checkpoint()):
        store.save_weights("epoch-0002", weights(2))
        mapped = store.load_weights("epoch-0002")["emb.weight"]
        with open(store.path / "manifest.json", "rb") as stream:
            first, rest = stream.read(10), (store.path / "manifest.json").read_bytes()[10:]
            store.save_weights("epoch-0002", weights(9))
            assert first + stream.read() == first + rest
        assert torch.equal(mapped, weights(2)["emb.weight"])
        assert torch.equal(store.load_weights("epoch-0002")["emb.weight"], weights(9)["emb.weight"])


def test_a_writer_leaves_no_litter(tmp_path: Path) -> None:
    store = make(tmp_path / "s", shard_size=2)
    with store.writer(checkpoint()) as writer:
        prepare(store, writer)
        for name in names()[:-1:2]:  # one of each shard
            settle(writer, name, 2)
        writer.flush()
        assert list(store.path.rglob("pending-*"))
    for litter in (store.path / ".tmp-old.json", store.path / "epoch-0002" / ".tmp-weights.safetensors",
                   store.path / "epoch-0002" / ".tmpHivb0H"):  # the last as safetensors names its own
        litter.write_text("half")
    fill(store)
    assert {Path(file).name.split("-")[0] for file in content(store.path)} == {
        ".lock", "manifest.json", "index", "shard", "projection", "weights.safetensors", "finished.json"}
    assert (store.path / ".lock").read_bytes() == b""
    assert len({file.stat().st_mode for file in store.path.rglob("*") if file.is_file() and file.name != ".lock"}) == 1


# -- refusals ---------------------------------------------------------------------------------------------------------

def test_wrong_songs_are_refused_and_named(tmp_path: Path) -> None:
    store = make(tmp_path / "s", dtype="float16")
    good = {c: vector("song-00", c) for c in "PM"}
    with store.writer(checkpoint()) as writer:
        for wrong in ({"P": good["P"]}, {**good, "X": good["P"]}, {**good, "M": torch.ones(DIM + 1)},
                      {**good, "M": torch.full((DIM,), float("nan"))}, {**good, "M": torch.full((DIM,), 1e6)}):
            with pytest.raises(LuminaError, match="song-00"):
                writer.add("song-00", wrong)
        with pytest.raises(LuminaError, match="stranger"):
            writer.add("stranger", good)
        writer.add("song-00", good)
        with pytest.raises(LuminaError, match="already"):
            writer.add("song-00", good)
        with pytest.raises(LuminaError, match="already"):
            writer.mark("song-00", "silent")
        with pytest.raises(LuminaError, match="22 songs.*song-01"):
            writer.finish()
        with pytest.raises(LuminaError, match="no channel 'X'"):
            writer.put_projection("X", {})
    with pytest.raises(LuminaError, match="not complete"):
        store.vectors("epoch-0002", "P")
    with pytest.raises(LuminaError, match="epoch-0002"):
        store.vectors("epoch-9999", "P")


def test_marks_hold_for_later_checkpoints_and_can_be_repeated(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    fill(store)
    with store.writer(checkpoint(4)) as writer:
        assert writer.done_ids == {SILENT, SKIPPED}
        writer.mark(SILENT, "silent")
        writer.mark(SKIPPED, "skipped", "another reason")
    assert store.track(SKIPPED).reason == "no such file"


def test_create_refuses_what_it_would_destroy_or_cannot_hold(store: FingerprintStore, tmp_path: Path) -> None:
    with pytest.raises(LuminaError, match="already holds"):
        make(store.path)
    (store.path / "manifest.json").unlink()
    with pytest.raises(LuminaError, match="already holds"):
        make(store.path)
    (store.path / "epoch-0002" / "notes.txt").write_text("mine")
    make(store.path, overwrite=True)
    index = store.manifest.tracks.file
    assert set(content(store.path)) == {".lock", "epoch-0002/notes.txt", "manifest.json", index}
    cases: tp.List[tp.Tuple[tp.Dict[str, tp.Any], str]] = [
        (dict(tracks=[]), "no track"), (dict(tracks=[tracks()[0]] * 2), "song-00"), (dict(dtype="int8"), "dtype"),
        (dict(shard_size=0), "shard_size"), (dict(tracks=[{"id": "a", "extra": {"x": object()}}]), "JSON"),
        (dict(tracks=[{"id": "a", "colour": 1}]), "colour")]
    for wrong, words in cases:
        arguments: tp.Dict[str, tp.Any] = {"identity": identity(), "tracks": tracks(), **wrong}
        with pytest.raises(LuminaError, match=words):
            FingerprintStore.create(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(LuminaError, match="no fingerprint store"):
        FingerprintStore.open(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LuminaError, match="not a fingerprint store"):
        FingerprintStore.open(tmp_path / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(LuminaError, match="file"):
        FingerprintStore.open(tmp_path / "file" / "store")


def test_newer_format_is_refused(store: FingerprintStore) -> None:
    path = store.path / "manifest.json"
    data = json.loads(path.read_bytes())
    path.write_text(json.dumps({**data, "format_version": 99, "novelty": True}))
    with pytest.raises(LuminaError, match="format 99.*upgrade"):
        FingerprintStore.open(store.path)


def test_expect_prints_both_hashes(store: FingerprintStore) -> None:
    store.expect(codec_hash="codec-1", model_config_hash="config-1", recipe_hash="recipe-1")
    store.expect(catalogue_hash="catalogue-1")
    with pytest.raises(LuminaError, match="codec .*codec-1.*codec-2.*recipe .*recipe-1.*recipe-2"):
        store.expect(codec_hash="codec-2", model_config_hash="config-1", recipe_hash="recipe-2")


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LuminaError, match=str(tmp_path / "file")):
        make(tmp_path / "file" / "store")


# -- damage -----------------------------------------------------------------------------------------------------------

def test_flipped_bits_are_found_by_reading_and_by_verify(store: FingerprintStore) -> None:
    random_places = random.Random(5)
    reads: tp.Dict[str, tp.Callable[[FingerprintStore], tp.Any]] = {
        shard_file(store, 2, 1): lambda s: s.vectors("epoch-0002", "P"),
        "epoch-0004/projection-M.safetensors": lambda s: s.projection("epoch-0004", "M"),
        "epoch-0004/weights.safetensors": lambda s: s.load_weights("epoch-0004"),
        store.manifest.tracks.file: lambda s: s.tracks,
        "manifest.json": lambda s: s.tracks}
    for file, read in reads.items():
        path = store.path / file
        size = path.stat().st_size
        for position in (0, size - 5, *(random_places.randrange(size) for _ in range(3))):
            with flipped(path, position):
                with pytest.raises(LuminaError, match=Path(file).name):
                    read(FingerprintStore.open(store.path))
                if file != "manifest.json":
                    assert [problem for problem in store.verify() if file in problem]
        path_bytes = path.read_bytes()
        path.write_bytes(path_bytes[:-7])
        with pytest.raises(LuminaError, match=Path(file).name):
            read(FingerprintStore.open(store.path))
        path.write_bytes(path_bytes)
    (store.path / shard_file(store, 2, 0)).unlink()
    with pytest.raises(LuminaError, match="shard-00000.*lumina store rebuild"):
        FingerprintStore.open(store.path).vectors("epoch-0002", "P")
    assert len(store.verify()) == 1


@pytest.mark.parametrize("damage", ["missing", "garbage", "also the index"])
def test_manifest_is_rebuilt_byte_for_byte(store: FingerprintStore, damage: str) -> None:
    before = content(store.path)
    if damage == "garbage":
        (store.path / "manifest.json").write_bytes(b'{"format_version": 1, "ident')
    else:
        (store.path / "manifest.json").unlink()
    if damage == "also the index":
        (store.path / store.manifest.tracks.file).write_text("gone")
    with pytest.raises(LuminaError, match="lumina store rebuild"):
        FingerprintStore.open(store.path)
    rebuilt = FingerprintStore.rebuild_manifest(store.path)
    assert content(store.path) == before
    assert rebuilt.verify() == []


def test_rebuilding_leaves_out_a_damaged_shard_and_a_rerun_redoes_just_that(store: FingerprintStore) -> None:
    before = content(store.path)
    (store.path / "manifest.json").unlink()
    with flipped(store.path / shard_file(store, 2, 2), -3):
        rebuilt = FingerprintStore.rebuild_manifest(store.path)
        assert [record.complete for record in rebuilt.checkpoints] == [False, True]
        with rebuilt.writer(checkpoint()) as writer:
            assert set(names()) - writer.done_ids == {"song-10", "song-12", "song-13", "song-14"}
        whole_run(store.path)
        assert content(store.path) == before


def test_rebuilding_refuses_guesses(store: FingerprintStore, tmp_path: Path) -> None:
    with pytest.raises(LuminaError, match="no shards"):
        FingerprintStore.rebuild_manifest(tmp_path)
    for path in store.path.glob("*/shard-00003*"):
        path.unlink()
    (store.path / store.manifest.tracks.file).unlink()
    with pytest.raises(LuminaError, match="track 16 of 23"):
        FingerprintStore.rebuild_manifest(store.path)


# -- one writer -------------------------------------------------------------------------------------------------------

def test_second_writer_is_refused_in_and_across_processes(store: FingerprintStore, tmp_path: Path) -> None:
    with store.writer(checkpoint()):
        with pytest.raises(LuminaError, match=f"pid {os.getpid()} "):
            FingerprintStore.open(store.path).writer(checkpoint()).__enter__()

        def intrude() -> None:
            with pytest.raises(LuminaError, match=f"pid {os.getppid()} "):
                FingerprintStore.open(store.path).save_weights("epoch-0002", weights())

        assert forked(intrude) == 0
    with FingerprintStore.open(store.path).writer(checkpoint()):
        pass


def test_dead_holders_lock_is_taken_over(store: FingerprintStore) -> None:
    def die_holding() -> None:
        FingerprintStore.open(store.path).writer(checkpoint()).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    before = content(store.path)
    assert os.WTERMSIG(forked(die_holding)) == signal.SIGKILL
    assert b"pid" in (store.path / ".lock").read_bytes()
    whole_run(store.path)
    assert content(store.path) == before


@pytest.mark.parametrize("killed", [False, True])
def test_a_forked_worker_does_not_keep_the_lock(store: FingerprintStore, killed: bool) -> None:
    """A data loader's worker may outlive its parent's block, or a parent that was killed."""
    (stop, go), (hear, say) = os.pipe(), os.pipe()

    def hold_and_fork() -> None:
        with store.writer(checkpoint()):
            if os.fork() == 0:
                os.write(say, b"!")
                os.close(go)
                os.read(stop, 1)  # until the test ends
                os._exit(0)
            if killed:
                os.read(hear, 1)
                os.kill(os.getpid(), signal.SIGKILL)

    status = forked(hold_and_fork)
    assert os.WTERMSIG(status) == signal.SIGKILL if killed else status == 0
    with FingerprintStore.open(store.path).writer(checkpoint()):
        pass
    for handle in (stop, go, hear, say):
        os.close(handle)


# -- killed and interrupted -------------------------------------------------------------------------------------------

def run_and_die(path: Path, line: int, order: tp.Optional[tp.Sequence[str]] = None) -> None:
    """`whole_run`, killed by SIGKILL at the `line`-th line executed in the store's code or just beneath it."""
    count = 0

    def trace(frame: tp.Any, event: str, _: tp.Any) -> tp.Any:
        nonlocal count
        file = frame.f_code.co_filename
        if not (file.startswith(HOME) or file.endswith(("pathlib.py", "json/encoder.py"))):
            return None
        if event == "line":
            count += 1
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    whole_run(path, order)
    sys.settrace(None)
    (path.parent / "lines").write_text(str(count))


@pytest.fixture(scope="module")
def lines(memory: Path) -> int:
    """How many lines a whole run executes."""
    folder = Path(tempfile.mkdtemp(dir=memory))
    assert forked(lambda: run_and_die(folder / "store", -1)) == 0
    return int((folder / "lines").read_text())


@pytest.mark.parametrize("seed", range(10))
def test_killed_anywhere_and_rerun_is_identical(undisturbed: Path, tmp_path: Path, lines: int, seed: int) -> None:
    path, places = tmp_path / "store", random.Random(seed)
    for order in (names(), SCATTERED):  # the rerun may be killed, too
        status = forked(functools.partial(run_and_die, path, places.randrange(1, lines), order))
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        if FingerprintStore.exists(path):
            survivor = FingerprintStore.open(path)
            assert survivor.verify() == []
            for record in survivor.checkpoints:
                ids, vectors = survivor.vectors(record, "P", partial=True)
                for name, found in zip(ids, vectors, strict=True):
                    assert torch.equal(found, vector(name, "P", record.epoch))
    whole_run(path)
    assert content(path) == content(undisturbed)


@pytest.mark.parametrize("seed", range(4))
def test_killed_in_the_middle_of_a_write(undisturbed: Path, tmp_path: Path, seed: int) -> None:
    """The kernel kills (SIGXFSZ) whoever writes past a file size limit: part of the file is on disk by then."""
    path = tmp_path / "store"
    sizes = sorted({len(data) for data in content(undisturbed).values() if data})

    def die_writing() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        limit = random.Random(seed).randrange(sizes[0], sizes[-1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        whole_run(path)

    assert os.WTERMSIG(forked(die_writing)) == signal.SIGXFSZ
    assert [file for file in path.rglob(".tmp-*") if file.stat().st_size]
    whole_run(path)
    assert content(path) == content(undisturbed)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_a_write_that_the_disk_refuses_is_a_clear_error(undisturbed: Path, tmp_path: Path, part: float) -> None:
    path, said = tmp_path / "store", tmp_path / "said"
    biggest = max(len(data) for data in content(undisturbed).values())

    def run_out() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(biggest * part),) * 2)  # Python ignores SIGXFSZ: write fails
        try:
            whole_run(path)
        except LuminaError as error:
            said.write_text(str(error))

    assert forked(run_out) == 0
    assert "cannot write" in said.read_text() and str(path) in said.read_text()
    assert not list(path.rglob(".tmp-*"))
    assert not FingerprintStore.exists(path) or FingerprintStore.open(path).verify() == []
    whole_run(path)
    assert content(path) == content(undisturbed)


def test_resume_redoes_at_most_one_shard(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    for order in (names(), SCATTERED):
        for given_up in range(1, SONGS, 2):
            store = make(tmp_path / "s", overwrite=True)
            with contextlib.suppress(KeyboardInterrupt), store.writer(checkpoint()) as writer:
                for name in order[:given_up]:
                    settle(writer, name, 2)
                raise KeyboardInterrupt
            with FingerprintStore.open(store.path).writer(checkpoint()) as writer:
                redone = set(order[:given_up]) - writer.done_ids - {SILENT, SKIPPED}  # a mark costs no gradient
                assert len(redone) < SHARD
                assert writer.done_ids <= set(order[:given_up])


def test_marks_that_wait_do_not_save_half_a_shard(tmp_path: Path) -> None:
    """Whoever goes on computes whole shards again: with half a shard saved, other songs would share their batches."""
    store = make(tmp_path / "s")
    last = names()[SHARD:2 * SHARD - 1]
    with contextlib.suppress(KeyboardInterrupt), store.writer(checkpoint()) as writer:
        for name in last:
            writer.mark(name, "silent", "below -60 dBFS")
        for name in names()[:SHARD - 1]:
            settle(writer, name, 2)
        raise KeyboardInterrupt
    with FingerprintStore.open(store.path).writer(checkpoint()) as writer:
        assert not writer.done_ids


def test_groups_by_shard_survive_an_interruption(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    groups = store.by_shard(reversed(names()))
    assert [name for group in groups for name in group] == names() and len(groups[0]) == SHARD
    with contextlib.suppress(KeyboardInterrupt), store.writer(checkpoint()) as writer:
        for name in [*groups[0], *groups[1], *groups[2][:3]]:
            settle(writer, name, 2)
        raise KeyboardInterrupt
    with store.writer(checkpoint()) as writer:
        assert store.by_shard(name for name in names() if name not in writer.done_ids) == groups[2:]


@pytest.mark.parametrize("damage", ["cut", "from another store"])
def test_a_damaged_or_foreign_pending_file_is_redone(undisturbed: Path, tmp_path: Path, damage: str) -> None:
    def begin(path: Path, recipe_hash: str) -> Path:
        store = FingerprintStore.create(path, identity(recipe_hash=recipe_hash), tracks(), shard_size=SHARD)
        with store.writer(checkpoint()) as writer:
            prepare(store, writer)
            settle(writer, "song-00", 2)
            settle(writer, SILENT, 2)
            writer.flush()
        (pending,) = path.rglob("pending-*")
        return pending

    pending = begin(tmp_path / "store", "recipe-1")
    store = FingerprintStore.open(tmp_path / "store")
    with store.writer(checkpoint()) as writer:
        assert writer.done_ids == {"song-00", SILENT}
    if damage == "cut":
        pending.write_bytes(pending.read_bytes()[:-1])
    else:
        shutil.copy(begin(tmp_path / "other", "recipe-2"), pending)
    with store.writer(checkpoint()) as writer:
        assert writer.done_ids == set() and not pending.exists()
    whole_run(tmp_path / "store")
    assert content(tmp_path / "store") == content(undisturbed)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(names()), stops=st.lists(st.tuples(st.integers(0, SONGS), st.sampled_from(
    ["flush", "leave", "interrupt", "reopen"])), max_size=6))
def test_any_order_of_add_flush_and_resume_gives_the_same_bytes(
        undisturbed: Path, tmp_path: Path, order: tp.List[str], stops: tp.List[tp.Tuple[int, str]]) -> None:
    path = tmp_path / "store"
    store = make(path, overwrite=True)
    fill(store, 2)
    for count, stop in stops:
        if stop == "reopen":
            store = FingerprintStore.open(path)
        with contextlib.suppress(KeyboardInterrupt), store.writer(checkpoint(4)) as writer:
            prepare(store, writer, 4)
            for name in [name for name in order if name not in writer.done_ids][:count]:
                settle(writer, name, 4)
            if stop == "flush":
                writer.flush()
            if stop == "interrupt":
                raise KeyboardInterrupt
    fill(store, 4, order)
    assert content(path) == content(undisturbed)


def test_importing_the_store_does_not_import_audiocraft() -> None:
    code = ("import sys, lumina_plugin.store; heavy = {'audiocraft', 'gradio', 'librosa', 'transformers', 'scipy'}; "
            "sys.exit(bool(heavy & {name.split('.')[0] for name in sys.modules}))")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(HOME).parents[1])
