"""Kill a writer of the fingerprint store in many places: `python benchmarks/store_kill.py [--kills N] [--seed N]`.

A worker lives the whole life of a store: it makes one, fills two checkpoints, adds songs, fingerprints them, replaces
one, withdraws some, fingerprints what is left and compacts. It is killed, in turn
- by SIGKILL at a random moment (by the clock),
- by SIGKILL before a random step on the file system (rename, fsync, unlink, open, mkdir),
- in the middle of a write (by the kernel, at a file size limit, with part of the file on disk),
and started again, up to four times; the last time it may finish. Each time the store must open and be whole as it lies
there, hold nothing but true vectors, and at the end be the same as an undisturbed one, byte for byte. Songs that are
fingerprinted again because of a kill are counted: at most one shard (8 songs) each.

The workers are forked from this process, which imports torch and the store alone.
"""

import argparse
import functools
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import typing as tp
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from lumina_plugin.store import CheckpointInfo, FingerprintStore, Identity, changes  # noqa: E402

DIM, SHARD, SONGS = 32, 8, [f"song-{index:03d}" for index in range(60)]
STEPS = ("replace", "fsync", "unlink", "mkdir", "open")
WAYS = ("by the clock", "before a step", "in a write")


def vector(song: str, channel: str, epoch: int, version: int) -> torch.Tensor:
    """A song's fingerprint [DIM]; the replaced song has another one (`version` 1)."""
    generator = torch.Generator().manual_seed(int(song[-3:]) * 1000 + ord(channel) * 8 + epoch * 2 + version)
    return torch.nn.functional.normalize(torch.randn(DIM, generator=generator), dim=0)


def fill(store: FingerprintStore, epoch: int, work: tp.Optional[int]) -> None:
    """A pass over one checkpoint; every song that is fingerprinted leaves a byte in the file descriptor `work`."""
    info = CheckpointInfo(name=f"epoch-{epoch:04d}", epoch=epoch, model_hash=f"model-{epoch}")
    with store.writer(info) as writer:
        store.save_weights(info, {"weight": torch.full((64, 64), float(epoch))})
        for channel in "PM":
            writer.put_projection(channel, {"basis": torch.full((8, DIM), float(epoch))}, {"kind": "fitted"})
        done = writer.done_ids
        for group in store.by_shard(track.id for track in store.tracks if track.id not in done):
            for song in group:
                version = int(store.track(song).title == "better")
                if work is not None:
                    os.write(work, b".")
                writer.add(song, {channel: vector(song, channel, epoch, version) for channel in "PM"}, None,
                           {channel: torch.ones(3) for channel in "PM"})
        writer.finish({"P": 0.1, "M": 0.1})


def live(path: Path, work: tp.Optional[int] = None) -> None:
    """The whole life of a store, resumed wherever it was interrupted."""
    changes.today = lambda: "2031-05-06"
    if not FingerprintStore.exists(path):
        identity = Identity(model_id="m", model_config_hash="c", codec_hash="k", recipe_hash="r", catalogue_hash="1",
                            dim=DIM)
        FingerprintStore.create(path, identity, [{"id": song} for song in SONGS[:50]], shard_size=SHARD)
    store = FingerprintStore.open(path)
    if store.identity.catalogue_hash == "1":
        fill(store, 1, work)
        fill(store, 2, work)
        store.add_tracks([{"id": song} for song in SONGS[50:]], catalogue_hash="2")
    if store.identity.catalogue_hash == "2":
        fill(store, 1, work)
        store.replace([{"id": SONGS[3], "title": "better"}], catalogue_hash="3")
    store.withdraw([SONGS[3 * index + 1] for index in range(5)] + SONGS[55:56], "opted out")
    fill(store, 1, work)
    fill(store, 2, work)
    store.compact()


