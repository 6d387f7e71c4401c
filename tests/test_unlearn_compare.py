"""Methods against each other: the statistics on worked examples, and the command on a real run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lumina_plugin.baselines.rps import Representers
from lumina_plugin.catalogue_pass import run_songs
from lumina_plugin.errors import LuminaError
from lumina_plugin.unlearning import compare, compare_musicgen, concentration
from lumina_plugin.unlearning.compare_result import compared, markdown, save_comparison
from lumina_plugin.unlearning.method import unlearning_of
from lumina_plugin.unlearning.recipe import unlearning_recipe
from lumina_plugin.validation.black_boxes import CodeHistogram
from lumina_plugin.validation.ground_truth import make_ground_truth
from lumina_plugin.validation.judge import judge
from lumina_plugin.validation.methods import Method
from lumina_plugin.validation.plan import plan_models

from .listening import write_clap, write_clews

SCORES = arrays.arrays(np.float64, (3, 6), elements=st.integers(-4, 4).map(float))  # with ties


# -- worked examples --------------------------------------------------------------------------------------------------

def test_agreements_of_a_worked_example():
    first = np.array([[4., 3., 2., 1.], [1., 2., 3., 4.]])
    second = np.array([[8., 4., 2., 1.], [4., 3., 2., 1.]])  # the same order, and the reverse
    found = compare.agreements({'a': first, 'b': second}, top=2)
    wanted = np.mean([np.corrcoef(first[0], second[0])[0, 1], -1.])
    assert found.pearson[0][1].mean == pytest.approx(wanted) and found.spearman[0][1].mean == pytest.approx(0.)
    assert found.overlap[1][0].mean == pytest.approx(.5)  # two of two, none of two
    assert found.overlap[1][0].low == 0. and found.overlap[1][0].high == 1.


def test_equal_scores_share_the_last_places():
    np.testing.assert_allclose(compare.first_songs([[5., 3., 3., 3., 1.]], 2), [[1., 1 / 3, 1 / 3, 1 / 3, 0.]])
    np.testing.assert_allclose(compare.first_songs([[2., 2., 2., 2., 2.]], 2), [[.4] * 5])
    assert compare.overlap(np.array([[5., 3., 3., 1.]]), np.array([[5., 3., 2., 1.]]), 2).item() == pytest.approx(.75)


@settings(deadline=None, max_examples=50)
@given(first=SCORES, second=SCORES, order=st.permutations(range(6)))
def test_matrices_are_symmetric_and_songs_may_come_in_any_order(first, second, order):
    scores = {'a': first, 'b': second, 'c': np.zeros((3, 6))}
    found = compare.agreements(scores, top=2)
    moved = compare.agreements({name: one[:, list(order)] for name, one in scores.items()}, top=2)
    for name in ('pearson', 'spearman', 'overlap'):
        matrix, other = (np.array(getattr(one, name)) for one in (found, moved))  # [M, M, 3]
        np.testing.assert_allclose(matrix, matrix.transpose(1, 0, 2))
        np.testing.assert_allclose(other, matrix, atol=1e-9)
        assert (matrix[np.arange(3), np.arange(3)] == 1.).all()
        assert (np.abs(matrix) <= 1 + 1e-9).all() and (matrix[..., 1] <= matrix[..., 2]).all()


@settings(deadline=None, max_examples=50)
@given(scores=SCORES, order=st.permutations(range(6)), scale=st.sampled_from([.5, 2., 1024.]))
def test_concentration_depends_on_neither_order_nor_scale(scores, order, scale):
    for centred in (True, False):
        plain, moved = (concentration.concentration(one, centred) for one in (scores, scale * scores[:, list(order)]))
        np.testing.assert_allclose(moved.curve, plain.curve)
        np.testing.assert_allclose(moved.gini, plain.gini)
        if plain.queries:
            assert plain.curve[-1] == pytest.approx(1.) and (np.diff(plain.curve) >= -1e-9).all()
            assert (plain.low <= plain.curve + 1e-9).all() and (plain.curve <= plain.high + 1e-9).all()
            assert 0. - 1e-9 <= plain.gini.mean <= 1 - 1 / 6 + 1e-9


def test_concentration_of_worked_examples():
    found = concentration.concentration([[6., 3., 1., -5.], [0., 0., 0., 2.]], centred=False)
    np.testing.assert_allclose(found.curve, [.8, .95, 1., 1.])  # (.6, .9, 1, 1) and (1, 1, 1, 1)
    assert found.tops[1].mean == pytest.approx(.8) and found.tops[10].mean == 1.
    # ranked (0, 1, 3, 6): (0 * -3 + 1 * -1 + 3 * 1 + 6 * 3) / (4 * 10) = .5, and 2 * 3 / (4 * 2) = .75
    assert found.gini.mean == pytest.approx((.5 + .75) / 2)
    assert concentration.concentration([[1., 1.]], centred=False).gini.mean == 0.
    nothing = concentration.concentration([[-1., -2.]], centred=False)
    assert nothing.queries == 0 and np.isnan(nothing.curve).all()
    assert concentration.concentration([[-1., -2.]], centred=True).tops[1].mean == 1.


@pytest.mark.parametrize('scores, top, words', [
    ({'a': np.zeros((2, 4)), 'b': np.zeros((2, 3))}, 2, 'same queries and songs'),
    ({'a': np.zeros((2, 4)), 'bad': np.full((2, 4), np.nan)}, 2, 'bad has scores that are NaN'),
    ({'a': np.zeros((2, 4))}, 4, 'choose --top')])
def test_what_cannot_be_compared_is_refused(scores, top, words):
    with pytest.raises(LuminaError, match=words):
        compare.agreements(scores, top)


# -- on a real run ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def suite(project, tmp_path_factory):
    """A run and the ground truth of four halves of its songs, in a folder."""
    out = tmp_path_factory.mktemp('compare')
    run = out / project.folder().name  # a copy: other modules leave stores of other recipes beside the run's own
    shutil.copytree(project.folder(), run)
    for manifest in (run / 'lumina').glob('*/manifest.json'):
        if manifest.parent.name != 'default':
            shutil.rmtree(manifest.parent)
    songs = run_songs(run)
    catalogue = type(songs)([track for track in songs if track.id != 'silence'], songs.source)
    plan = plan_models(catalogue, halves=4, seeds=1, whole=2, groups=0)
    truth = make_ground_truth(run, project.manifest, out / 'truth', plan=plan, each=3, seconds=1.)
    place = [column for column, query in enumerate(truth.queries) if query.source != 'silence']
    made = dataclasses.replace(truth, songs=[track.id for track in catalogue], sums=truth.sums[:, place],
                               queries=[truth.queries[column] for column in place], counts=truth.counts[place],
                               facts={**truth.facts, 'run': run.name})
    return run, made, made.save(out / 'ground_truth.safetensors')


@pytest.fixture
def opened(suite, tmp_path):
    run, truth, path = suite
    setting = compare.open_setting(compare.Asked(tmp_path, str(run), path))
    assert setting.truth is not None
    return setting, setting.queries('free', 0)


class Counted(Method):
    """Scores of its own that counts what is asked of it, and stops after some queries."""

    def __init__(self, songs, facts='x', until=99):
        super().__init__('counted', songs)
        self.facts, self.asked, self.until = facts, 0, until

    def _scores(self, queries, masked):
        if self.asked >= self.until:
            raise KeyboardInterrupt
        self.asked += len(queries)
        return {'x': np.array([[len(query.id) * song for song in range(len(self.songs))] for query in queries], float)}

    def _per_song(self):
        return 0., None


def test_what_is_finished_is_not_scored_again(opened):
    setting, queries = opened
    queries = [dataclasses.replace(queries[0], id=f'q{"x" * i}') for i in range(20)]
    stopped = Counted(setting.ids, until=16)
    with pytest.raises(KeyboardInterrupt):
        compare.scores_of(setting, [stopped], queries, False)
    going_on = Counted(setting.ids)
    found = compare.scores_of(setting, [going_on], queries, False)['counted']
    assert going_on.asked == 4 and found.shape == (20, len(setting.ids))
    np.testing.assert_array_equal(found, Counted(setting.ids)._scores(queries, False)['x'])
    again = Counted(setting.ids)
    compare.scores_of(setting, [again], queries, False)
    assert again.asked == 0
    for other, masked in ((Counted(setting.ids, facts='y'), False), (Counted(setting.ids), True)):
        compare.scores_of(setting, [other], queries, masked)
        assert other.asked == 20


def test_scores_of_another_model_are_not_taken(opened):
    setting, queries = opened
    compare.scores_of(setting, [Counted(setting.ids)], queries, False)
    lm = setting.musicgen.lm
    with torch.no_grad():
        lm.linears[0].weight.add_(1.)
    changed = Counted(setting.ids)
    compare.scores_of(setting, [changed], queries, False)
    assert changed.asked == len(queries)


def test_every_method_says_what_it_depends_on(opened):
    setting, queries = opened
    recipes = [unlearning_recipe('default'), unlearning_recipe('default', relative=.1), unlearning_recipe('published')]
    unlearning = [unlearning_of(recipe, setting.musicgen, setting.run, setting.songs) for recipe in recipes]
    lm = setting.musicgen.lm
    points = [Representers(lm, setting.songs), Representers(lm, setting.songs, .1),
              Representers(lm, setting.songs, targets='codes')]
    for methods in (unlearning, points):
        facts = [json.dumps(compare.facts_of(method)) for method in methods]
        assert len(set(facts)) == len(facts)
    silent = Counted(setting.ids)
    del silent.facts
    with pytest.raises(TypeError, match='Counted has no `facts`'):
        compare.scores_of(setting, [silent], queries, False)


def test_unlearning_is_a_method_among_them(opened, tmp_path):
    setting, queries = opened
    recipe = unlearning_recipe('default', fisher='identity')
    method = unlearning_of(recipe, setting.musicgen, tmp_path, setting.songs)
    found = compare.scores_of(setting, [method], queries, False)
    assert found[method.name].shape == (len(queries), len(setting.ids))


def test_other_songs_are_refused(opened):
    setting, queries = opened
    with pytest.raises(LuminaError, match='other songs'):
        compare.scores_of(setting, [Counted(setting.ids[::-1])], queries, False)


def test_whoever_has_another_method_adds_it(opened, monkeypatch):
    setting, _ = opened
    monkeypatch.setitem(compare_musicgen.FACTORIES, 'own', lambda setting: [Counted(setting.ids)])
    assert [method.name for method in setting.methods()][-1] == 'counted'
    monkeypatch.setitem(compare_musicgen.FACTORIES, 'again', lambda setting: [Counted(setting.ids)])
    with pytest.raises(LuminaError, match="called 'counted'"):
        setting.methods()


def test_the_command(suite, tmp_path, capsys):
    from lumina_plugin.cli import main
    run, truth, path = suite
    clap, clews = write_clap(tmp_path / 'small-clap'), write_clews(tmp_path / 'clews')
    argv = ['unlearn', 'compare', '--out', str(tmp_path), '--model', str(run), '--truth', str(path), '--top', '3',
            '--baselines', f'clap={clap},clews={clews}']
    main(argv)
    printed = capsys.readouterr().out
    names = ['LUMINA default', 'unlearning, published', 'unlearning, default',
             'CLAP (small-clap, not the published network)', 'CLEWS (a small random instance)', 'LPIPS', 'RPS',
             'RPS, fitted to codes', 'code histogram', 'mel statistics']
    for name in names:
        assert f'| {name} | ' in printed
    assert '| method | LDS |' in printed and 'Leave-group-out' not in printed and 'nan' not in printed
    folder = tmp_path / 'compare'
    told = json.loads((folder / 'compare.json').read_text())
    assert told['agreements']['methods'] == names and told['queries'] == 3 and set(told['truths']) == set(names)
    for name in ('compare.png', 'concentration.png'):
        assert (folder / name).read_bytes().startswith(b'\x89PNG')
    songs = [query for query in truth.queries if query.family == 'songs']
    row, = judge(truth, [CodeHistogram(songs, 16)]).rows
    assert told['truths']['code histogram']['LDS'] == row.lds['free generations']._asdict()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / 'kept').rglob('*.safetensors')}
    main(argv)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'kept').rglob('*.safetensors')} == kept
    assert capsys.readouterr().out == printed


def test_the_command_without_a_ground_truth(suite, tmp_path, capsys):
    from lumina_plugin.cli import main
    main(['unlearn', 'compare', '--out', str(tmp_path), '--model', str(suite[0]), '--count', '2', '--top', '2',
          '--channel', 'M'])
    printed = capsys.readouterr().out
    assert printed.startswith('2 queries (free) against 6 songs') and 'LDS' not in printed


@pytest.mark.parametrize('argv, words', [
    (['--channel', 'Q'], 'P + M, P, M'), (['--family', 'songs'], 'free, continued, heldout'),
    (['--baselines', 'clap=nowhere/at/all'], 'There is no CLAP at nowhere/at/all'),
    (['--baselines', 'vggish'], "no baseline 'vggish'"), (['--top', '6'], 'choose --top'), ([], 'lumina validate'),
    (['--draws', '4'], "a diffusion's timesteps")])
def test_bad_input_is_one_sentence(suite, tmp_path, capsys, monkeypatch, argv, words):
    from lumina_plugin.cli import main
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    known = ['--model', str(suite[0]), '--truth', str(suite[2])] if argv else []
    with pytest.raises(SystemExit) as stop:
        main(['unlearn', 'compare', '--out', str(tmp_path), *known, *argv])
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and words in told


def test_a_family_needs_its_ground_truth(suite, tmp_path, capsys):
    from lumina_plugin.cli import main
    with pytest.raises(SystemExit):
        main(['unlearn', 'compare', '--out', str(tmp_path), '--model', str(suite[0]), '--family', 'heldout'])
    assert "come from a ground truth" in capsys.readouterr().err


def test_baselines_join_the_suites_table(suite, tmp_path, capsys):
    from lumina_plugin.cli import main
    run, _, path = suite
    clap = write_clap(tmp_path / 'small-clap')
    main(['validate', 'lds', '--out', str(tmp_path), '--model', str(run), '--truth', str(path), '--baselines',
          f'clap={clap}'])
    printed = capsys.readouterr().out
    for name, channel in (('CLAP (small-clap, not the published network)', 'black box'), ('LPIPS', 'activations'),
                          ('RPS', 'output linears'), ('RPS, fitted to codes', 'output linears')):
        assert f'| {name} | {channel} | ' in printed


def test_tables_and_files_of_scores_without_a_truth(tmp_path):
    rng = np.random.default_rng(0)
    scores = {'a': rng.normal(size=(4, 12)), 'distance': -rng.random((4, 12))}
    result = compared(scores, 'free', False, {}, {'run': 'x'}, top=3)
    text = markdown(result)
    assert '| distance | ' in text and '–' in text and 'by chance 0.250' in text
    told = json.loads((save_comparison(tmp_path, result) / 'compare.json').read_text())
    assert told['concentration']['distance']['as they are']['queries'] == 0
    assert told['concentration']['distance']['as they are']['curve'] == [None] * 12
    assert len(told['agreements']['overlap']) == 2
