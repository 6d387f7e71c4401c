"""`lumina validate channels` on a real run."""

import json

import numpy as np
import pytest
import torch

from lumina_plugin.catalogue_pass import run_songs
from lumina_plugin.cli import main
from lumina_plugin.models import load_musicgen, run_stores
from lumina_plugin.pairs import Maker
from lumina_plugin.separation import load, separation_file
from lumina_plugin.store import FingerprintStore
from lumina_plugin.tokens import Tokenizer
from lumina_plugin.validation.channels import BEST, STANDING

SMALL = ['--songs', '4', '--changes', '2', '--compositions', '3', '--productions', '2']


@pytest.fixture(scope='module')
def measured(project, tmp_path_factory):
    out = tmp_path_factory.mktemp('channels')
    main(['validate', 'channels', '--model', str(project.folder()), '--out', str(out), '--every-checkpoint', '--keep',
          *SMALL])
    return out / 'channels'


def test_every_way_of_both_channels_is_measured(measured):
    told = json.loads((measured / 'channels.json').read_text())
    ways = {(row['channel'], row['way']) for row in told['rows']}
    assert len(ways) == len(told['rows']) == 12 and {('P', STANDING), ('M', BEST)} <= ways
    assert {row['keeps'] for row in told['rows']} == {'composition', 'production'}
    for row in told['rows']:
        assert all(one['low'] <= one['mean'] <= one['high'] <= 1.0001 for one in (row['kept'], row['other']))
        assert row['lead']['mean'] == pytest.approx(row['kept']['mean'] - 1.5 * row['other']['mean'])
        assert 0 <= row['itself'] <= 1
    text = (measured / 'channels.md').read_text()
    assert told['verdict'][STANDING] in text and 'Channel M' in text
    assert told['facts']['checkpoints'].count('epoch') == 2
    assert (measured / 'channels.png').read_bytes().startswith(b'\x89PNG')


def test_a_second_call_finds_the_codes_and_says_the_same(measured, project, capsys):
    before = (measured / 'channels.md').read_text()
    files = {path: path.stat().st_mtime_ns for path in (measured / 'codes').iterdir()}
    main(['validate', 'channels', '--model', str(project.folder()), '--out', str(measured.parent),
          '--every-checkpoint', *SMALL])
    assert (measured / 'channels.md').read_text() == before and before in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in (measured / 'codes').iterdir()}


def test_separations_are_kept_beside_the_store(measured, project):
    store = FingerprintStore.open(run_stores(project.folder())[0])
    found = load(separation_file(store.path), recipe_hash=store.identity.recipe_hash)
    assert set(found) == {(info.name, channel) for info in store.checkpoints for channel in 'PM'}
    assert FingerprintStore.open(store.path).verify() == []  # what lies beside a store does not disturb it


def test_codes_of_a_song_as_it_is_are_those_of_the_tokenizer(project, tmp_path):
    musicgen = load_musicgen(project.folder())
    tokenizer = Tokenizer(musicgen.compression_model, 'hash', 1.)
    track = next(track for track in run_songs(project.folder()) if track.id != 'silence')
    made = Maker(tokenizer, musicgen.lm, tmp_path).changed([track], 'composition', 2)
    assert len(made.examples) == 3 and not made.songs.any()
    assert torch.equal(made.examples[0].codes, tokenizer.file(track.path).chunks[0].codes)
    assert not torch.equal(made.examples[0].codes, made.examples[1].codes)
    (damaged,) = tmp_path.iterdir()
    damaged.write_bytes(b'no')
    again = Maker(tokenizer, musicgen.lm, tmp_path).changed([track], 'composition', 2)
    assert all(torch.equal(one.codes, other.codes) for one, other in zip(made.examples, again.examples, strict=True))
    np.testing.assert_array_equal(made.songs, again.songs)


@pytest.mark.parametrize('argv, words', [(['--model', 'facebook/musicgen-small'], 'no dora run'),
                                         ([], 'validate ground-truth')])
def test_bad_input_is_one_sentence(tmp_path, capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        main(['validate', 'channels', '--out', str(tmp_path), *argv])
    assert stop.value.code == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith('Error: ') and words in told and len(told.splitlines()) == 1
