"""Unlearning on a latent diffusion transformer, of diffusers' own classes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lumina_plugin.dit.latents import LatentEncoder
from lumina_plugin.dit.objective import DiffusionLoss
from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Song
from lumina_plugin.prepared import progress_bar
from lumina_plugin.unlearning.diffusion import DiffusionSubject
from lumina_plugin.unlearning.fisher import diagonal_fisher
from lumina_plugin.unlearning.recipe import unlearning_recipe
from lumina_plugin.unlearning.scoring import Unlearner
from lumina_plugin.unlearning.step import forget, lent_to, loss_of
from lumina_plugin.unlearning.subject import LAYERS

from .tiny_dit import tiny_dit, tiny_examples


@pytest.fixture(scope='module')
def dit():
    return tiny_dit()


@pytest.fixture
def subject(dit, tmp_path):
    return DiffusionSubject(tmp_path, dit, [Song(f'song-{i}', [example])
                                            for i, example in enumerate(tiny_examples(dit, 4))])


def recipe_of(subject, **keys):
    return subject.adapted(unlearning_recipe('default', **{'mask': 'none', 'draws': 4, 'fisher_draws': 2,
                                                           'fisher': 'diagonal', **keys}))


def test_a_score_is_the_rise_of_the_loss_at_the_same_noise(subject, dit):
    recipe = recipe_of(subject, relative=1e-2)
    unlearner = subject.unlearner(recipe, progress_bar)
    found = unlearner.scores(unlearner.songs[:1])
    gone = unlearner.forget(unlearner.songs[0])
    examples = [song.examples[0] for song in unlearner.songs]
    ask = DiffusionLoss(dit, 4, seed=unlearner.learner.recipe.projection.seed)
    with torch.no_grad():
        before = ask.losses(examples)
        with lent_to(dit.denoiser, unlearner.learner, gone.offsets):
            after = ask.losses(examples)
    np.testing.assert_allclose(found.scores[0], (after - before).numpy(), rtol=1e-3, atol=1e-6)
    assert found.after[0] > found.before[0]


def test_the_fisher_is_a_mean_over_songs_and_timesteps(subject, dit):
    recipe = recipe_of(subject, layers='M')
    learner, songs = subject.learner(recipe), subject.songs_of(recipe)
    found = diagonal_fisher(learner, songs, among=subject.timesteps(learner, recipe))
    weight = dict(dit.denoiser.named_parameters())['transformer.proj_out.weight']
    ask = DiffusionLoss(dit, 4, seed=learner.recipe.projection.seed)
    squares = torch.zeros_like(weight)
    for song in songs:
        for draw in range(2):
            loss = ask.at(song.examples, [draw])[0, 0]
            squares += torch.autograd.grad(loss, weight)[0] ** 2
    torch.testing.assert_close(found.values['transformer.proj_out.weight'], squares.detach() / (2 * len(songs)),
                               rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize('kind', ['diagonal', 'kronecker'])
def test_the_fisher_is_made_once_for_any_number_of_draws(subject, kind, monkeypatch):
    few, many = (recipe_of(subject, fisher=kind, layers='M', draws=draws) for draws in (1, 6))
    first = subject.unlearner(few, progress_bar)
    monkeypatch.setattr('lumina_plugin.unlearning.subject.kronecker_fisher', None)
    monkeypatch.setattr('lumina_plugin.unlearning.subject.diagonal_fisher', None)
    second = subject.unlearner(many, progress_bar)
    for name, tensor in first.fisher.tensors().items():
        assert torch.equal(tensor, second.fisher.tensors()[name])
    assert not np.allclose(first.before(), second.before())  # the losses are of each one's own draws


def test_the_basis_is_of_all_draws_of_the_fisher(subject, dit):
    """Second moments over both draws of what `proj_out` reads, by a hook of our own."""
    recipe = recipe_of(subject, fisher='kronecker', layers='M', draws=1)
    found = subject.unlearner(recipe, progress_bar).fisher
    heard = []
    hook = dit.transformer.proj_out.register_forward_pre_hook(lambda _, given: heard.append(given[0].detach()))
    ask = DiffusionLoss(dit, 2, seed=subject.learner(recipe).recipe.projection.seed)
    ask.at([example for song in subject.songs_of(recipe) for example in song.examples], [0, 1])
    hook.remove()
    features = torch.cat([one[:, 1:].flatten(0, 1) for one in heard]).double()  # what is prepended says nothing
    basis = found.inputs['transformer.proj_out.weight'].double()
    turned = basis.T @ features.T @ features @ basis
    assert (turned - turned.diag().diag()).abs().max() < 1e-3 * turned.diag().max()


@pytest.mark.parametrize('layers', LAYERS)
def test_every_layer_group_moves_and_nothing_else_does(subject, dit, layers):
    recipe = recipe_of(subject, layers=layers, fisher='identity')
    unlearner = subject.unlearner(recipe, progress_bar)
    gone = unlearner.forget(unlearner.songs[0])
    kept = {name: p.detach().clone() for name, p in dit.denoiser.named_parameters()}
    with lent_to(dit.denoiser, unlearner.learner, gone.offsets):
        moved = {name for name, p in dit.denoiser.named_parameters() if not torch.equal(p, kept[name])}
    names = {'all': 'transformer_blocks', 'self_attention': 'attn1', 'cross_attention': 'attn2', 'P': 'attn1',
             'cross_attention_key_value': 'attn2', 'M': 'proj_out'}
    assert moved and all(names[layers] in name for name in moved)
    if layers == 'cross_attention_key_value':
        assert all('.to_k.' in name or '.to_v.' in name for name in moved)
    assert all(torch.equal(p, kept[name]) for name, p in dit.denoiser.named_parameters())


def test_masks_of_windows(subject, dit):
    song = subject.songs[0]
    levels = torch.full((dit.frames,), -80.)
    levels[:3] = -10.
    masker = subject.masker(unlearning_recipe('default'))
    masker.sounding = lambda example: levels >= -60
    read = masker.masked(song).examples[0]
    assert read.weight == 3. and masker.whole(song).examples[0].weight == dit.frames
    padded = dataclasses.replace(song.examples[0], valid_frames=2)
    assert masker.masked(Song('short', [padded])).examples[0].weight == 2.
    masker.sounding = lambda example: levels > 0
    with pytest.raises(LuminaError, match='Nothing of song-0 is left'):
        masker.masked(song)


def test_only_what_counts_is_in_the_loss(subject):
    recipe = recipe_of(subject)
    learner, example = subject.learner(recipe), subject.songs[0].examples[0]
    counted = torch.zeros(example.latents.shape[-1], dtype=torch.bool)
    counted[:4] = True
    masked = dataclasses.replace(example, counted=counted)
    shorter = dataclasses.replace(example, valid_frames=4)
    assert learner.values([masked]).item() == pytest.approx(learner.values([shorter]).item(), rel=1e-6)
    assert learner.values([masked]).item() != pytest.approx(learner.values([example]).item(), rel=1e-4)


def test_what_is_kept_depends_on_the_draws(subject):
    recipe = recipe_of(subject)
    subject.unlearner(recipe, progress_bar)
    files = set((subject.folder / 'fisher').iterdir())
    subject.unlearner(recipe, progress_bar)
    assert set((subject.folder / 'fisher').iterdir()) == files
    subject.unlearner(recipe_of(subject, draws=6), progress_bar)
    assert len(list((subject.folder / 'fisher').iterdir())) == len(files) + 1  # losses, by the same information
    subject.unlearner(recipe_of(subject, fisher_draws=3), progress_bar)
    assert len(list((subject.folder / 'fisher').iterdir())) == 2 * len(files) + 1


def test_other_objectives_are_refused(subject):
    assert recipe_of(subject).objective == recipe_of(subject).reading == 'v_objective'
    unlearner = Unlearner(subject.learner(recipe_of(subject)), None, subject.songs,
                          recipe_of(subject).model_copy(update={'reading': 'margin'}))
    with pytest.raises(LuminaError, match='cannot answer'):
        unlearner.before()
    assert Path(subject.folder).is_dir()


def test_generations_and_songs_sound(subject, dit):
    made = subject.generated(2, 0)
    assert len(made) == 2 and made[0].shape[0] == dit.latent_channels
    assert torch.equal(subject.generated(2, 0)[1], made[1]) and not torch.equal(subject.generated(2, 1)[1], made[1])
    assert subject.sound.decode(made[0]).dim() == 1
    assert subject.sounds(subject.songs[0])[0].shape[-1] == subject.songs[0].examples[0].valid_frames


def test_a_step_is_up_the_loss_of_the_query(subject):
    recipe = recipe_of(subject, steps=3, relative=3e-3)
    unlearner = subject.unlearner(recipe, progress_bar)
    gone = forget(unlearner.learner, unlearner.fisher, subject.query_of(subject.songs[1], recipe), recipe, 4)
    assert gone.after > gone.before and gone.relative == pytest.approx(3e-3, rel=0.5)


def test_a_recording_is_asked_about_in_all_its_windows(dit, tmp_path, caplog):
    """Two and a half of them, of a run whose songs are cut to one: weighted by their frames, and told."""
    caplog.set_level('INFO')
    generator = np.random.default_rng(0)
    for name, windows in (('long', 2.5), ('short', 0.9)):
        wav = 0.3 * generator.standard_normal(round(windows * dit.seconds * dit.sample_rate))
        soundfile.write(tmp_path / f'{name}.wav', wav, dit.sample_rate, subtype='FLOAT')
    encoder = LatentEncoder(dit, windows=1, cache=tmp_path / 'cache')
    subject = DiffusionSubject(tmp_path, dit, [Song('song-0', tiny_examples(dit, 1))], encoder=encoder)
    assert len(subject.pieces([tmp_path / 'short.wav'])[0].examples) == 1 and not caplog.text
    piece, = subject.pieces([tmp_path / 'long.wav'], 'slow waltz')
    assert [example.valid_frames for example in piece.examples] == [dit.frames, dit.frames, dit.frames // 2]
    assert [example.start for example in piece.examples] == pytest.approx([0, dit.seconds, 2 * dit.seconds])
    assert len([record for record in caplog.records if '3 windows of' in record.getMessage()]) == 1
    assert encoder.windows == 1 and len(encoder.file(tmp_path / 'long.wav', 'long')) == 1  # songs stay as they were
    recipe = recipe_of(subject, mask='mixed')
    learner, query = subject.learner(recipe), subject.query_of(piece, recipe)
    values, weights = learner.values(query.examples).double(), [dit.frames, dit.frames, dit.frames // 2]
    assert [example.weight for example in query.examples] == weights  # nothing of it is silent
    assert loss_of(learner, query) == pytest.approx(float(values @ torch.tensor(weights).double()) / sum(weights))
    assert len(set(values.tolist())) == 3
    assert loss_of(learner, subject.query_of(piece, recipe_of(subject))) != pytest.approx(loss_of(learner, query))
