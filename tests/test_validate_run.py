"""What the suite measures of a run, on a real one: causal and self finding, reproducibility, false payments."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lumina_plugin.attribution import Attributor, QueryFacts
from lumina_plugin.catalogue import Catalogue, build_catalogue
from lumina_plugin.conditions import attributes_for
from lumina_plugin.errors import LuminaError
from lumina_plugin.recipe import recipe_from_dict
from lumina_plugin.validation import causal, false_payments, own, repro
from lumina_plugin.validation.opened import Continued, kept_scores, open_run
from lumina_plugin.validation.queries import Sampling

from .tiny import write_songs

PROMPT = Continued(1., count=3)


@pytest.fixture(scope='module')
def opened(project, tmp_path_factory):
    found = open_run(project.folder(), tmp_path_factory.mktemp('validation'), 'tiny')
    return dataclasses.replace(found, stores=[store for store in found.stores if store.path.name == 'default'])


@pytest.fixture(scope='module')
def strangers(tmp_path_factory):
    folder = tmp_path_factory.mktemp('strangers')
    return build_catalogue(write_songs(folder / 'songs', 3, seed=7), folder / 'catalogue', progress=False).manifest


@pytest.fixture(scope='module')
def other(opened, strangers):
    """A run's model before its training, as the model of other songs."""
    from .tiny import build_lm
    torch.manual_seed(5)
    musicgen = dataclasses.make_dataclass('Other', ['lm', 'compression_model'])(
        build_lm(card=16), opened.musicgen.compression_model)
    catalogue = Catalogue.from_manifest(strangers)
    return dataclasses.replace(opened, title='other', musicgen=musicgen, catalogue=catalogue, stores=[],
                               songs=false_payments.strangers_of(opened, strangers)[0])


# -- causal and self ------------------------------------------------------------------------------------------------

def test_continuations_are_made_once(opened):
    first = opened.continued(PROMPT)
    assert len(first) == 3 and all(query.prompt_frames == 50 for query in first)
    places = {song.id: song for song in opened.songs}
    for query in first:
        assert torch.equal(query.codes[:, :50], places[query.source].codes[:, :50])
        assert query.text == places[query.source].text
    kept = sorted(opened.out.glob('kept/queries-*'))
    again = opened.continued(PROMPT)
    assert all(torch.equal(a.codes, b.codes) and a.id == b.id for a, b in zip(first, again, strict=True))
    assert sorted(opened.out.glob('kept/queries-*')) == kept
    opened.continued(dataclasses.replace(PROMPT, sampling=Sampling(temperature=2.)))
    assert len(list(opened.out.glob('kept/queries-*'))) == len(kept) + 1


def test_ranks_are_those_of_reports(opened):
    rows = causal.measure(opened, PROMPT)
    keys = [(row.method, row.channel, row.prompt) for row in rows]
    assert keys == [*(('default', channel, reading) for reading in ('masked', 'counted')
                      for channel in ('P', 'M', 'P + M')),
                    *(('code histogram', 'black box', reading) for reading in ('masked', 'counted'))]
    attributor = Attributor(opened.musicgen.lm, opened.musicgen.compression_model, opened.stores[0].path)
    for query in opened.continued(PROMPT):
        scores = attributor.scores([query.example(opened.musicgen.lm, True)])['P']
        place = attributor.song_ids.index(query.source)
        assert rows[0].ranks[query.source] == 1 + (scores > scores[place]).sum()
    for row in rows:
        values = np.array(list(row.ranks.values()))
        assert row.first.mean == np.mean(values == 1) and row.reciprocal.mean == pytest.approx(np.mean(1 / values))


def test_a_song_finds_itself(opened):
    rows = own.measure(opened)
    assert [row.channel for row in rows] == ['P', 'M', 'P + M'] and len(rows[0].ranks) == 6
    for row in rows:
        assert row.mean < 3.5  # the middle of six: a query is the song itself, but in one chunk
        assert own.worst(row) == sorted(((s, r) for s, r in row.ranks.items() if r > 1), key=lambda x: -x[1])[:5]