def run_and_die(path: Path, way: str, at: float, work: int) -> None:
    """`live`, killed in one of the WAYS; `at` is a step's number or a file's size in bytes."""
    if way == "before a step":
        count = 0

        def counted(step: tp.Callable, *args: tp.Any, **options: tp.Any) -> tp.Any:
            nonlocal count
            count += 1
            if count == int(at):
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **options)

        for name in STEPS:
            setattr(os, name, functools.partial(counted, getattr(os, name)))
    if way == "in a write":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(at), int(at)))
    live(path, work)


def forked(work: tp.Callable[[], None], seconds: tp.Optional[float] = None) -> int:
    """Run `work` in a forked child, killed after `seconds` if given; returns the wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"worker: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def content(path: Path) -> tp.Dict[str, bytes]:
    """Every file of a folder but the lock."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*")
            if file.is_file() and file.name != ".lock"}


def check(path: Path) -> None:
    """A store as a kill left it: whole, and nothing in it but true vectors of live songs."""
    store = FingerprintStore.open(path)
    assert store.verify() == [], store.verify()
    for record in store.checkpoints:
        for channel in "PM":
            for song, found in zip(*store.vectors(record, channel, partial=True), strict=True):
                version = int(store.track(song).title == "better")
                assert torch.equal(found, vector(song, channel, record.epoch, version)), (song, record.name)


def measure(folder: Path) -> tp.Tuple[tp.Dict[str, bytes], float, int, tp.List[int], int]:
    """An undisturbed life: its bytes, seconds, steps, sizes of files written, and songs fingerprinted."""
    counted, (hear, say) = folder / "steps", os.pipe()
    begun = time.perf_counter()
    forked(lambda: live(folder / "store", say))
    seconds = time.perf_counter() - begun
    songs = len(os.read(hear, 1 << 16))

    def count() -> None:
        total = 0

        def one_more(step: tp.Callable, *args: tp.Any, **options: tp.Any) -> tp.Any:
            nonlocal total
            total += 1
            return step(*args, **options)

        for name in STEPS:
            setattr(os, name, functools.partial(one_more, getattr(os, name)))
        live(folder / "again")
        counted.write_text(str(total))

    forked(count)
    expected = content(folder / "store")
    assert content(folder / "again") == expected
    return expected, seconds, int(counted.read_text()), sorted({len(data) for data in expected.values()}), songs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    places, killed, runs, redone = random.Random(options.seed), dict.fromkeys(WAYS, 0), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected, seconds, steps, sizes, songs = measure(folder)
        while sum(killed.values()) < options.kills:
            path, (hear, say), kills = folder / "victim", os.pipe(), 0
            for _ in range(places.randint(1, 4)):
                way = WAYS[runs % 3]
                runs += 1
                at = places.randrange(1, steps) if way == "before a step" else places.randrange(sizes[0], sizes[-1])
                status = forked(functools.partial(run_and_die, path, way, at, say),
                                places.uniform(0, seconds) if way == "by the clock" else None)
                if os.WIFSIGNALED(status):
                    kills += 1
                    killed[way] += 1
                elif status != 0:
                    return 1
                if FingerprintStore.exists(path):
                    check(path)
            assert forked(lambda path=path, say=say: live(path, say)) == 0  # type: ignore[misc]
            check(path)
            found = content(path)
            differing = [file for file in {**found, **expected} if found.get(file) != expected.get(file)]
            assert not differing, f"not identical to an undisturbed run: {', '.join(differing)}"
            again = len(os.read(hear, 1 << 16)) - songs
            assert again <= kills * SHARD, f"{again} songs redone after {kills} kills"
            redone += again
            os.close(hear)
            os.close(say)
            shutil.rmtree(path)
    told = ", ".join(f"{count} {way}" for way, count in killed.items())
    print(f"{sum(killed.values())} kills ({told}) in lives of {steps} steps, {songs} fingerprints and {seconds:.2f} s: "
          "every store was whole after its kill and identical to an undisturbed one in the end; "
          f"{redone} songs redone in all, {redone / max(sum(killed.values()), 1):.1f} a kill")
    return 0


if __name__ == "__main__":
    sys.exit(main())
