"""Recipes: presets, hashes, clear refusals."""

import pytest

from lumina_plugin.errors import LuminaError
from lumina_plugin.recipe import PRESETS, get_recipe, recipe_from_dict


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
    dict(channels={'P': ['self_attention']}), dict(song_phases=2)])
def test_what_changes_a_vector_changes_the_fingerprint_hash(change):
    assert get_recipe('default', **change).fingerprint_hash != get_recipe('default').fingerprint_hash


@pytest.mark.parametrize('change', [dict(scoring={'method': 'kernel'}), dict(gate={'tail': 'one_sided'}),
                                    dict(checkpoints='last'), dict(mask_prompt=False), dict(query_phases=2)])
def test_what_changes_only_the_scoring_keeps_the_fingerprint_hash(change):
    changed, default = get_recipe('default', **change), get_recipe('default')
    assert changed.fingerprint_hash == default.fingerprint_hash and changed.hash != default.hash


@pytest.mark.parametrize('keys, named', [
    (dict(objectiv='margin'), 'objectiv'), (dict(projection={'dim': 4}), 'projection.dim'),
    (dict(gate={'level': 1.5}), 'gate.level'), (dict(channels={}), 'channels'), (dict(channels={'P': []}), 'channels'),
    (dict(projection={'dim': 64, 'residual_dim': 64}), 'residual_dim')])
def test_a_bad_key_is_named(keys, named):
    with pytest.raises(LuminaError, match=named):
        get_recipe('default', **keys)


def test_an_unknown_preset_names_the_choices():
    with pytest.raises(LuminaError, match='paper, default'):
        get_recipe('lumina')
