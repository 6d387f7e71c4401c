"""Recipes: presets, hashes, clear refusals."""

import pytest

from lumina_plugin.errors import LuminaError
from lumina_plugin.recipe import PRESETS, ProjectionConfig, Recipe, get_recipe, recipe_from_dict


@pytest.mark.parametrize('name', PRESETS)
def test_presets_survive_a_round_trip(name):
    recipe = get_recipe(name)
    assert recipe_from_dict(recipe.model_dump(mode='json')) == recipe
    assert recipe.name == name and recipe.projection.dim == 512 and set(recipe.channels) == {'P', 'M'}


def test_paper_is_the_printed_pipeline():
    keys = get_recipe('paper').describe()
    assert keys['objective'] == 'cross_entropy' and keys['projection.kind'] == 'random' and keys['block_norm'] is False
    assert keys['scoring.method'] == 'kernel' and keys['scoring.ridge'] == 0.01
    assert keys['gate.level'] == 0.95 and keys['gate.tail'] == 'two_sided' and keys['gate.noise_floor'] == 'theory'


@pytest.mark.parametrize('change', [
    dict(objective='cross_entropy'), dict(chunk_seconds=5.), dict(block_norm=False), dict(silence_db=-50.),
    dict(projection={'seed': 1}), dict(projection={'dim': 256}), dict(projection={'block_width': 32}),
    dict(projection={'kind': 'random'}), dict(projection={'block_factors': 'random'}),
    dict(projection={'kind': 'separated'}), dict(projection={'kind': {'P': 'separated', 'M': 'fitted'}}),
    dict(projection={'residual_dim': 32}), dict(projection={'center': True}), dict(projection={'fit_songs': 64}),
    dict(channels={'P': ['self_attention']}), dict(song_phases=2)])
def test_what_changes_a_vector_changes_the_fingerprint_hash(change):
    assert get_recipe('default', **change).fingerprint_hash != get_recipe('default').fingerprint_hash


def test_those_changes_are_of_every_key_that_changes_a_vector():
    (mark,) = test_what_changes_a_vector_changes_the_fingerprint_hash.pytestmark
    changes = mark.args[1]
    assert {key for change in changes for key in change} == set(Recipe().fingerprint_keys)
    assert {key for change in changes for key in change.get('projection', {})} == set(ProjectionConfig.model_fields)


HASHES = {  # of the presets, as stores carry them
    'paper': ('a8c998221613294d04165027f3dd2dae1cab9e7429c4d2c86d1ccd95e90571cc',
              'd4da41f90dd6eb195b1b46bf63b695a92b0f3111235528fb0ccfe124b93bd9d6'),
    'default': ('d1ef09a41e762a955d721df959d14c7bef840b35551185f2abd07cf2b16a21f1',
                'cc2cf706fca4c847b4a416ec403221495de28c8cfdd04f52c531faaff5df5806')}


@pytest.mark.parametrize('name', HASHES)
def test_presets_keep_their_hashes(name):
    """A store is refused by a recipe of another hash: a new key must not change those that do without it."""
    recipe = get_recipe(name)
    assert (recipe.fingerprint_hash, recipe.hash) == HASHES[name]
    before = recipe.model_dump(mode='json')  # as a store had it before there was such a key
    assert 'block_factors' not in before['projection'] and recipe_from_dict(before).fingerprint_hash == HASHES[name][0]


def test_each_channel_may_have_its_own_kind():
    recipe = get_recipe('default', projection={'kind': {'P': 'separated', 'M': 'fitted'}})
    assert [recipe.projection.kind_of(channel) for channel in 'PM'] == ['separated', 'fitted']
    assert [recipe.projection.keeps_lengths(channel) for channel in 'PM'] == [False, True]
    assert get_recipe('default', projection={'kind': {'P': 'random'}}).projection.kind_of('M') == 'fitted'
    assert recipe_from_dict(recipe.model_dump(mode='json')) == recipe
    assert recipe.describe()['projection.kind'] == {'P': 'separated', 'M': 'fitted'}
    assert recipe.fingerprint_hash != get_recipe('default', projection={'kind': {'M': 'separated'}}).fingerprint_hash
    whole = get_recipe('default', projection={'kind': 'separated', 'dim': 64, 'residual_dim': 64})  # which says nothing
    assert whole.projection.factor_kind == recipe.projection.factor_kind == 'fitted'
    assert 'block_factors' not in whole.model_dump()['projection'] and 'lengths' not in whole.fingerprint_keys