def test_some_songs_can_be_asked_alone(opened):
    everything, some = own.measure(opened), own.measure(opened, 3)
    assert [len(row.ranks) for row in some] == [3] * 3 and some[0].songs == 6
    for row, whole in zip(some, everything, strict=True):
        assert set(row.ranks) < set(whole.ranks)  # with ranks that rounding moves: this model has learnt nothing
        assert all(1 <= rank <= row.songs == whole.songs for rank in row.ranks.values())


def test_the_worst_are_named_first(opened):
    scores = np.array([[0., 1., 2.], [0., 5., 1.], [3., 4., 2.]])
    row = causal.found('r', 'm', 'P', 'none', scores, opened.songs[:3], opened.ids[:3])
    assert list(row.ranks.values()) == [3., 1., 3.] and row.first.mean == pytest.approx(1 / 3)
    assert own.worst(row) == sorted([(opened.ids[0], 3.), (opened.ids[2], 3.)])


def test_kept_scores_are_the_scores(opened):
    method = opened.methods()[0]
    first, again = (kept_scores(method, opened.songs, False, opened) for _ in range(2))
    np.testing.assert_array_equal(first['M'], again['M'])
    method.lm = method.attributor = None  # what is kept needs no model
    with pytest.raises(AttributeError):
        kept_scores(method, opened.songs, False, opened)
    np.testing.assert_allclose(opened.methods()[0].scores(opened.songs, False)['M'], first['M'])


# -- reproducibility ------------------------------------------------------------------------------------------------

def test_repeats_are_the_same_bits_and_half_precision_is_not(opened):
    rows = repro.measure(opened, count=2, repeats=2)
    by_way = {way: [row for row in rows if row.way == way] for way in dict.fromkeys(row.way for row in rows)}
    assert list(by_way)[:5] == ['repeat', 'batch 2', 'batch 4', 'batch 8', '2 threads'] and 'bf16' in by_way
    checkpoints = len(opened.stores[0].checkpoints)
    for way, some in by_way.items():
        assert len(some) == 2 * checkpoints
        assert all(row.compared == (4 if way == 'repeat' else 2) for row in some)
        if way == 'repeat':
            assert all(row.equal == row.compared and row.largest == 0. for row in some)
        else:
            assert all(row.largest < (1e-2 if way == 'bf16' else 1e-8) for row in some)
    assert any(row.largest > 1e-9 for row in by_way['bf16'])


def test_distances_below_rounding_are_told():
    reference = np.random.default_rng(0).normal(size=(3, 50))
    turned = reference * 2
    turned[1, 0] += 1e-7
    turned[2, 3] = np.nan
    same, near, broken = repro.distances(turned, reference)
    assert same < 1e-30 and 1e-18 < near < 1e-14 and np.isnan(broken)


# -- false payments -------------------------------------------------------------------------------------------------

def test_payments_are_those_of_reports(opened, strangers):
    queries, files = false_payments.strangers_of(opened, strangers)
    assert len(queries) == 3  # the silent one owes nothing to anybody anyway
    sources = opened.continued(PROMPT)
    rows, refused = false_payments.measure(opened, {'recordings': queries}, sources, files)
    attributor = Attributor(opened.musicgen.lm, opened.musicgen.compression_model, opened.stores[0].path)
    gate = next(name for name, recipe in false_payments.gates(attributor.recipe).items()
                if recipe.hash == attributor.recipe.hash)
    found = {(row.family, row.prompt, row.channel): row for row in rows if row.gate == gate}
    assert set(found) == {*(('recordings', 'own', c) for c in ('P', 'M', 'any')),
                          *(('continuations', p, c) for p in ('masked', 'counted') for c in ('P', 'M', 'any'))}
    reports = [attributor.attribute_file(files[query.id]) for query in queries]
    for channel in ('P', 'M'):
        paid = [any(row.share > 0 for row in report.channels[channel].rows) for report in reports]
        row = found['recordings', 'own', channel]
        assert row.paid.mean == pytest.approx(np.mean(paid)) and row.source is None
        assert row.amount == pytest.approx(np.mean([1 - report.channels[channel].unattributed for report in reports]))
    report = [attributor.attribute_codes(
        query.codes, attributes_for(opened.musicgen.lm, query.text),
        QueryFacts(prompt_seconds=1., prompt_song_id=query.source)) for query in sources]
    for prompt, channels in (('masked', [one.channels for one in report]),
                             ('counted', [one.other_reading.channels for one in report])):
        shares = [next(row.share for row in one['M'].rows if row.track_id == query.source)
                  for query, one in zip(sources, channels, strict=True)]
        row = found['continuations', prompt, 'M']
        assert row.source.mean == pytest.approx(np.mean(np.array(shares) > 0))
        assert row.source_share == pytest.approx(np.mean(shares))


