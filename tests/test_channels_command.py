"""`lumina validate channels` on a real run."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lumina_plugin.attribution import Attributor
from lumina_plugin.catalogue_pass import run_songs
from lumina_plugin.cli import main
from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Fingerprinter, Song
from lumina_plugin.models import load_musicgen, run_stores
from lumina_plugin.pairs import Maker, fit_separations, joined_rows
from lumina_plugin.projection import ChannelProjection
from lumina_plugin.recipe import recipe_from_dict
from lumina_plugin.scoring import compute_scores
from lumina_plugin.separation import KEEPS, Separation, load, separation_file
from lumina_plugin.store import FingerprintStore
from lumina_plugin.tokens import Tokenizer
from lumina_plugin.validation.channel_table import BEST, STANDING
from lumina_plugin.validation.channels import FAMILIES, Sizes, measure
from lumina_plugin.validation.ground_truth import make_ground_truth
from lumina_plugin.validation.lds import half_losses, lds
from lumina_plugin.validation.plan import plan_models

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


def test_what_a_separation_costs_is_told_by_a_ground_truth(project, measured, tmp_path_factory):
    run = project.folder()
    songs = run_songs(run)
    sounding = type(songs)([track for track in songs if track.id != 'silence'], songs.source)
    made = make_ground_truth(run, project.manifest, tmp_path_factory.mktemp('truth'), each=2, seconds=1.,
                             plan=plan_models(sounding, halves=3, seeds=1, whole=0, groups=0))
    truth = dataclasses.replace(made, songs=[track.id for track in sounding])
    table = measure(run, measured, sizes=Sizes(3, 1, 2, 2), truth=truth)
    titles = dict(FAMILIES)
    for row in table.rows:
        assert set(row.lds) == set(titles.values()) and all(-1 <= one.mean <= 1 for one in row.lds.values())
    standing = {row.channel: row for row in table.rows if row.way == STANDING}
    musicgen = load_musicgen(run)
    attributor = Attributor(musicgen.lm, musicgen.compression_model, run_stores(run)[0])
    place = {truth.queries[column].source: column for column in truth.columns('songs')}
    examples = [query.example(musicgen.lm, True) for query in truth.queries]
    free, songs = (attributor.fingerprint_parts([examples[column] for column in columns])
                   for columns in (truth.columns('free'), [place[song] for song in truth.songs]))
    halves = half_losses(truth, truth.columns('free'), False)
    for channel, row in standing.items():
        expected = lds(compute_scores('cosine', free[channel][-1], songs[channel][-1]), halves)
        assert row.lds[titles['free']].mean == pytest.approx(expected.mean(), abs=1e-6)
    with pytest.raises(LuminaError, match='is of run other'):
        measure(run, measured, truth=dataclasses.replace(truth, facts={**truth.facts, 'run': 'other'}))


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


def test_separated_fingerprints_are_those_of_their_projection(project, tmp_path):
    run = project.folder()
    musicgen, store = load_musicgen(run), FingerprintStore.open(run_stores(run)[0])
    recipe = recipe_from_dict(store.identity.recipe)
    maker = Maker(Tokenizer(musicgen.compression_model, 'hash', 1.), musicgen.lm, tmp_path)
    tracks = [track for track in run_songs(run) if track.id != 'silence'][:3]
    changed = {kept: maker.changed(tracks, kept, 2) for kept in KEEPS.values()}
    fingerprinter = Fingerprinter(musicgen.lm, recipe)
    songs = [Song(track.id, [changed['composition'].examples[3 * number]]) for number, track in enumerate(tracks)]
    reducers = fingerprinter.fit_reducers(songs)
    fingerprinter.projections = fit_separations(fingerprinter, reducers, changed)
    found = list(fingerprinter.fingerprints(songs))
    rows = joined_rows(fingerprinter, reducers, changed['composition'].examples)['P']
    expected = Separation.fit(rows, changed['composition'].songs)(rows)[::3]  # each song as it is
    for one, row in zip(found, expected, strict=True):
        assert one.vectors['P'].shape == (recipe.projection.dim,)
        torch.testing.assert_close(one.vectors['P'][:len(row)], row, atol=1e-4, rtol=1e-3)
    for channel, made in fingerprinter.projections.items():
        blocks = fingerprinter.channels[channel]
        loaded = ChannelProjection.load(blocks, made.tensors(), made.facts(), recipe.block_norm).projection
        assert torch.equal(loaded.map, made.projection.map) and loaded.dim == recipe.projection.dim
    with pytest.raises(LuminaError, match='channel X'):
        fit_separations(fingerprinter, {'X': reducers['P']}, changed)


@pytest.mark.parametrize('argv, words', [(['--model', 'facebook/musicgen-small'], 'no dora run'),
                                         ([], 'validate ground-truth')])
def test_bad_input_is_one_sentence(tmp_path, capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        main(['validate', 'channels', '--out', str(tmp_path), *argv])
    assert stop.value.code == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith('Error: ') and words in told and len(told.splitlines()) == 1
