"""Parts of the solver that need no training."""

import io
import logging
import time
from types import SimpleNamespace

import flashy
import pytest
import torch

from lumina_plugin import compat
from lumina_plugin.errors import LuminaError

compat.install()

from lumina_plugin import solver as solvers  # noqa: E402  (after the shims)
from lumina_plugin.origins import origins_of  # noqa: E402


@pytest.fixture
def bare():
    """A solver with nothing built."""
    solver = object.__new__(solvers.LuminaMusicGenSolver)
    solver.cfg = SimpleNamespace(continue_from='//sig/abcd1234')
    solver.xp = SimpleNamespace(sig='abcd1234', link=SimpleNamespace(history=[]))
    return solver


def test_weights_of_another_shape_are_told_with_the_name_and_both_shapes(bare):
    bare.model = torch.nn.Linear(4, 2)
    weights = bare.model.state_dict()
    bare._expect_fit(weights, whole=True)
    bare._expect_fit({'weight': weights['weight']})
    with pytest.raises(LuminaError, match=r'//sig/abcd1234 .*bias: absent there, \(2,\) here.*repeat the overrides'):
        bare._expect_fit({'weight': weights['weight']}, whole=True)
    with pytest.raises(LuminaError, match=r'weight: \(4, 2\) there, \(2, 4\) here'):
        bare._expect_fit({'weight': weights['weight'].t()})


def test_a_hub_that_does_not_answer_is_one_sentence(bare):
    with pytest.raises(LuminaError, match='continue_from is //pretrained/facebook/none, which cannot be fetched'):
        bare.load_from_pretrained('facebook/none')


def test_a_chain_of_runs_is_followed_to_the_hub_and_never_in_circles(tmp_path):
    from omegaconf import OmegaConf

    def run(sig, source, songs=None):
        (tmp_path / sig / '.hydra').mkdir(parents=True)
        OmegaConf.save({'continue_from': source, 'datasource': {'train': songs}}, tmp_path / sig / '.hydra/config.yaml')
        OmegaConf.save({'hydra': {'runtime': {'cwd': str(tmp_path)}}}, tmp_path / sig / '.hydra/hydra.yaml')

    run('a', '//sig/b')
    run('b', './c/checkpoint.th')  # seen from where that run was started
    run('c', '//pretrained/facebook/musicgen-medium')
    (tmp_path / 'c' / 'checkpoint.th').touch()
    names = [origin.name for origin in origins_of('//sig/a', tmp_path)]
    assert names == ['dora:a', 'dora:b', 'dora:c', 'facebook/musicgen-medium']
    assert origins_of(None, tmp_path) == []
    run('d', '//sig/e')
    run('e', '//sig/d')
    assert {origin.name for origin in origins_of('//sig/d', tmp_path)} == {'dora:d', 'dora:e'}


class _Terminal(io.StringIO):
    def __init__(self, tty):
        super().__init__()
        self.isatty = lambda: tty


@pytest.mark.parametrize('tty', [True, False])
def test_a_terminal_shows_a_bar_and_the_log_keeps_its_lines(bare, tty, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    now = time.time()
    monkeypatch.setattr('tqdm.std.time', lambda: now)  # its clock
    screen = _Terminal(tty)
    monkeypatch.setattr('sys.stderr', screen)
    bare._current_stage, bare._current_formatter = 'train', flashy.Formatter()
    bare.result_logger = SimpleNamespace(get_log_progress_bar=lambda name, items, total, updates, formatter, **_:
                                         flashy.logging.LogProgressBar(logging.getLogger('x'), items, updates=updates,
                                                                       total=total, name=name, formatter=formatter))
    progress = bare.log_progress('train', range(8), total=8, updates=4)
    for index, _ in enumerate(progress):
        now += 1
        progress.update(ce=index)
        if index == 0:
            assert 'train 1' not in screen.getvalue()  # not before two seconds
    assert ('train 1' in screen.getvalue()) == tty
    assert sum('train |' in line for line in caplog.messages) == 3


@pytest.mark.parametrize('every, epochs', [
    (4, [4, 8, 10]), ([1, 2, 4], [1, 2, 4, 10]), (None, []), ('', []), (100, [10])])
def test_checkpoints_to_fingerprint_come_every_so_many_epochs_or_from_a_list(bare, every, epochs):
    from omegaconf import OmegaConf
    bare.cfg = OmegaConf.create({'fingerprint': {'every': every}, 'optim': {'epochs': 10}})
    found = []
    for epoch in range(1, 11):
        bare.xp.link.history = [{}] * (epoch - 1)  # flashy counts the epochs that are done
        if bare.should_run_stage('fingerprint'):
            found.append(epoch)
    assert found == epochs


def test_a_fingerprint_that_fails_does_not_cost_the_epoch(bare, monkeypatch):
    calls = []
    monkeypatch.setattr(solvers.MusicGenSolver, 'run_epoch', lambda self: calls.append('trained'))
    monkeypatch.setattr(bare, 'should_run_stage', lambda name: True)
    monkeypatch.setattr(bare, 'commit', lambda: calls.append('saved'))
    bare.logger = logging.getLogger('test')
    from omegaconf import OmegaConf
    bare.cfg = OmegaConf.create({'fingerprint': {'every': 1}})

    def fail(name, method):
        raise LuminaError("the disk is full")

    monkeypatch.setattr(bare, 'run_stage', fail)
    with pytest.raises(LuminaError, match='the disk is full'):
        bare.run_epoch()
    assert calls == ['trained', 'saved']
    monkeypatch.setattr(bare, 'run_stage', lambda name, method: calls.append(name))
    bare.run_epoch()
    assert calls[2:] == ['trained', 'fingerprint']  # the solver's own loop commits