def test_kept_lengths_are_told_from_what_the_same_keys_once_meant():
    assert get_recipe('default').projection.keeps_lengths('P') and not get_recipe('paper').projection.keeps_lengths('P')
    assert get_recipe('default').fingerprint_keys['lengths'] == 'kept'
    assert 'lengths' not in get_recipe('default', projection={'residual_dim': 8}).fingerprint_keys


def test_block_factors_follow_the_kind_unless_said():
    assert get_recipe('default').projection.factor_kind == 'fitted'
    assert get_recipe('paper', projection={'block_width': 32}).projection.factor_kind == 'random'
    mixed = get_recipe('default', projection={'block_factors': 'random'})
    assert mixed.projection.factor_kind == 'random' and mixed.describe()['projection.block_factors'] == 'random'
    assert recipe_from_dict(mixed.model_dump(mode='json')) == mixed
    said = get_recipe('default', projection={'block_factors': 'fitted'})  # what it would be anyway
    assert said.fingerprint_hash == get_recipe('default').fingerprint_hash and said.hash == get_recipe('default').hash
    assert get_recipe('default').describe()['projection.block_factors'] == 'fitted'


@pytest.mark.parametrize('change', [dict(scoring={'method': 'cosine'}), dict(gate={'tail': 'one_sided'}),
                                    dict(checkpoints='last'), dict(mask_prompt=False), dict(query_phases=2)])
def test_what_changes_only_the_scoring_keeps_the_fingerprint_hash(change):
    changed, default = get_recipe('default', **change), get_recipe('default')
    assert changed.fingerprint_hash == default.fingerprint_hash and changed.hash != default.hash


def test_each_channel_may_have_its_own_objective():
    recipe = get_recipe('default', objective={'P': 'margin', 'M': 'cross_entropy'})
    assert [recipe.objective_of(channel) for channel in 'PM'] == ['margin', 'cross_entropy']
    assert get_recipe('default', objective='margin').objective_of('M') == 'margin'
    assert recipe_from_dict(recipe.model_dump(mode='json')) == recipe
    assert recipe.describe()['objective'] == {'P': 'margin', 'M': 'cross_entropy'}


def test_each_channel_may_have_its_own_width():
    recipe = get_recipe('default', projection={'block_width': {'P': 32, 'M': 16}})
    assert [recipe.projection.width_of(channel) for channel in 'PM'] == [32, 16]
    assert get_recipe('default', projection={'block_width': 8}).projection.width_of('M') == 8
    assert get_recipe('default', projection={'block_width': 0}).projection.width_of('M') is None
    assert recipe.describe()['projection.block_width'] == {'P': 32, 'M': 16}
    other = get_recipe('default', channels={'P': ['self_attention'], 'X': ['feed_forward']})  # says nothing of X
    assert (other.projection.width_of('X'), other.objective_of('X')) == (64, 'margin')


@pytest.mark.parametrize('keys, named', [
    (dict(objectiv='margin'), 'objectiv'), (dict(projection={'dim': 4}), 'projection.dim'),
    (dict(gate={'level': 1.5}), 'gate.level'), (dict(channels={}), 'channels'), (dict(channels={'P': []}), 'channels'),
    (dict(projection={'dim': 64, 'residual_dim': 64}), 'residual_dim'),
    (dict(projection={'dim': 64, 'residual_dim': 64, 'kind': {'P': 'separated'}}), 'residual_dim'),
    (dict(projection={'kind': 'sparse'}), "projection.kind' .*'separated'"),
    (dict(projection={'kind': {'P': 'sparse'}}), 'projection.kind.P'),
    (dict(projection={'kind': {'p': 'separated'}}), 'what channel p is to find'),
    (dict(projection={'kind': 'separated'}, channels={'X': ['all']}), 'what channel X is to find; separate P and M'),
    (dict(projection={'block_width': None, 'block_factors': 'random'}), 'block_factors needs a block_width'),
    (dict(projection={'block_factors': 'sparse'}), 'projection.block_factors'),
    (dict(objective='loss'), "key 'objective' is"), (dict(objective={'P': 'margin', 'M': 'loss'}), 'objective.M'),
    (dict(projection={'block_width': {'P': 8, 'M': 0}}), 'projection.block_width.M')])
def test_a_bad_key_is_named(keys, named):
    with pytest.raises(LuminaError, match=named):
        get_recipe('default', **keys)


def test_an_unknown_preset_names_the_choices():
    with pytest.raises(LuminaError, match='paper, default'):
        get_recipe('lumina')
