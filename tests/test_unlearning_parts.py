"""Around unlearning: masks, what is kept on disk, recipes, embeddings."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lumina_plugin.conditions import attributes_for
from lumina_plugin.errors import LuminaError
from lumina_plugin.gradients import Example
from lumina_plugin.hashing import state_hash
from lumina_plugin.unlearning.embeddings import frechet, pick_targets
from lumina_plugin.unlearning.fisher import Identity, diagonal_fisher, kronecker_fisher
from lumina_plugin.unlearning.kept import (
    facts_of,
    load_fisher,
    load_losses,
    path_of,
    save_fisher,
    save_losses,
    songs_hash,
)
from lumina_plugin.unlearning.masks import MaskedSong, Masker, Piece, frame_levels
from lumina_plugin.unlearning.musicgen import MusicGenSubject
from lumina_plugin.unlearning.recipe import unlearning_recipe
from lumina_plugin.unlearning.step import forget, lent_to, loss_of

from .test_unlearning import autograd_loss, learner_of, lm, songs, unpadded  # noqa: F401 (two are fixtures)
from .tiny import build_codec, build_lm, build_songs

# -- masks ------------------------------------------------------------------------------------------------------------

def test_frames_that_do_not_count_are_left_out_of_the_loss(lm):  # noqa: F811
    song = unpadded(lm, 1)[0]
    counted = torch.arange(20) % 3 > 0
    masked = Piece('masked', [Example(e.codes, e.start, e.stop, e.attributes, counted) for e in song.examples])
    assert masked.examples[0].weight == int(counted.sum())
    assert loss_of(learner_of(lm), masked) == pytest.approx(float(autograd_loss(lm, masked)), abs=1e-5)
    assert abs(loss_of(learner_of(lm), masked) - loss_of(learner_of(lm), song)) > 1e-4


def test_masked_codes_give_no_gradient_but_are_read(lm):  # noqa: F811
    song = unpadded(lm, 1)[0].examples[0]
    counted = torch.zeros(20, dtype=torch.bool)
    counted[3:9] = True
    masked = Piece('m', [Example(song.codes, 0, 20, song.attributes, counted)])
    later, earlier = song.codes.clone(), song.codes.clone()
    later[:, 13:] = (later[:, 13:] + 1) % lm.card  # behind all that counts, whatever the delay
    earlier[:, 0] = (earlier[:, 0] + 1) % lm.card  # read on the way to what counts
    ask = learner_of(lm)
    value = loss_of(ask, masked)
    assert loss_of(ask, Piece('l', [Example(later, 0, 20, song.attributes, counted)])) == pytest.approx(value, abs=1e-6)
    assert abs(loss_of(ask, Piece('e', [Example(earlier, 0, 20, song.attributes, counted)])) - value) > 1e-5


def test_levels_are_in_decibels():
    wav = torch.cat([torch.zeros(100), torch.full((100,), 0.1), torch.ones(100)])[None]
    found = frame_levels(wav, 3)
    assert found[0] == -math.inf
    torch.testing.assert_close(found[1:], torch.tensor([-20., 0.]).double(), rtol=0, atol=1e-4)


def test_silence_is_masked_and_an_empty_mask_names_the_song(lm):  # noqa: F811
    codec, _ = build_codec()
    song = build_songs(lm, 1)[0]
    levels = frame_levels(codec.decode(song.examples[0].codes[None])[0], 24)
    between = float(levels.sort().values[10:12].mean())
    found = Masker(codec, between).masked(song)
    assert found.examples[0].weight == int((levels[:song.examples[0].stop] >= between).sum())
    with pytest.raises(LuminaError, match='Nothing of song-0 is left'):
        Masker(codec, 0.).masked(Piece('song-0', [Example(song.examples[0].codes, 0, 24, None)]))
    lazy = MaskedSong(song, Masker(codec, between))
    for _ in range(2):
        assert torch.equal(lazy.examples[0].counted, found.examples[0].counted)


def test_the_three_masks(lm):  # noqa: F811
    codec, _ = build_codec()
    subject = MusicGenSubject(Path('x'), lm, codec, build_songs(lm, 2))
    song = subject.songs[0]
    for mask, asked, read_masked in (('none', False, False), ('mixed', True, False), ('both', True, True)):
        recipe = unlearning_recipe('default', mask=mask)
        assert (subject.query_of(song, recipe).examples[0].counted is not None) == asked
        read = subject.songs_of(recipe)[0].examples[0]
        assert (read.counted is not None) == read_masked
        assert read.stop == song.examples[0].stop  # padding never counts, as in training


# -- what is kept -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [diagonal_fisher, kronecker_fisher])
def test_fisher_information_survives_the_disk(lm, songs, tmp_path, make):  # noqa: F811
    learner = learner_of(lm, 'output_linears')
    found = make(learner, songs)
    facts = facts_of(found.kind, 'output_linears', 'cross_entropy', state_hash(lm.state_dict()), songs_hash(songs))
    path = save_fisher(path_of(tmp_path, facts), found, facts)
    again = load_fisher(path, facts)
    gradient = {name: torch.randn(learner.weight(name).shape) for name in learner.blocks}
    for name, step in found.step(gradient, 0.1, 0.5).items():
        assert torch.equal(step, again.step(gradient, 0.1, 0.5)[name])


@pytest.mark.parametrize('change, says', [
    ({'checkpoint': 'x'}, 'another checkpoint'), ({'songs': 'x'}, 'other songs'), ({'layers': 'P'}, 'other layers'),
    ({'objective': 'margin'}, 'another objective'), ({'extra': {'T': 1}}, 'other settings')])
def test_anothers_fisher_information_is_refused(lm, songs, tmp_path, change, says):  # noqa: F811
    facts = facts_of('diagonal', 'output_linears', 'cross_entropy', state_hash(lm.state_dict()), songs_hash(songs))
    path = save_fisher(tmp_path / 'f.safetensors', diagonal_fisher(learner_of(lm, 'output_linears'), songs), facts)
    with pytest.raises(LuminaError, match=says):
        load_fisher(path, {**facts, **change})


def test_damaged_files_are_told(lm, songs, tmp_path):  # noqa: F811
    facts = facts_of('diagonal', 'output_linears', 'cross_entropy', state_hash(lm.state_dict()), songs_hash(songs))
    path = tmp_path / 'f.safetensors'
    path.write_bytes(b'nothing of the kind')
    with pytest.raises(LuminaError, match='cannot be read as Fisher'):
        load_fisher(path, facts)
    assert load_losses(path, facts) is None
    save_losses(path, np.arange(3.), facts)
    np.testing.assert_array_equal(load_losses(path, facts), np.arange(3.))
    assert load_losses(path, {**facts, 'checkpoint': 'x'}) is None


def test_songs_are_known_by_codes_texts_and_what_counts(lm):  # noqa: F811
    from dataclasses import replace
    song = build_songs(lm, 1)[0]
    example = song.examples[0]
    others = [replace(example, codes=example.codes + 1), replace(example, stop=3),
              replace(example, attributes=attributes_for(lm, 'another')), replace(example, counted=torch.ones(24) > 0)]
    assert len({songs_hash([Piece('a', [one])]) for one in [example, *others]}) == 5


def test_steps_that_would_overshoot_are_refused(lm, songs):  # noqa: F811
    learner = learner_of(lm)
    with pytest.raises(LuminaError, match='overshoot'):
        forget(learner, Identity(learner.blocks), songs[0], unlearning_recipe('default', fisher='identity', lr=9.,
                                                                              steps=2), 6)


def test_an_earlier_checkpoint_is_lent_whole(lm, songs):  # noqa: F811
    early = {name: tensor + 0.01 for name, tensor in lm.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    learner = learner_of(lm, weights=early)
    gone = forget(learner, Identity(learner.blocks), songs[0], unlearning_recipe('default', fisher='identity'), 6)
    with lent_to(lm, learner, gone.offsets, early):
        assert float(autograd_loss(lm, songs[0])) == pytest.approx(gone.after, abs=1e-4)
    assert all(torch.equal(tensor, state[name]) for name, tensor in lm.state_dict().items())


def test_a_moved_checkpoint_has_its_own_file(lm, songs):  # noqa: F811
    facts = facts_of('diagonal', 'all', 'cross_entropy', state_hash(lm.state_dict()), songs_hash(songs))
    with torch.no_grad():
        lm.linears[0].weight.add_(1e-3)
    other = facts_of('diagonal', 'all', 'cross_entropy', state_hash(lm.state_dict()), songs_hash(songs))
    assert facts != other and path_of(Path('x'), facts) != path_of(Path('x'), other)


# -- recipes ----------------------------------------------------------------------------------------------------------

def test_recipes_take_one_size():
    assert unlearning_recipe('default', lr=1e-3).relative is None
    assert unlearning_recipe('published', relative=1e-3).lr is None
    assert unlearning_recipe('published').hash != unlearning_recipe('default').hash
    assert unlearning_recipe('default', name='x').hash == unlearning_recipe('default').hash
    for bad in (dict(lr=1., relative=1.), dict(mask='all'), dict(damping=0), dict(steps=0), dict(stps=1)):
        with pytest.raises(LuminaError, match='correct it|did you mean steps'):
            unlearning_recipe('default', **bad)
    with pytest.raises(LuminaError, match='no unlearning recipe'):
        unlearning_recipe('best')


def test_layer_groups_that_a_model_has(lm):  # noqa: F811
    def has(lm, layers):
        return MusicGenSubject(Path('x'), lm, None, []).has_layers(layers)
    assert has(lm, 'P') and has(lm, 'all') and not has(lm, 'cross_attention')
    assert has(build_lm(fuse='cross'), 'cross_attention_key_value')


# -- embeddings -------------------------------------------------------------------------------------------------------

def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(200_000, 2)) * [1., 2.]
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet(one, one + [3., 4.]) == pytest.approx(25., rel=1e-6)
    assert frechet(one, one * [2., 1.]) == pytest.approx(1., rel=0.02)  # (1 - 2)² in one dimension


def test_targets_cover_the_songs():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(20, 3)) * 0.1 + centre for centre in (0, 10, 20, 30)])
    assert sorted(row // 20 for row in pick_targets(rows, 4)) == [0, 1, 2, 3]
    assert pick_targets(rows, 100) == list(range(80))
    assert len(set(pick_targets(np.zeros((9, 2)), 5))) == 5