def test_every_gate_that_recipes_know_is_tried(opened):
    recipe = recipe_from_dict(opened.stores[0].identity.recipe)
    gates = false_payments.gates(recipe)
    if 'kind' in type(recipe.gate).model_fields:
        assert set(gates) == {'paper', 'calibrated'}
        assert all(changed.gate.kind == name for name, changed in gates.items())
    else:
        assert gates == {'as it is': recipe}
    assert all(false_payments.allowed(changed) == pytest.approx(.05) for changed in gates.values())
    assert {changed.fingerprint_hash for changed in gates.values()} == {recipe.fingerprint_hash}


def test_another_models_music_is_asked(opened, other):
    queries = false_payments.others_of(opened, other, each=2, seconds=1.)
    assert [query.family for query in queries] == ['free', 'free', 'continued', 'continued']
    rows, _ = false_payments.measure(opened, {'generations': queries}, opened.continued(PROMPT))
    assert {row.queries for row in rows if row.family == 'generations'} == {4}


def test_songs_of_the_catalogue_are_no_strangers(project, opened, other):
    with pytest.raises(LuminaError, match='is song-0 of a store'):
        false_payments.strangers_of(opened, project.manifest)
    with pytest.raises(LuminaError, match='was trained on song-0'):
        false_payments.others_of(opened, opened)
    copied = dataclasses.replace(opened.songs[2], id='copy', codes=opened.songs[2].codes[:, :80])
    prompted = opened.continued(PROMPT)[1]
    for query in (copied, prompted):
        with pytest.raises(LuminaError, match=f'{query.id} has the codes of {query.source}'):
            false_payments.expect_strangers([*other.songs, query], opened.songs, 50.)
    changed = dataclasses.replace(copied, codes=copied.codes.clone())
    changed.codes[0, 70] = (changed.codes[0, 70] + 1) % 16
    false_payments.expect_strangers([*other.songs, changed], opened.songs, 50.)


# -- the commands -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, options, words', [
    ('causal', ['--seconds', '1', '--count', '3'], '| code histogram | black box |'),
    ('self', ['--count', '4'], '| default | P + M |'),
    ('repro', ['--songs', '2', '--repeats', '2'], '| bf16 | M |'),
    ('false-payments', ['--seconds', '1', '--count', '3', '--strangers', 'STRANGERS'], '| recordings | 3 | any |')])
def test_the_commands(opened, strangers, capsys, name, options, words):
    from lumina_plugin.cli import main
    options = [str(strangers) if word == 'STRANGERS' else word for word in options]
    out = opened.out  # where the tests above have left what they finished
    main(['validate', name, '--out', str(out), '--model', str(opened.run), *options])
    assert words in capsys.readouterr().out
    folder = out / name
    assert (folder / f'{name}.png').read_bytes().startswith(b'\x89PNG') and words in (folder / f'{name}.md').read_text()
    assert json.loads((folder / f'{name}.json').read_text())


@pytest.mark.parametrize('argv, words', [
    (['causal', '--model', 'facebook/musicgen-small'], 'no dora run'),
    (['causal', '--seconds', '10', '--model', 'RUN'], 'leaves nothing to continue'),
    (['causal', '--seconds', '5', '--model', 'RUN'], 'no query is left'),
    (['false-payments', '--model', 'RUN'], '--strangers'),
    (['leave-out'], 'lumina validate ground-truth')])
def test_bad_input_is_one_sentence(opened, tmp_path, capsys, argv, words):
    from lumina_plugin.cli import main
    argv = [str(opened.run) if word == 'RUN' else word for word in argv]
    with pytest.raises(SystemExit) as stop:
        main(['validate', *argv, '--out', str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error.splitlines()[-1]
