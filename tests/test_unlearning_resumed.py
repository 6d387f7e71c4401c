"""A pass for Fisher information that was stopped: it goes on, and ends where one that was not ends."""

import errno
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Song
from lumina_plugin.prepared import progress_bar
from lumina_plugin.unlearning import kept
from lumina_plugin.unlearning import partial as module
from lumina_plugin.unlearning.diffusion import DiffusionSubject
from lumina_plugin.unlearning.fisher import diagonal_fisher, kronecker_fisher
from lumina_plugin.unlearning.musicgen import MusicGenSubject
from lumina_plugin.unlearning.partial import Partial
from lumina_plugin.unlearning.recipe import unlearning_recipe

from .test_unlearning import learner_of, lm, unpadded  # noqa: F401 (a fixture)
from .tiny import build_codec
from .tiny_dit import tiny_dit, tiny_examples

SONGS = 10  # three groups
def partial_in(folder):
    return Partial(folder / 'f.safetensors', {'of': 'this'}, every=0)


MAKERS = pytest.mark.parametrize('make', [diagonal_fisher, kronecker_fisher])


class Stopped:
    """A progress bar that is interrupted, as by Ctrl-C, once so many groups are done; all groups that were asked of."""

    def __init__(self, after):
        self.after, self.groups = after, []

    def __call__(self, groups, label=''):
        for group in groups:
            if len(self.groups) == self.after:
                raise KeyboardInterrupt
            self.groups.append([song.id for song in group])
            yield group


class Counted:
    """A learner that remembers which of its passes were asked for."""

    def __init__(self, learner):
        self.learner, self.examples = learner, 0

    def __getattr__(self, name):
        return getattr(self.learner, name)

    def batches(self, examples, reducers):
        self.examples += len(examples)
        return self.learner.batches(examples, reducers)


def same(one, other):
    assert set(one.tensors()) == set(other.tensors())
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.parametrize('make, after', [
    *((diagonal_fisher, after) for after in (1, 2)), *((kronecker_fisher, after) for after in range(1, 6))])
def test_a_stopped_pass_goes_on_to_the_same_bits(lm, tmp_path, make, after):  # noqa: F811
    """Wherever it is stopped, no song is gone over again of which the sums were written."""
    songs, learner = unpadded(lm, SONGS), learner_of(lm, 'output_linears')
    with pytest.raises(KeyboardInterrupt):
        make(learner, songs, Stopped(after), partial=partial_in(tmp_path))
    counted = Counted(learner)
    same(make(counted, songs, partial=partial_in(tmp_path)), make(learner, songs))
    passes = [4, 4, 2] if make is diagonal_fisher else [4, 4, 2, 4, 4, 2]
    assert counted.examples == sum(passes[after:])


def test_a_pass_of_other_groups_goes_on_where_the_first_stopped(lm, tmp_path, monkeypatch):  # noqa: F811
    songs, learner = unpadded(lm, SONGS), learner_of(lm, 'output_linears')
    with pytest.raises(KeyboardInterrupt):
        diagonal_fisher(learner, songs, Stopped(1), partial=partial_in(tmp_path))
    monkeypatch.setattr('lumina_plugin.unlearning.fisher.TOGETHER', 3)  # which 4 songs do not end a group of
    found = diagonal_fisher(learner, songs, partial=partial_in(tmp_path))
    for name, values in diagonal_fisher(learner, songs).values.items():
        torch.testing.assert_close(found.values[name], values, rtol=1e-5, atol=1e-12)


@MAKERS
@pytest.mark.parametrize('fault', ['other', 'damaged'])
def test_sums_of_something_else_or_damaged_ones_are_not_taken(lm, tmp_path, make, fault, caplog):  # noqa: F811
    songs, learner = unpadded(lm, SONGS), learner_of(lm, 'output_linears')
    with pytest.raises(KeyboardInterrupt):
        make(learner, songs, Stopped(1), partial=partial_in(tmp_path))
    file, = tmp_path.glob('*.partial')
    if fault == 'damaged':
        file.write_bytes(file.read_bytes()[:100])
    counted, of = Counted(learner), 'this' if fault == 'damaged' else 'that'
    same(make(counted, songs, partial=Partial(tmp_path / 'f.safetensors', {'of': of})), make(learner, songs))
    assert counted.examples == SONGS * (1 if make is diagonal_fisher else 2)
    assert ('is damaged' in caplog.text) == (fault == 'damaged')


def test_sums_are_written_when_it_is_time_to_and_seldom_where_that_takes_long(tmp_path, monkeypatch):
    clock, took = [0.], [0.]

    def slow(self, *args):
        written.append(clock[0])
        clock[0] += took[0]
    monkeypatch.setattr(module.time, 'monotonic', lambda: clock[0])
    monkeypatch.setattr(Partial, 'write', slow)
    for took[0], expected in ((1., [60., 121., 182.]), (10., [60., 270., 480.])):
        written, clock[0] = [], 0.
        sums = Partial(tmp_path / 'f.safetensors')
        while clock[0] < 500.:
            sums.offer('squares', 1, dict)
            clock[0] += 1.
        assert written[:3] == pytest.approx(expected, abs=2.)
    written, sums = [], Partial(None, every=0)
    sums.offer('squares', 1, dict)
    assert not written


