"""An earlier checkpoint of a training, chosen by its name or its file: it generates, and later ones are not asked."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from lumina_plugin import Attributor
from lumina_plugin.batch import attribute_folder
from lumina_plugin.catalogue_pass import fingerprint_model
from lumina_plugin.cli import main
from lumina_plugin.conditions import attributes_for
from lumina_plugin.errors import LuminaError
from lumina_plugin.gradients import Example
from lumina_plugin.hashing import state_hash
from lumina_plugin.models import export_musicgen, load_musicgen
from lumina_plugin.recipe import get_recipe
from lumina_plugin.report import AttributionReport
from lumina_plugin.store import FingerprintStore
from lumina_plugin.web import Limits, views
from lumina_plugin.web.desk import Desk
from lumina_plugin.workflows import Studio

EARLY, LAST = 'epoch-0002', 'epoch-0004'


@pytest.fixture(scope='module')
def early(project):
    return Studio(project.folder(), checkpoint=EARLY)


@pytest.fixture(scope='module')
def exported(project, tmp_path_factory):
    return export_musicgen(project.folder(), tmp_path_factory.mktemp('models') / 'exported')


def clip(studio, out):
    return studio.generate(out, text='slow waltz', seconds=0.6, seed=3, progress=False)[0].report


def test_it_generates_with_its_weights_and_the_report_names_it(early, studio, tmp_path):
    kept = studio.store.checkpoint(EARLY)
    assert state_hash(early.musicgen.lm.state_dict()) == state_hash(studio.store.load_weights(EARLY)) == kept.model_hash
    report, last = clip(early, tmp_path / 'early'), clip(studio, tmp_path / 'last')
    assert report.query.codes_hash != last.query.codes_hash
    assert (report.model.checkpoint.name, report.model.checkpoint.model_hash) == (EARLY, kept.model_hash)
    assert [point.name for point in report.checkpoints] == [EARLY]
    assert report.warnings[0] == (f"The model has the weights of {EARLY}: what its training came to later (1 of the "
                                  "store's checkpoints) had no part in it and was not compared.")
    assert (last.model.checkpoint.name, [point.name for point in last.checkpoints]) == (LAST, [EARLY, LAST])
    assert not any('came to later' in warning for warning in last.warnings)
    page = (tmp_path / 'early' / 'clip' / 'report.html').read_text()
    assert f'weights of {EARLY}' in page and kept.model_hash in page


def test_weights_are_known_where_nobody_names_the_checkpoint(early):
    unnamed = Attributor(early.musicgen.lm, early.musicgen.compression_model, early.store.path)
    assert unnamed.live.name == EARLY and [point.name for point in unnamed.checkpoints] == [EARLY]
    assert 'came to later' in unnamed.warnings()[0]


def test_its_scores_are_those_of_the_checkpoints_up_to_it(early, studio, project):
    song = project.root / 'songs' / 'song-3.wav'
    alone, both = early.attribute(song), studio.attribute(song)
    by_hand = studio.attributor
    phases = by_hand.tokenizer.phases(song, by_hand.recipe.query_phases)
    examples = [Example(chunk.codes, 0, chunk.frames, attributes_for(by_hand.lm)) for phase in phases
                for chunk in phase.chunks]
    fingerprint = by_hand._fingerprinters(EARLY).query(examples, [0] * len(examples))[0]
    for channel, found in alone.channels.items():
        ids, rows = studio.store.vectors(EARLY, channel)
        rows = np.asarray(rows)
        query = fingerprint[channel].numpy()
        cosine = rows @ query / np.linalg.norm(query) / np.linalg.norm(rows, axis=1)
        scores = {row.track_id: row.score for row in found.rows}
        np.testing.assert_allclose([scores[one] for one in ids], cosine, atol=1e-5)
        assert scores != {row.track_id: row.score for row in both.channels[channel].rows}


def test_the_last_one_by_name_or_by_file_is_what_is_used_anyway(studio, project, tmp_path):
    file = project.folder() / 'checkpoint.th'
    named, filed = (Studio(project.folder(), checkpoint=str(one)) for one in (LAST, file))
    assert named.checkpoint == filed.checkpoint == LAST
    reports = [clip(one, tmp_path / name) for name, one in (('a', studio), ('b', named), ('c', filed))]
    assert len({report.query.codes_hash for report in reports}) == 1
    assert reports[0].channels == reports[1].channels == reports[2].channels
    assert reports[0].warnings == reports[1].warnings


def test_an_exported_model_takes_it_from_the_store(exported, early, project, tmp_path):
    found = Studio(exported, project.folder() / 'lumina' / 'default', checkpoint=EARLY)
    assert clip(found, tmp_path / 'a').channels == clip(early, tmp_path / 'b').channels


@pytest.mark.parametrize('command', ['generate', 'attribute', 'demo'])
def test_an_unknown_one_is_told_with_the_known_ones(command, project, tmp_path, capsys):
    song = str(project.root / 'songs' / 'song-1.wav')
    words = {'generate': ['--out', str(tmp_path)], 'attribute': [song], 'demo': ['--port', '7997']}[command]
    with pytest.raises(SystemExit) as stopped:
        main([command, *words, '--model', str(project.folder()), '--checkpoint', 'epoch-0099'])
    assert stopped.value.code == 2
    assert re.search(r"no checkpoint 'epoch-0099' whose weights were kept; choose of epoch-0002, epoch-0004\.",
                     capsys.readouterr().err)


def test_files_that_are_none_of_the_store(project, tmp_path):
    state = torch.load(project.folder() / 'checkpoint.th', map_location='cpu', weights_only=True)
    key = next(iter(state['model']))
    for weights in filter(None, (state['model'], (state.get('ema') or {}).get('state', {}).get('model'))):
        weights[key] = weights[key] + 1
    torch.save(state, tmp_path / 'other.th')
    (tmp_path / 'text.th').write_text('no weights')
    for name, told in (('other.th', 'choose of epoch-0002'), ('text.th', 'text.th cannot be used')):
        with pytest.raises(LuminaError, match=told):
            Studio(project.folder(), checkpoint=str(tmp_path / name))


def test_a_store_of_a_model_without_checkpoints_has_none_to_choose(exported, project, tmp_path):
    recipe = get_recipe('default', chunk_seconds=1., scoring={'method': 'cosine'})
    store = fingerprint_model(exported, project.manifest, tmp_path / 'store', recipe, outside='none')
    with pytest.raises(LuminaError, match='weights of no checkpoint.*leave --checkpoint away'):
        Studio(exported, store.path, checkpoint='last')


def test_weights_of_another_checkpoint_are_refused(project):
    musicgen = load_musicgen(project.folder())
    store = FingerprintStore.open(project.folder() / 'lumina' / 'default')
    with pytest.raises(LuminaError, match=f'another model .store: {store.checkpoint(EARLY).model_hash}'):
        Attributor(musicgen.lm, musicgen.compression_model, store, checkpoint=EARLY)


def test_the_page_generates_with_it_and_says_so(early, tmp_path):
    desk = Desk(early, Limits(), tmp_path / 'history')
    try:
        made = desk.generate(seconds=2, seed=1)
        assert made.report.model.checkpoint.name == EARLY and [one.name for one in made.report.checkpoints] == [EARLY]
        assert f'checkpoint {EARLY},' in views.header(desk)
    finally:
        desk.close()


def test_a_folder_is_attributed_by_it_apart_from_the_last(project, tmp_path, capsys):
    recordings = tmp_path / 'recordings'
    recordings.mkdir()
    shutil.copy(project.root / 'songs' / 'song-2.wav', recordings)
    run, out = project.folder(), tmp_path / 'out'
    assert attribute_folder(recordings, out, run, progress=False).reused == 0
    argv = ['attribute', str(recordings), '--out', str(out), '--model', str(run), '--checkpoint', EARLY]
    main(argv)
    assert '0 of them attributed before' in capsys.readouterr().out
    main(argv)
    assert '1 of them attributed before' in capsys.readouterr().out
    found = [AttributionReport.load(path).model.checkpoint.name for path in (out / 'files').glob('*/report.json')]
    assert sorted(found) == [EARLY, LAST]


def test_a_generation_by_another_checkpoint_is_attributed_anew(early, studio, project, tmp_path):
    for name, one in (('early', early), ('last', studio)):
        one.generate(tmp_path / 'clips', name, seconds=2, progress=False)
    batch = attribute_folder(tmp_path / 'clips', tmp_path / 'out', project.folder(), progress=False, checkpoint=EARLY)
    assert {one.file: one.kind for one in batch.summary.recordings} == {'early/audio.wav': 'generation',
                                                                        'last/audio.wav': 'file'}
    batch = attribute_folder(tmp_path / 'clips', tmp_path / 'last', project.folder(), progress=False)
    assert {one.file: one.kind for one in batch.summary.recordings} == {'early/audio.wav': 'file',
                                                                        'last/audio.wav': 'generation'}


def test_clips_of_two_checkpoints_are_never_taken_for_each_other(project, tmp_path, capsys):
    argv = ['generate', '--model', str(project.folder()), '--prompt', 'slow waltz', '--seconds', '0.6', '--out',
            str(tmp_path)]
    main(argv)
    main([*argv, '--checkpoint', EARLY])
    assert 'was there already' not in capsys.readouterr().out
    request = json.loads((tmp_path / 'clip' / 'request.json').read_text())
    assert request['model'] == AttributionReport.load(tmp_path / 'clip' / 'report.json').model.checkpoint.model_hash
    main([*argv, '--checkpoint', EARLY])
    assert 'was there already' in capsys.readouterr().out
