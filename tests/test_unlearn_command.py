"""`lumina unlearn` on a real run: files that it writes, what it goes on from, what it refuses."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from lumina_plugin.channels import resolve_blocks
from lumina_plugin.cli import main
from lumina_plugin.errors import LuminaError
from lumina_plugin.prepared import progress_bar
from lumina_plugin.store import FingerprintStore
from lumina_plugin.unlearning import grid as module
from lumina_plugin.unlearning.attribute import attribute, shortlists
from lumina_plugin.unlearning.bench import MusicGenBench
from lumina_plugin.unlearning.diffusion import LAYER_GROUPS
from lumina_plugin.unlearning.fisher_report import GROUPS, group_of
from lumina_plugin.unlearning.kept import load_fisher, path_of
from lumina_plugin.unlearning.opened import open_subject
from lumina_plugin.unlearning.recipe import unlearning_recipe
from lumina_plugin.unlearning.scoring import Unlearner

from .test_unlearn_compare import suite  # noqa: F401 (a fixture)
from .tiny import build_lm
from .tiny_dit import tiny_dit


@pytest.fixture
def run(project, tmp_path):
    """A copy of the shared run: Fisher information is kept beside its checkpoint."""
    leave = shutil.ignore_patterns('fisher')  # other tests' Fisher information
    return shutil.copytree(project.folder(), tmp_path / 'xps' / project.folder().name, ignore=leave)


def test_the_fisher_is_made_once(run, tmp_path, capsys):
    argv = ['unlearn', 'fisher', str(run), '--out', str(tmp_path / 'out')]
    main(argv)
    told = capsys.readouterr().out
    assert 'kronecker Fisher information of 6 songs for all' in told and 'Kept: ' in told
    kept = {path: path.stat().st_mtime_ns for path in (run / 'fisher').glob('*.safetensors')}
    assert len(kept) == 2  # and the songs' losses
    main(argv)
    assert {path: path.stat().st_mtime_ns for path in (run / 'fisher').glob('*.safetensors')} == kept
    main([*argv, '--set', 'fisher=adam', '--set', 'layers=M'])
    assert 'adam Fisher information of 6 songs for M' in capsys.readouterr().out


def test_the_fisher_is_told_layer_by_layer(run, tmp_path, capsys):
    main(['unlearn', 'fisher', str(run), '--out', str(tmp_path), '--set', 'fisher=diagonal', '--set', 'damping=0.5'])
    told, folder = capsys.readouterr().out, tmp_path / 'fisher'
    found, text = json.loads((folder / 'fisher.json').read_text()), (folder / 'fisher.md').read_text()
    subject = open_subject(run)
    recipe = unlearning_recipe('default', fisher='diagonal', damping=0.5)
    learner = subject.learner(recipe)
    fisher = load_fisher(path_of(run, subject.facts(recipe)), subject.facts(recipe))
    assert [layer['name'] for layer in found['layers']] == list(learner.blocks)  # the model's order
    for layer in found['layers']:
        values = fisher.values[layer['name']].double()
        assert layer['weights'] == values.numel() and layer['largest'] == float(values.max())
        assert layer['mean'] == pytest.approx(float(values.mean()))
        assert layer['effective'] == pytest.approx(float(values.sum() ** 2 / (values ** 2).sum()))
        assert layer['below'] == pytest.approx(float((values < found['damping']).double().mean()))
        assert layer['name'] in text and f"{layer['mean']:.3g}" in text
    assert found['damping'] == pytest.approx(0.5 * fisher.mean)
    for rows in (found['layers'], found['groups']):
        assert sum(row['share'] for row in rows) == pytest.approx(1)
        assert sum(row['weights'] for row in rows) == sum(values.numel() for values in fisher.values.values())
    output = np.sort(np.concatenate([fisher.values[name].numpy().ravel() for name in learner.blocks
                                     if name.startswith('linears')]))
    line = found['spectra']['output linears']
    np.testing.assert_allclose(line['value'], [output[-int(rank)] for rank in line['rank']])
    assert line['rank'][0] == 1 and line['rank'][-1] == len(output)
    assert 'output linears' in told and f'Written: {folder}/fisher.md' in told
    assert (folder / 'fisher.png').read_bytes().startswith(b'\x89PNG')


def test_nothing_is_told_of_no_information(run, tmp_path, capsys):
    main(['unlearn', 'fisher', str(run), '--out', str(tmp_path / 'out'), '--set', 'fisher=identity'])
    assert 'Written' not in capsys.readouterr().out and not (tmp_path / 'out').exists()


def test_every_weight_has_a_line_of_the_picture():
    models = (build_lm(), build_lm(fuse='cross'))
    names = [block.name for lm in models for block in resolve_blocks(lm, ['all'])]
    dit = tiny_dit().denoiser
    for group in LAYER_GROUPS.values():
        names += [block.name for block in resolve_blocks(dit, [group])]
    assert {group_of(name) for name in names} == set(GROUPS) - {'other'}
    assert group_of('linears.0.weight') == group_of('transformer.proj_out.weight') == 'output linears'


def test_a_recording_is_attributed_and_what_is_finished_is_read(run, project, tmp_path, capsys, monkeypatch):
    song = project.root / 'songs' / 'song-2.wav'
    argv = ['unlearn', 'attribute', str(song), '--model', str(run), '--out', str(tmp_path / 'out')]
    main([*argv, '--set', 'fisher=diagonal', '--set', 'relative=0.003'])
    told = capsys.readouterr().out
    folder = tmp_path / 'out' / 'attribute' / 'song-2'
    found = json.loads((folder / 'song-2.json').read_text())
    assert found['relative'] == pytest.approx(3e-3, rel=1e-3) and found['after'] > found['before']
    rows = list(csv.DictReader((folder / 'song-2.csv').open()))
    assert [row['song'] for row in rows] == [found['songs'][i] for i in np.argsort(-np.array(found['scores']))]
    assert rows[0]['song'] in (folder / 'song-2.md').read_text() and rows[0]['song'] in told
    assert (folder / 'song-2.png').read_bytes().startswith(b'\x89PNG')
    monkeypatch.setattr('lumina_plugin.unlearning.subject.Subject.unlearner', None)
    main([*argv, '--set', 'fisher=diagonal', '--set', 'relative=0.003'])
    assert capsys.readouterr().out == told


def test_queries_are_kept_one_by_one(run, project, tmp_path, monkeypatch):
    """Another recording, another order or another name of the same costs what is new alone."""
    def scores(names, **keys):
        files = [folder / f'{name}.wav' for name in names]
        recipe = unlearning_recipe('default', fisher='identity', **keys)
        return {answer.query: answer.scores for answer in attribute(subject, recipe, subject.pieces(files), tmp_path)}
    folder = shutil.copytree(project.root / 'songs', tmp_path / 'songs')
    shutil.copy(folder / 'song-2.wav', folder / 'again.wav')
    subject, asked, whole = open_subject(run), [], Unlearner.scores
    monkeypatch.setattr(Unlearner, 'scores', lambda self, queries, among=None: asked.append(
        [query.id for query in queries]) or whole(self, queries, among))
    first = scores(['song-2'])
    found = scores(['song-1', 'again', 'song-2', 'song-3'])
    assert asked == [['song-2'], ['song-1', 'song-3']]  # what is missing, together
    np.testing.assert_array_equal(found['song-2'], first['song-2'])
    np.testing.assert_array_equal(found['again'], first['song-2'])
    np.testing.assert_allclose(found['song-3'], whole(subject.unlearner(
        unlearning_recipe('default', fisher='identity'), progress_bar), subject.pieces([folder / 'song-3.wav']),
        ).scores[0], atol=1e-6)
    scores(['song-3', 'song-1'])
    assert len(asked) == 2
    scores(['song-3'], relative=1e-3)
    assert asked[2:] == [['song-3']]


def test_a_shortlist_asks_about_fewer_songs(run, project, tmp_path, capsys):
    song = project.root / 'songs' / 'song-2.wav'
    subject = open_subject(run)
    recipe = unlearning_recipe('default')
    attributor = subject.attributor(FingerprintStore.open(run / 'lumina' / 'default'))
    piece = subject.pieces([song])
    assert len(shortlists(attributor, subject, piece, 0.05)[0]) == 6  # at least ten, where there are so many
    exact = attribute(subject, recipe, piece, tmp_path / 'exact')[0]
    fast = attribute(subject, recipe, piece, tmp_path / 'fast', attributor)[0]
    np.testing.assert_allclose(fast.scores, exact.scores, atol=1e-5)
    main(['unlearn', 'attribute', str(song), '--model', str(run), '--out', str(tmp_path / 'out'), '--fast'])
    assert 'song-2' in capsys.readouterr().out


def test_a_folder_under_a_text(run, project, tmp_path, capsys):
    folder = tmp_path / 'clips'
    folder.mkdir()
    for name in ('song-1', 'song-3'):
        shutil.copy(project.root / 'songs' / f'{name}.wav', folder)
    argv = ['unlearn', 'attribute', str(folder), '--model', str(run), '--out', str(tmp_path / 'out'), '--set',
            'fisher=identity']
    main(argv)
    first = (tmp_path / 'out' / 'attribute' / 'song-3' / 'song-3.json').read_text()
    main([*argv, '--prompt', 'slow waltz'])
    other = (tmp_path / 'out' / 'attribute' / 'song-3' / 'song-3.json').read_text()
    assert json.loads(first)['scores'] != json.loads(other)['scores']
    shutil.copy(folder / 'song-3.wav', tmp_path / 'song-3.wav')
    with pytest.raises(SystemExit):
        main([*argv, str(tmp_path / 'song-3.wav')])
    assert 'Two recordings are called song-3' in capsys.readouterr().err


def test_songs_find_themselves(run, tmp_path, capsys):
    argv = ['unlearn', 'self', str(run), '--out', str(tmp_path), '--targets', '3', '--generations', '2', '--moved', '1',
            '--layers', 'M', '--mask', 'mixed', '--mask', 'none', '--set', 'fisher=identity']
    main(argv)
    told = capsys.readouterr().out
    assert 'itself first' in told and "latents of the model's codec" in told and 'over 5 seeds' in told
    found = json.loads((tmp_path / 'self' / 'self.json').read_text())
    assert [group['recipe']['mask'] for group in found['groups']] == ['mixed', 'none']
    for group in found['groups']:
        assert len(group['ranks']) == 3 and all(1 <= rank <= 6 for rank in group['ranks'])
        assert len(group['frechet']) == 1 and group['frechet'][0] >= 0
    main(argv)
    assert capsys.readouterr().out == told
    assert (tmp_path / 'self' / 'self.png').read_bytes().startswith(b'\x89PNG')


def test_a_grid_is_judged_and_goes_on(suite, tmp_path, capsys, monkeypatch):  # noqa: F811
    folder, truth, path = suite
    copied = shutil.copytree(folder, tmp_path / 'xps' / folder.name)
    argv = ['unlearn', 'grid', '--suite', str(tmp_path), '--truth', str(path), '--out', str(tmp_path / 'out'),
            '--model', str(copied), '--set', 'fisher=identity', '--axis', 'relative=0.001,0.01', '--linear',
            '--generations', '2', '--moved', '1']
    main(argv)
    told = capsys.readouterr().out
    assert 'length 0.001' in told and 'Best by the even queries' in told and 'linearised' in told
    found = json.loads((tmp_path / 'out' / 'grid' / 'grid.json').read_text())
    assert [len(point['lds']['free']) for point in found['points']] == [3, 3]
    near, far = (point['frechet'] for point in found['points'])
    assert len(found['before']) == 5 and near != far and min(near + far + found['before']) > 0
    assert f'{np.mean(found["before"]):.3g} from the songs' in told
    monkeypatch.setattr('lumina_plugin.unlearning.subject.Subject.unlearner', None)
    main(argv)
    assert capsys.readouterr().out == told


def test_a_point_that_fails_does_not_stop_the_grid(suite, opened_bench, tmp_path):  # noqa: F811
    recipes = [unlearning_recipe('default', fisher='identity', lr=1e38),
               unlearning_recipe('default', fisher='identity', layers='cross_attention')]
    points = module.grid(recipes, opened_bench, tmp_path)
    assert 'not finite' in points[0].error and 'no weight' in points[1].error
    assert 'not finite' in module.markdown(points)


@pytest.fixture
def opened_bench(suite):  # noqa: F811
    from lumina_plugin.models import load_musicgen
    folder, truth, _ = suite
    return MusicGenBench(truth, load_musicgen(folder), folder)


def test_points_are_told_by_what_differs():
    points = [module.Point(recipe) for recipe in module.points_of('default', {'steps': [1, 2], 'mask': ['none']})]
    assert module.titles(points) == ['1 step', '2 steps'] and 'mask none' in module.shared(points)
    assert len(module.points_of('default', {'fisher': ['identity'], 'power': [0.5, 1.]})) == 1


@pytest.mark.parametrize('argv, told', [
    (['fisher', 'nowhere'], 'nowhere is no dora run.*--catalogue'),
    (['self', 'nowhere/at-all'], 'is no dora run.*--catalogue'),
    (['fisher', 'nowhere', '--catalogue', 'SONGS'], 'There is no model nowhere'),
    (['fisher', 'nowhere', '--catalogue', 'missing.jsonl'], 'missing.jsonl does not exist'),
    (['fisher', 'nowhere', '--catalogue', 'SONGS', '--checkpoint', 'epoch-0002'], 'leave --checkpoint away'),
    (['fisher', 'RUN', '--checkpoint', 'epoch-0099'], "no checkpoint 'epoch-0099'.*choose of epoch-"),
    (['fisher', 'RUN', '--set', 'lr=1', '--set', 'relative=1'], 'give one of them'),
    (['fisher', 'RUN', '--set', 'steps'], 'is not KEY=VALUE'),
    (['fisher', 'RUN', '--recipe', 'best'], 'no unlearning recipe'),
    (['fisher', 'RUN', '--set', 'layers=cross_attention'], 'matches no weight'),
    (['fisher', 'RUN', '--set', 'objective=v_objective'], 'cannot answer the v-objective'),
    (['attribute', 'SILENCE', '--model', 'RUN'], 'is silent'),
    (['attribute', 'nothing.wav', '--model', 'RUN'], 'nothing.wav'),
    (['self', 'RUN', '--embedding', 'openl3'], 'openl3 is not installed'),
    (['self', 'RUN', '--embedding', 'clap'], 'give --clap'),
    (['self', 'RUN', '--embedding', 'ear'], "no embedding 'ear'"),
    (['grid', '--family', 'none'], "no queries 'none'")])
def test_bad_input_is_told_in_a_sentence(argv, told, project, tmp_path, capsys):
    places = {'RUN': str(project.folder()), 'SILENCE': str(project.root / 'songs' / 'silence.wav'),
              'SONGS': str(project.manifest)}
    with pytest.raises(SystemExit) as stopped:
        main(['unlearn', *(places.get(word, word) for word in argv)])
    assert stopped.value.code == 2 and re.search(told, capsys.readouterr().err)


def test_anothers_fisher_file_is_refused(run, project, tmp_path):
    subject = open_subject(run)
    main(['unlearn', 'fisher', str(run), '--checkpoint', 'epoch-0002', '--out', str(tmp_path)])
    file = next(path for path in (run / 'fisher').iterdir() if path.name.startswith('kronecker'))
    with pytest.raises(LuminaError, match='another checkpoint'):
        attribute(subject, unlearning_recipe('default'), subject.pieces([project.root / 'songs' / 'song-1.wav']),
                  tmp_path, fisher=file)


def test_clips_are_called_by_their_folders_and_bad_files_are_told_first(run, project, tmp_path, capsys, monkeypatch):
    for name, song in (('first', 'song-1'), ('second', 'song-2')):
        (tmp_path / 'clips' / name).mkdir(parents=True)
        shutil.copy(project.root / 'songs' / f'{song}.wav', tmp_path / 'clips' / name / 'audio.wav')
    main(['unlearn', 'attribute', str(tmp_path / 'clips'), '--model', str(run), '--out', str(tmp_path / 'out'),
          '--set', 'fisher=identity', '--set', 'relative=0.003'])
    assert '# first' in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / 'out' / 'attribute').iterdir()) == ['first', 'second']
    (tmp_path / 'notes.txt').write_text('no music')
    monkeypatch.setattr('lumina_plugin.unlearning.opened.open_subject', None)
    with pytest.raises(SystemExit):
        main(['unlearn', 'attribute', str(tmp_path / 'notes.txt'), '--model', str(run)])
    assert 'notes.txt' in capsys.readouterr().err
    with pytest.raises(LuminaError, match="no key 'relativ'; did you mean relative"):
        unlearning_recipe('default', relativ=.1)