# -- of a run ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def musicgen(lm, tmp_path):  # noqa: F811
    return MusicGenSubject(tmp_path / 'run', lm, build_codec()[0], unpadded(lm, SONGS))


@pytest.fixture
def diffusion(tmp_path):
    dit = tiny_dit()
    return DiffusionSubject(tmp_path / 'run', dit, [Song(f'song-{i}', [example])
                                                    for i, example in enumerate(tiny_examples(dit, SONGS))])


@pytest.mark.parametrize('kind', ['diagonal', 'kronecker'])
@pytest.mark.parametrize('which', ['musicgen', 'diffusion'])
def test_a_run_keeps_sums_until_its_fisher_is_whole(which, kind, request, monkeypatch):
    subject = request.getfixturevalue(which)
    monkeypatch.setattr(module, 'EVERY', 0.)
    recipe = subject.adapted(unlearning_recipe('default', fisher=kind, layers='M', draws=2, fisher_draws=2))
    learner, songs, folder = subject.learner(recipe), subject.songs_of(recipe), subject.folder / 'fisher'
    whole = subject._computed(recipe, learner, songs, progress_bar, Partial())
    with pytest.raises(KeyboardInterrupt):
        subject.fisher(recipe, learner, songs, Stopped(2 if kind == 'diagonal' else 5))
    assert list(folder.glob('*.partial')) and not list(folder.glob('*.safetensors'))
    counted = Counted(learner)
    same(subject.fisher(recipe, counted, songs, progress_bar), whole)
    assert [path.suffix for path in folder.iterdir()] == ['.safetensors']
    assert counted.examples == {'musicgen': 2, 'diffusion': 0}[which]  # the last group; draws are learners of their own


# -- several processes ------------------------------------------------------------------------------------------------

FORK = multiprocessing.get_context('fork')  # so that all have the same model


def ask(subject, waiting, found):
    """Ask for Fisher information; whoever computes it does not end before somebody waits for it."""
    kept.logger.info = lambda *_: waiting.set()
    computed = []

    def progress(groups, label):
        computed.append(label)
        assert waiting.wait(60)
        return groups
    recipe = unlearning_recipe('default', fisher='diagonal', layers='M')
    fisher = subject.fisher(recipe, subject.learner(recipe), subject.songs_of(recipe), progress)
    found.put((len(computed), {name: tensor.numpy() for name, tensor in fisher.tensors().items()}))


def test_one_process_computes_and_the_others_wait(musicgen, monkeypatch):
    monkeypatch.setattr(kept, 'POLL', 0.01)
    waiting, found = FORK.Event(), FORK.Queue()
    processes = [FORK.Process(target=ask, args=(musicgen, waiting, found)) for _ in range(3)]
    for process in processes:
        process.start()
    told = [found.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(count for count, _ in told) == [0, 0, 1]
    for _, tensors in told:
        assert all(np.array_equal(tensor, told[0][1][name]) for name, tensor in tensors.items())
    assert [path.suffix for path in (musicgen.folder / 'fisher').iterdir()] == ['.safetensors']  # no lock is left


def die_alone(path):
    with kept.alone(path):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_holder_blocks_nobody(musicgen):
    recipe = unlearning_recipe('default', fisher='diagonal', layers='M')
    path = kept.path_of(musicgen.folder, musicgen.facts(recipe))
    process = FORK.Process(target=die_alone, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not path.exists()
    musicgen.fisher(recipe, musicgen.learner(recipe), musicgen.songs_of(recipe), progress_bar)
    assert path.is_file()


@pytest.mark.parametrize('answer', [NotImplementedError(), OSError(errno.ENOLCK, 'No locks available')])
def test_a_file_system_without_locks_or_room_is_told(tmp_path, monkeypatch, caplog, answer):
    def refuse(self, **_):
        raise answer
    (tmp_path / 'file').touch()
    with pytest.raises(LuminaError, match='Cannot write into .*file/fisher'), kept.alone(tmp_path / 'file/fisher/x'):
        pass
    monkeypatch.setattr(kept.FileLock, 'acquire', refuse)
    with kept.alone(tmp_path / 'fisher' / 'x.safetensors'):
        assert 'knows no locks' in caplog.text


def test_squares_of_a_basis_that_is_gone_are_made_again(lm, tmp_path):  # noqa: F811
    songs, learner = unpadded(lm, SONGS), learner_of(lm, 'output_linears')
    whole = kronecker_fisher(learner, songs)
    partial_in(tmp_path).write('squares', SONGS - 2, {name: value + 1. for name, value in whole.values.items()})
    same(kronecker_fisher(learner, songs, partial=partial_in(tmp_path)), whole)
