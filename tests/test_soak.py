"""The soak: cycles on a real tiny run, what it records, how it goes on, what it notices."""

import json

import pytest

from lumina_plugin.errors import LuminaError
from lumina_plugin.validation import soak as module
from lumina_plugin.validation.soak import Soak, soak


def test_it_goes_on_where_it_ended_and_says_what_the_gates_did(studio, tmp_path):
    first = soak(studio.musicgen, tmp_path, 5, .4, together=2, every=2)
    assert (first.cycles, first.failures) == (5, [])
    assert [cycle for cycle, _ in first.memory[0]] == [0, 2, 4, 5]
    again = soak(studio.musicgen, tmp_path, 8, .4, together=2, every=2)
    assert again.cycles == 8 and len(again.memory) == 2 and again.seconds > first.seconds
    assert set(again.gates) == {f'{gate}, {channel}' for gate in ('paper', 'calibrated') for channel in 'PM'}
    module.save(tmp_path, again)
    assert '8 cycles of 0.4 s' in (tmp_path / 'soak.md').read_text()
    assert (tmp_path / 'soak.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(LuminaError, match='seconds 0.4, not 0.6'):
        soak(studio.musicgen, tmp_path, 9, .6, together=2)
    (tmp_path / 'soak.json').write_text('{}')
    with pytest.raises(LuminaError, match='no soak\'s record'):
        soak(studio.musicgen, tmp_path, 9, .4, together=2)


def test_a_cycle_that_fails_is_told_and_does_not_end_it(studio, tmp_path, monkeypatch):
    inner, calls = studio.musicgen.generate_unconditional, []

    def generate(count):
        calls.append(count)
        if len(calls) == 2:
            raise RuntimeError('no more')
        return inner(count)
    monkeypatch.setattr(studio.musicgen, 'generate_unconditional', generate)
    found = soak(studio.musicgen, tmp_path, 6, .4, together=2)
    assert found.cycles == 6 and found.failures == ['cycles 2 to 3: RuntimeError: no more']
    assert not module.passed(found) and 'RuntimeError' in module.markdown(found)


def test_reports_that_say_nothing_are_faults(studio):
    studio.musicgen.set_generation_params(duration=.4, top_k=16)
    studio.musicgen.generate_unconditional(1)
    (report,) = studio.musicgen.last_attributions
    assert module.faults(report) == []
    channel = report.channels['P']
    flat = channel.model_copy(update={'rows': [row.model_copy(update={'score': .5}) for row in channel.rows]})
    short = channel.model_copy(update={'rows': [*channel.rows[:-1], channel.rows[0]]})
    broken = channel.model_copy(update={'rows': [channel.rows[0].model_copy(update={'z': float('nan')}),
                                                 *channel.rows[1:]]})
    for bad, said in ((flat, 'alike'), (short, 'the store'), (broken, 'not finite')):
        assert any(said in fault for fault in module.faults(report.model_copy(update={'channels': {'P': bad}})))


def test_the_gate_that_decides_pays_what_its_reports_do(studio):
    studio.musicgen.set_generation_params(duration=.4, top_k=16)
    studio.musicgen.generate_unconditional(4)
    for report in studio.musicgen.last_attributions:
        for channel in report.channels.values():
            paid = module.verdicts(channel)
            assert channel.calibrated
            assert sorted(paid['calibrated']) == pytest.approx(sorted(r.share for r in channel.rows if r.share > 0))
            assert sum(paid['paper']) == pytest.approx(1. if paid['paper'] else 0.)


@pytest.mark.parametrize('sizes, growth', [([100] * 30, 0.), (list(range(100, 130)), None)])
def test_growth_is_that_after_the_warm_up(sizes, growth):
    start = 3000  # of a process that went on from an earlier one
    readings = [[start + 100 * index, size] for index, size in enumerate(sizes)]
    found = Soak({}, memory=[readings, [[0, 10], [100, 90]]]).growth  # the second was too short to tell
    settled = sizes[module.WARM_UP // 100:]
    expected = growth if growth is not None else sorted(settled[-5:])[2] / sorted(settled[:5])[2] - 1
    assert found == pytest.approx(expected)
    assert Soak({}, memory=[[[0, 10], [100, 90]]]).growth is None


def test_the_command_ends_with_one_where_something_failed(project, tmp_path, monkeypatch, capsys):
    from lumina_plugin.cli import main
    argv = ['validate', 'soak', '--model', str(project.folder()), '--out', str(tmp_path), '--cycles', '2', '--seconds',
            '0.4']
    main(argv)
    assert json.loads((tmp_path / 'soak' / 'soak.json').read_text())['cycles'] == 2
    assert 'soak.png' in capsys.readouterr().out
    monkeypatch.setattr(module, 'faults', lambda report: ['wrong'])
    with pytest.raises(SystemExit) as ended:
        main([*argv[:-3], '4', '--seconds', '0.4'])
    assert ended.value.code == 1


def test_without_a_run_it_says_how_to_make_one(tmp_path):
    from lumina_plugin.cli.validate_soak import soak as command
    with pytest.raises(LuminaError, match='validate ground-truth'):
        command(out=tmp_path, model=None, store=None)


def test_numbers_that_cannot_be_are_refused(studio, tmp_path):
    with pytest.raises(LuminaError, match='ask for at least one'):
        soak(studio.musicgen, tmp_path, 0)
