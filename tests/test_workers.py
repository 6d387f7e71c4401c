"""Two real processes that share work: what they tell each other, and that the store ends as one process makes it."""

import functools
import os
import signal
import socket
import time

import pytest
import torch

from lumina_plugin import attribution
from lumina_plugin.catalogue import build_catalogue
from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Fingerprinter
from lumina_plugin.hashing import state_hash
from lumina_plugin.passes import make_identity, run_pass
from lumina_plugin.prepared import prepare
from lumina_plugin.recipe import get_recipe
from lumina_plugin.store import CheckpointInfo, FingerprintStore, TrackRecord
from lumina_plugin.tokens import Tokenizer
from lumina_plugin.workers import Workers

from .tiny import build_codec, build_lm, write_songs

SONGS, SHARD = 10, 4


def _process(rank, folder, work):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    try:
        work(folder, rank)
    except LuminaError as error:
        (folder / f'stopped-{rank}').write_text(str(error))
        raise SystemExit(3) from None


def two(folder, work):
    """Run `work(folder, rank)` in two processes; their exit codes."""
    context = torch.multiprocessing.get_context('spawn')
    processes = [context.Process(target=_process, args=(rank, folder, work)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)  # an end, should they wait for each other; no more than a minute on an idle machine
    (folder / 'meeting').unlink(missing_ok=True)
    return [process.exitcode for process in processes]


def _exchange(folder, rank):
    with Workers.here() as workers:
        assert (workers.rank, workers.count, workers.first) == (rank, 2, rank == 0)
        assert workers.gather(f'from {rank}') == ['from 0', 'from 1']
        assert workers.collect(rank) == ([0, 1] if rank == 0 else [])
        assert workers.broadcast('zero' if rank == 0 else 'one') == 'zero'
        assert workers.sum(torch.full((2,), 1.5 + rank)).tolist() == [4., 4.]
        assert workers.share_of('abcde') == (list('ace') if rank == 0 else list('bd'))


def test_processes_exchange_values(tmp_path):
    assert two(tmp_path, _exchange) == [0, 0]


def _by_environment(folder, rank):
    torch.distributed.destroy_process_group()
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=(folder / 'port').read_text())
    with Workers.here() as workers:
        assert workers.gather(rank) == [0, 1]
    assert not torch.distributed.is_initialized()


def test_processes_of_torchrun_meet_by_its_environment(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        (tmp_path / 'port').write_text(str(free.getsockname()[1]))
    assert two(tmp_path, _by_environment) == [0, 0]


def test_one_process_alone_needs_nobody():
    with Workers.here() as workers:
        assert workers.gather(1) == [1] == workers.collect(1) and workers.broadcast(2) == 2
        assert workers.sum(torch.ones(2)).dtype == torch.float64 and workers.share_of('abc') == list('abc')
        workers.barrier()


def _stop_one(folder, rank):
    with Workers.here() as workers:
        if rank == 1:
            raise LuminaError("no such song")
        workers.gather(1)


def test_what_stops_one_process_stops_the_others_with_its_reason(tmp_path):
    assert two(tmp_path, _stop_one) == [3, 3]
    assert (tmp_path / 'stopped-0').read_text() == 'Process 1 of 2 was stopped: no such song'


@pytest.fixture(scope='module')
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('songs')
    audio = write_songs(folder / 'audio', SONGS, 1.4)
    catalogue = build_catalogue(audio, folder / 'catalogue', progress=False).catalogue
    catalogue.get('song-3').path.write_bytes(b'broken since')
    return folder / 'catalogue'


def _fingerprint(catalogue, name, preset, folder, rank, die_after=None):
    """A pass over the songs by whoever is there, into folder/name."""
    from lumina_plugin.catalogue import Catalogue
    small = {'dim': 32, **({'residual_dim': 8, 'block_width': 6} if preset != 'paper' else {})}
    if preset == 'separated':
        preset, small = 'default', {**small, 'kind': {'P': 'separated', 'M': 'fitted'}}
    recipe = get_recipe(preset, chunk_seconds=1., projection=small)
    lm, codec = build_lm(num_layers=1).eval(), build_codec()[0]
    with Workers.here() as workers:
        tokenizer = Tokenizer(codec, 'codec', 1., cache=folder / f'{name}-codes')
        prepared = prepare(Catalogue.from_manifest(catalogue), tokenizer, lm, workers=workers)
        path = folder / name
        if workers.first and not FingerprintStore.exists(path):
            identity = make_identity('tiny', lm, 'codec', recipe, prepared.catalogue, None)
            FingerprintStore.create(path, identity, [TrackRecord(id=t.id, title=t.title or '', sha256=t.sha256)
                                                     for t in prepared.catalogue], shard_size=SHARD)
        workers.barrier()
        weights = lm.state_dict()
        fingerprinter = Fingerprinter(lm, recipe, weights, batch_size=3)
        if die_after is not None and rank == 1:
            _die_after(die_after)
        run_pass(fingerprinter, prepared, FingerprintStore.open(path),
                 CheckpointInfo(name='last', model_hash=state_hash(weights)), weights, workers)


def _die_after(shards):
    """Kill this process, as nothing can prevent, once it has written so many shards."""
    from lumina_plugin.store import part
    write, written = part.StorePart.add, []

    def add(self, *args, **kwargs):
        write(self, *args, **kwargs)
        written.append(1)
        if len(written) >= shards * SHARD - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    part.StorePart.add = add


def content(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob('*')
            if file.is_file() and file.name != '.lock'}


@pytest.mark.parametrize('preset', ['default', 'paper', 'separated'])
def test_two_processes_make_the_store_of_one(tmp_path, songs, preset):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _fingerprint(songs, 'one', preset, tmp_path, 0)
    finally:
        torch.set_num_threads(threads)
    assert two(tmp_path, functools.partial(_fingerprint, songs, 'two', preset)) == [0, 0]
    one, both = content(tmp_path / 'one'), content(tmp_path / 'two')
    assert one.keys() == both.keys() and [name for name in one if one[name] != both[name]] == []
    store = FingerprintStore.open(tmp_path / 'two')
    assert len(store.vectors('last', 'P')[0]) == SONGS - 1 and store.verify() == []
    assert {track.id: track.status for track in store.tracks if track.status != 'ok'} == {
        'silence': 'silent', 'song-3': 'skipped'}
    assert all(len(norms) == 2 for norms in store.chunk_norms('last', 'M'))
    lm, codec = build_lm(num_layers=1).eval(), build_codec()[0]
    codes = torch.randint(0, 16, (4, 60), generator=torch.Generator().manual_seed(0))
    reports = [attribution.Attributor(lm, codec, tmp_path / name, codec_hash='codec').attribute_codes(codes)
               for name in ('one', 'two')]
    assert reports[0].channels == reports[1].channels


def test_a_process_that_dies_leaves_a_store_that_goes_on(tmp_path, songs):
    work = functools.partial(_fingerprint, songs, 'shared', 'default')
    begun = time.monotonic()
    codes = two(tmp_path, functools.partial(work, die_after=1))
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None) and time.monotonic() - begun < 100
    assert FingerprintStore.open(tmp_path / 'shared').verify() == []
    assert two(tmp_path, work) == [0, 0]
    assert two(tmp_path, functools.partial(_fingerprint, songs, 'undisturbed', 'default')) == [0, 0]
    shared, undisturbed = content(tmp_path / 'shared'), content(tmp_path / 'undisturbed')
    assert shared == undisturbed
