"""`lumina unlearn` on models that are no runs: exported, or a pipeline of diffusers, with the songs named."""

import json
import shutil

import numpy as np
import pytest

from lumina_plugin.catalogue import Catalogue, build_catalogue
from lumina_plugin.cli import main
from lumina_plugin.dit.latents import LatentEncoder, prepare_latents
from lumina_plugin.dit.loading import save_pretrained
from lumina_plugin.errors import LuminaError
from lumina_plugin.models import export_musicgen
from lumina_plugin.unlearning.attribute import attribute
from lumina_plugin.unlearning.diffusion import DiffusionSubject
from lumina_plugin.unlearning.opened import open_subject
from lumina_plugin.unlearning.recipe import unlearning_recipe

from .tiny_dit import tiny_dit


@pytest.fixture(scope='module')
def exported(project, tmp_path_factory):
    return export_musicgen(project.folder(), tmp_path_factory.mktemp('models') / 'exported')


@pytest.fixture
def run(project, tmp_path):
    leave = shutil.ignore_patterns('fisher')  # other tests' Fisher information
    return shutil.copytree(project.folder(), tmp_path / 'xps' / project.folder().name, ignore=leave)


def asked(project, tmp_path, name, *model):
    """What `lumina unlearn attribute` says of a song."""
    song = project.root / 'songs' / 'song-2.wav'
    main(['unlearn', 'attribute', str(song), '--out', str(tmp_path / name), '--set', 'relative=0.003',
          *map(str, model)])
    return json.loads((tmp_path / name / 'attribute' / 'song-2' / 'song-2.json').read_text())


def test_an_exported_model_answers_as_the_run_that_it_is_of(exported, run, project, tmp_path, capsys):
    known = asked(project, tmp_path, 'run', '--model', run)
    before = {path for path in exported.rglob('*')}
    songs = ['--catalogue', project.manifest.parent]
    main(['unlearn', 'fisher', str(exported), *map(str, songs), '--out', str(tmp_path / 'out')])
    told = capsys.readouterr().out
    (home,) = (tmp_path / 'out' / 'kept-model').iterdir()
    assert f'Kept: {home}/fisher/kronecker-' in told and {path for path in exported.rglob('*')} == before
    files = {path: path.stat().st_mtime_ns for path in (home / 'fisher').iterdir()}
    found = asked(project, tmp_path, 'out', '--model', exported, *songs)
    assert {path: path.stat().st_mtime_ns for path in (home / 'fisher').iterdir()} == files  # made once
    assert found == known and any(found['scores'])
    near = asked(project, tmp_path, 'out', '--model', exported, *songs, '--fast')  # by sketches: it has no store
    np.testing.assert_allclose(near['scores'], known['scores'], atol=1e-5)


def test_songs_of_an_exported_model_find_themselves(exported, project, tmp_path, capsys):
    main(['unlearn', 'self', str(exported), '--catalogue', str(project.manifest), '--out', str(tmp_path), '--targets',
          '2', '--generations', '0', '--layers', 'M', '--mask', 'none', '--set', 'fisher=identity'])
    assert 'itself first' in capsys.readouterr().out
    assert len(json.loads((tmp_path / 'self' / 'self.json').read_text())['groups'][0]['ranks']) == 2


def test_an_exported_model_has_no_optimizer(exported, project, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(['unlearn', 'fisher', str(exported), '--catalogue', str(project.manifest), '--out', str(tmp_path),
              '--set', 'fisher=adam'])
    assert stopped.value.code == 2 and 'exported model has no optimizer' in capsys.readouterr().err


def test_other_songs_in_the_place_of_a_runs_own(run, project, tmp_path):
    few = build_catalogue(_two(project, tmp_path / 'two'), tmp_path / 'few', progress=False).manifest
    subject = open_subject(run, catalogue=few, out=tmp_path / 'out')
    assert [song.id for song in subject.songs] == ['song-1', 'song-2'] and subject.folder == run
    assert not (tmp_path / 'out').exists()
    early = open_subject(run, checkpoint='epoch-0002', catalogue=few)
    assert early.state is not None and early.facts(unlearning_recipe('default')) != subject.facts(
        unlearning_recipe('default'))


def _two(project, folder):
    folder.mkdir()
    for name in ('song-1', 'song-2'):
        shutil.copy(project.root / 'songs' / f'{name}.wav', folder)
    return folder


def test_a_pipeline_of_diffusers_answers_as_the_model_that_it_is_of(project, tmp_path):
    dit = tiny_dit()
    pipeline, by_hand = save_pretrained(dit, tmp_path / 'pipeline'), LatentEncoder(dit)
    subject = open_subject(pipeline, 'cpu', catalogue=project.manifest, out=tmp_path / 'out')
    songs = prepare_latents(Catalogue.from_manifest(project.manifest), by_hand).songs
    known = DiffusionSubject(tmp_path / 'known', dit, songs, encoder=by_hand)
    recipe = subject.adapted(unlearning_recipe('default', mask='none', draws=2, fisher_draws=1, fisher='diagonal'))
    found, expected = (attribute(one, recipe, one.pieces([project.root / 'songs' / 'song-2.wav']), tmp_path / name)[0]
                       for name, one in (('out', subject), ('known', known)))
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    assert found.songs == expected.songs and len(found.songs) == 6 and found.after > found.before
    assert list((tmp_path / 'out' / 'kept-model').glob('*/fisher/diagonal-*.safetensors'))


def test_what_is_no_model_is_told(project, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(LuminaError, match='has no state_dict.bin'):
        open_subject(tmp_path / 'empty', catalogue=project.manifest, out=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
