"""Stores of an older format, merging, exporting, and the commands."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import typing as tp
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lumina_plugin.cli.store import store_app
from lumina_plugin.errors import LuminaError
from lumina_plugin.store import FingerprintStore, export, files, merge, shards

from .test_store import (
    DIM,
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
    memory,
    names,
    prepare,
    settle,
    shard_file,
    tmp_path,
    tracks,
    undisturbed,
    vector,
    weights,
    whole_run,
)
from .test_store_changes import GONE, at_step, bytes_of, files_with

__all__ = ["memory", "tmp_path", "undisturbed"]  # fixtures


@pytest.fixture
def path(undisturbed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(undisturbed, tmp_path / "store")


# -- format 1 ---------------------------------------------------------------------------------------------------------

def format_1(path: Path, model: Path) -> None:
    """What `whole_run` made in format 1; weights and projections, which did not change, come from the store `model`."""
    lines = b"".join(files.canonical(track.model_dump(mode="json", exclude={"gone_on"})) + b"\n" for track in tracks())
    files.write(path / "tracks.jsonl", lines)
    marks = {SILENT: {"status": "silent", "reason": "below -60 dBFS"},
             SKIPPED: {"status": "skipped", "reason": "no such file"}}
    root: tp.Dict[str, tp.Any] = {
        "format_version": 1, "created_by": "lumina_plugin 0.1.0", "updated_by": "lumina_plugin 0.1.0",
        "identity": {**identity().model_dump(mode="json"), "recipe": files.plain(identity().recipe, "recipe")},
        "dtype": "float32", "shard_size": SHARD,
        "tracks": {"file": "tracks.jsonl", "sha256": files.sha256(lines), "count": len(names())}, "checkpoints": []}
    for epoch in EPOCHS:
        folder = f"epoch-{epoch:04d}"
        for file in (model / folder).glob("[pw]*"):  # projections and weights
            files.write(path / folder / file.name, file.read_bytes())
        record = {"name": folder, "epoch": epoch, "model_hash": f"model-{epoch}",
                  "weights": f"{folder}/weights.safetensors",
                  "weights_sha256": files.sha256_file(path / folder / "weights.safetensors"), "projections": {
                      channel: {"file": f"{folder}/projection-{channel}.safetensors",
                                "sha256": files.sha256_file(path / folder / f"projection-{channel}.safetensors")}
                      for channel in "MP"}}
        written = [shard_1(path, root, record, epoch, first, marks) for first in range(0, len(names()), SHARD)]
        finished = {"model_hash": f"model-{epoch}", "noise": files.plain(NOISE, "noise")}
        files.write(path / folder / "finished.json", json.dumps(
            {**finished, "sha256": files.sha256(files.canonical(finished))}, indent=1).encode())
        root["checkpoints"].append({**record, "complete": True, "noise": finished["noise"], "shards": written})
    files.write(path / "manifest.json", json.dumps({
        "format_version": 1, "sha256": files.sha256(files.canonical(root)), **root}, indent=1).encode())


def shard_1(path: Path, root: tp.Dict[str, tp.Any], record: tp.Dict[str, tp.Any], epoch: int, first: int,
            marks: tp.Dict[str, tp.Any]) -> tp.Dict[str, tp.Any]:
    """Write a shard as format 1 had it; returns its entry in the manifest."""
    span = tracks()[first:first + SHARD]
    present = [track.id for track in span if track.id not in marks]
    absent = {track.id: marks[track.id] for track in span if track.id in marks}
    tensors = {}
    for channel in "PM":
        tensors[channel] = torch.stack([vector(name, channel, epoch) for name in present])
        tensors[f"{channel}.norm"] = torch.full((len(present),), 2.0 + epoch)
    data = shards.encode(tensors, {
        "kind": "shard", "first": first, "ids": present, "absent": absent,
        "tracks": [track.model_dump(mode="json", exclude={"gone_on"}) for track in span], "checkpoint": record,
        "manifest": {key: value for key, value in root.items() if key not in ("updated_by", "checkpoints")}})
    file = f"{record['name']}/shard-{first // SHARD:05d}.safetensors"
    files.write(path / file, data)
    return {"file": file, "sha256": files.sha256(data), "first": first, "span": len(span), "count": len(present),
            "absent": absent}


@pytest.fixture
def old(undisturbed: Path, tmp_path: Path) -> Path:
    format_1(tmp_path / "old", undisturbed)
    return tmp_path / "old"


def without_lock(path: Path) -> tp.Dict[str, bytes]:
    return {name: data for name, data in content(path).items() if name != ".lock"}


def test_an_old_store_is_migrated_in_place(old: Path, undisturbed: Path) -> None:
    (old / "epoch-0002" / "pending-00000.safetensors").write_bytes(b"rows of the old format")
    with pytest.raises(LuminaError, match=f"format 1, .*`lumina store migrate {old}`"):
        FingerprintStore.open(old)
    migrated = FingerprintStore.migrate(old)
    assert without_lock(old) == without_lock(undisturbed) and migrated.verify() == []
    assert FingerprintStore.migrate(old).hash == FingerprintStore.open(undisturbed).hash  # again: nothing happens
    assert migrated.checkpoint("epoch-0002").projections["P"].fit.songs == len(names())


def test_a_migration_killed_between_any_two_steps(old: Path, undisturbed: Path) -> None:
    start = shutil.copytree(old, old.with_name("start"))
    count = at_step(0, lambda: FingerprintStore.migrate(old) and None)  # type: ignore[func-returns-value]
    for number in range(1, count + 1, 5):
        victim = shutil.copytree(start, old.with_name("victim"))
        status = forked(lambda number=number, victim=victim: at_step(  # type: ignore[misc]
            number, lambda: FingerprintStore.migrate(victim) and None))
        assert os.WTERMSIG(status) == signal.SIGKILL
        with contextlib.suppress(LuminaError):  # one format or the other
            assert FingerprintStore.open(victim).verify() == []
        assert FingerprintStore.migrate(victim).verify() == []
        assert without_lock(victim) == without_lock(undisturbed)
        shutil.rmtree(victim)


def test_a_damaged_old_store(old: Path, undisturbed: Path, tmp_path: Path) -> None:
    before = content(old)
    with flipped(old / "tracks.jsonl", 9), pytest.raises(LuminaError, match="tracks.jsonl"):
        FingerprintStore.migrate(old)
    assert {name: data for name, data in content(old).items() if name in before} == before
    with flipped(old / "manifest.json", -9), pytest.raises(LuminaError, match="manifest.json"):
        FingerprintStore.migrate(old)
    with pytest.raises(LuminaError, match="no fingerprint store"):
        FingerprintStore.migrate(tmp_path / "nowhere")
    (old / "epoch-0004" / "shard-00002.safetensors").write_bytes(b"half")
    store = FingerprintStore.migrate(old)  # what is damaged is redone
    assert [record.complete for record in store.checkpoints] == [True, False] and store.verify() == []
    whole_run(old)
    assert without_lock(old) == without_lock(undisturbed)


def test_shards_of_the_old_format_cannot_make_a_manifest(old: Path) -> None:
    (old / "manifest.json").unlink()
    with pytest.raises(LuminaError, match="format 1"):
        FingerprintStore.rebuild_manifest(old)


# -- the index --------------------------------------------------------------------------------------------------------

def test_the_index_is_an_arrow_file_for_anybody(path: Path) -> None:
    store = FingerprintStore.open(path)
    store.withdraw([GONE], "opted out")
    with pa.memory_map(str(path / store.manifest.tracks.file)) as source:
        rows = pa.ipc.open_file(source).read_all().to_pylist()
    assert [row["slot"] for row in rows] == list(range(23)) and [row["shard"] for row in rows][4:6] == [0, 1]
    assert json.loads(rows[1]["extra"]) == tracks()[1].extra and rows[1]["title"] == tracks()[1].title
    assert (rows[7]["id"], rows[7]["title"], rows[7]["status"]) == (GONE, "", "withdrawn")
    del rows


# -- merging ----------------------------------------------------------------------------------------------------------

def part(path: Path, ids: tp.Sequence[str], until: int = 99, **changes: tp.Any) -> Path:
    """A store of a part of the catalogue, as one of several machines makes it."""
    mine = [track for track in tracks() if track.id in ids]
    store = FingerprintStore.create(path, identity(catalogue_hash=f"of {path.name}", **changes), mine, shard_size=SHARD)
    for epoch in EPOCHS:
        with store.writer(checkpoint(epoch)) as writer:
            prepare(store, writer, epoch)
            done = writer.done_ids
            for name in [name for name in ids if name not in done][:until]:
                settle(writer, name, epoch)
            if until == 99:
                writer.finish(NOISE)
    return path


def test_stores_of_parts_are_merged(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", names()[:7]), part(tmp_path / "b", names()[7:9])
    c = part(tmp_path / "c", names()[9:])
    FingerprintStore.open(b).withdraw(["song-08"], "opted out")
    FingerprintStore.open(c).add_tracks([{"id": "song-40"}])
    fill_rest(c)
    before = [content(source) for source in (a, b, c)]
    made = merge(tmp_path / "m", [a, b, c], lambda store, name: {"songs": len(store.vectors(name, "P")[0])})
    assert [content(source) for source in (a, b, c)] == before
    expected = [name for name in [*names(), "song-40"] if name not in ("song-08", SILENT, SKIPPED)]
    for reader in (made, FingerprintStore.open(tmp_path / "m")):
        for epoch in EPOCHS:
            ids, vectors = reader.vectors(f"epoch-{epoch:04d}", "M")
            assert ids == expected and torch.equal(vectors, torch.stack([vector(name, "M", epoch) for name in ids]))
        assert reader.verify() == [] and reader.checkpoint("epoch-0002").noise == {"songs": len(expected)}
        assert list(reader.withdrawn) == ["song-08"] and reader.track(SKIPPED).reason == "no such file"
    assert made.load_weights("epoch-0004").keys() == weights(4).keys() and made.projection("epoch-0004", "P")
    assert made.checkpoint("epoch-0002").projections["P"].fit.spans == [(0, 7), (7, 9), (9, 23)]
    made.compact()
    assert not files_with(made.path, bytes_of("song-08")) and made.verify() == []
    (made.path / "manifest.json").unlink()
    assert FingerprintStore.rebuild_manifest(made.path).vectors("epoch-0002", "P")[0] == expected
    made.add_tracks([{"id": "song-41"}])
    fill_rest(made.path)


def fill_rest(path: Path) -> None:
    store = FingerprintStore.open(path)
    for epoch in EPOCHS:
        with store.writer(checkpoint(epoch)) as writer:
            done = writer.done_ids
            for track in store.tracks:
                if track.id not in done:
                    settle(writer, track.id, epoch)
            writer.finish(NOISE)


def test_an_unfinished_part_stays_to_be_done(tmp_path: Path) -> None:
    made = merge(tmp_path / "m", [part(tmp_path / "a", names()[:7]), part(tmp_path / "b", names()[7:], until=8)])
    assert [record.complete for record in made.checkpoints] == [False, False] and made.verify() == []
    fill_rest(made.path)
    assert len(made.path.name) and FingerprintStore.open(made.path).vectors("epoch-0002", "P")[0][-1] == names()[-1]


def test_what_cannot_be_merged_is_refused_with_the_reason(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", names()[:7]), part(tmp_path / "b", names()[6:])
    other = part(tmp_path / "other", names()[7:], recipe_hash="recipe-2")
    short = FingerprintStore.create(tmp_path / "short", identity(), [{"id": "x"}], shard_size=SHARD).path
    with pytest.raises(LuminaError, match="two stores or more"):
        merge(tmp_path / "m", [a])
    with pytest.raises(LuminaError, match="song-06.*/a .*/b;"):
        merge(tmp_path / "m", [a, b])
    with pytest.raises(LuminaError, match="recipe_hash: recipe-1 against recipe-2"):
        merge(tmp_path / "m", [a, other])
    with pytest.raises(LuminaError, match="checkpoints"):
        merge(tmp_path / "m", [a, short])
    FingerprintStore.open(a).withdraw(["song-06"])
    with pytest.raises(LuminaError, match="song-06.*withdrawn from .*/a, but .*/b holds it"):
        merge(tmp_path / "m", [a, b])
    FingerprintStore.open(b).withdraw(["song-06"])
    with pytest.raises(LuminaError, match="there already"):
        merge(a, [a, b])
    assert not (tmp_path / "m").exists() and merge(tmp_path / "m", [a, b]).verify() == []


def test_a_merge_killed_between_any_two_steps(tmp_path: Path) -> None:
    sources = [part(tmp_path / "a", names()[:7]), part(tmp_path / "b", names()[7:])]
    count = at_step(0, lambda: merge(tmp_path / "m", sources) and None)  # type: ignore[func-returns-value]
    expected = content(tmp_path / "m")
    for number in range(1, count + 1, 7):
        target = tmp_path / f"m{number}"
        status = forked(lambda number=number, target=target: at_step(  # type: ignore[misc]
            number, lambda: merge(target, sources) and None))
        assert os.WTERMSIG(status) == signal.SIGKILL
        if not FingerprintStore.exists(target):
            merge(target, sources)
        assert {**content(target), ".lock": b""} == expected


# -- exporting --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_exports_hold_what_the_store_returns(tmp_path: Path, dtype: str) -> None:
    store = FingerprintStore.create(tmp_path / "s", identity(), tracks(), shard_size=SHARD, dtype=dtype)
    with store.writer(checkpoint()) as writer:
        for index, name in enumerate(names()):
            writer.add(name, {c: vector(name, c) for c in "PM"}, None, {c: torch.ones(index) for c in "PM"})
        writer.finish()
    store.withdraw([GONE])
    ids, vectors = store.vectors("epoch-0002", "M")
    table = pq.read_table(export(store, tmp_path / "out", "parquet")[0])
    assert table["id"].to_pylist() == ids and table["title"].to_pylist()[0] == tracks()[0].title
    assert np.array_equal(np.array(table["M"].to_pylist(), np.float32), vectors.float().numpy())
    assert [len(row) for row in table["P_chunk_norms"].to_pylist()] == [i for i in range(23) if names()[i] != GONE]
    arrays = np.load(export(store, tmp_path / "out", "npz")[0])
    assert arrays["ids"].tolist() == ids and np.array_equal(arrays["M"], vectors.numpy())
    assert np.array_equal(arrays["P_norm"], store.norms("epoch-0002", "P").numpy())
    found = {file.name: np.load(file, mmap_mode="r") for file in export(store, tmp_path / "out", "npy", ["epoch-0002"])}
    assert found["epoch-0002.ids.npy"].tolist() == ids and found["epoch-0002.M.npy"].shape == (22, DIM)
    assert np.array_equal(found["epoch-0002.M.npy"], vectors.numpy())
    assert not files_with(tmp_path / "out", bytes_of(GONE))


def test_exports_that_cannot_be(path: Path, tmp_path: Path) -> None:
    store = FingerprintStore.open(path)
    with pytest.raises(LuminaError, match="csv.*parquet, npz, npy"):
        export(store, tmp_path / "out", "csv")
    store.add_tracks([{"id": "song-40"}])
    with pytest.raises(LuminaError, match="no complete checkpoint"):
        export(store, tmp_path / "out")
    with pytest.raises(LuminaError, match="not complete"):
        export(store, tmp_path / "out", checkpoints=["epoch-0002"])
    assert not (tmp_path / "out").exists()


# -- a disk that is full ----------------------------------------------------------------------------------------------

def test_a_disk_that_is_really_full(undisturbed: Path, tmp_path: Path) -> None:
    """In a file system of its own, which the kernel keeps to a few KiB: clear error, nothing corrupt, resumes."""
    disk, said = tmp_path / "disk", tmp_path / "said"
    disk.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)

    def run_out() -> None:
        if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x4000 | 1 << 18, None) or \
                libc.mount(b"none", str(disk).encode(), b"tmpfs", 0, b"size=60k"):
            said.write_text("cannot mount")
            return
        errors = []
        for kib in (60, 80, 100, 4000):
            assert libc.mount(b"none", str(disk).encode(), b"tmpfs", 32, f"size={kib}k".encode()) == 0
            try:
                whole_run(disk / "store")
            except LuminaError as error:
                errors.append(str(error))
                if FingerprintStore.exists(disk / "store"):
                    assert FingerprintStore.open(disk / "store").verify() == []
        assert content(disk / "store") == content(undisturbed)
        said.write_text("\n".join(errors))

    if not hasattr(libc, "unshare"):
        pytest.skip("no mount namespaces here")
    assert forked(run_out) == 0
    if said.read_text() == "cannot mount":
        pytest.skip("not allowed to mount a small file system")
    errors = said.read_text().splitlines()
    assert len(errors) >= 2 and all("No space left on device" in error and str(disk) in error for error in errors)


# -- the commands -----------------------------------------------------------------------------------------------------

def run(capsys: pytest.CaptureFixture[str], *args: tp.Any) -> str:
    """Output of a command; a LuminaError, of which the command line makes exit code 2, passes through."""
    store_app(args=[str(arg) for arg in args], prog_name="lumina store", standalone_mode=False)
    return capsys.readouterr().out


def test_commands(path: Path, tmp_path: Path, old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is whole" in run(capsys, "verify", path)
    assert "23 (1 silent, 1 skipped)" in run(capsys, "info", path)
    assert "1 withdrawn, 0" in run(capsys, "withdraw", path, GONE, "--reason", "opted out")
    assert "still on disk" in run(capsys, "info", path)
    assert "2 shards rewritten" in run(capsys, "compact", path)
    told = json.loads(run(capsys, "info", path, "--json"))
    assert told["notes"] == [] and told["tracks"]["withdrawn"] == 1
    for format in ("parquet", "npz", "npy"):
        assert all(Path(file).is_file() for file in
                   run(capsys, "export", path, "--out", tmp_path / "out", "-f", format).splitlines())
    with pytest.raises(LuminaError, match="lumina store migrate"):
        run(capsys, "info", old)
    assert "format 2" in run(capsys, "migrate", old)
    parts = [part(tmp_path / "a", names()[:7]), part(tmp_path / "b", names()[7:])]
    assert "23 songs of 2 stores" in run(capsys, "merge", tmp_path / "m", *parts)
    assert set(FingerprintStore.open(tmp_path / "m").checkpoint("epoch-0002").noise) == {"P", "M"}
    with flipped(path / shard_file(FingerprintStore.open(path), 2, 2), -9):
        with pytest.raises(LuminaError, match="damaged"):
            run(capsys, "verify", path)
        assert "shard-00002" in capsys.readouterr().out
        (path / "manifest.json").unlink()
        assert "2 checkpoints" in run(capsys, "rebuild", path)
    fill(FingerprintStore.open(path))
    assert "is whole" in run(capsys, "verify", path)
