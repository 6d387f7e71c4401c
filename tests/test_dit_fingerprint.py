"""Fingerprints of a latent diffusion model against gradients of one example by autograd, and against themselves."""

import dataclasses

import numpy as np
import pytest
import torch

from lumina_plugin.capture import full_gradient
from lumina_plugin.dit.attribution import DiTAttributor
from lumina_plugin.dit.fingerprint import DiTFingerprinter
from lumina_plugin.dit.objective import DiffusionLoss
from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Song
from lumina_plugin.hashing import model_config_hash, state_hash
from lumina_plugin.passes import measured_noise
from lumina_plugin.recipe import get_recipe, recipe_from_dict
from lumina_plugin.store import CheckpointInfo, FingerprintStore, Identity, TrackRecord

from .tiny_dit import tiny_dit, tiny_examples

RECIPE = get_recipe('dit', draws=3, projection={'dim': 64, 'block_width': None, 'residual_dim': 16})


@pytest.fixture(scope='module')
def dit():
    return tiny_dit()


def test_gradients_are_those_of_autograd(dit):
    """Batched, over all draws, of P and M at once: each example's own gradient of its own loss."""
    examples = tiny_examples(dit, 4)
    fingerprinter = DiTFingerprinter(dit, RECIPE, batch_size=3)
    names = [block.name for blocks in fingerprinter.channels.values() for block in blocks]
    assert len(names) == 2 * 4 + 1
    found = {name: torch.zeros(4, 1) for name in names}
    rows = {}
    for index, gradients in fingerprinter.batches(examples, {name: full_gradient for name in names}):
        for place, row in enumerate(index):
            rows[row] = {name: gradient[place] for name, gradient in gradients.items()}
    parameters = dict(dit.denoiser.named_parameters())
    for row, example in enumerate(examples):
        loss = DiffusionLoss(dit, RECIPE.draws, seed=RECIPE.projection.seed).losses([example])[0]
        expected = torch.autograd.grad(loss, [parameters[name] for name in names])
        for name, gradient in zip(names, expected, strict=True):
            torch.testing.assert_close(rows[row][name], gradient, rtol=1e-4, atol=1e-6)
    assert set(found) == set(rows[0])


def test_the_convolution_behind_the_output_projection_says_nothing_more(dit):
    """Its gradient is a linear image of that of `proj_out`, which is why channel M leaves it out."""
    parameters = dict(dit.transformer.named_parameters())
    conv, out = parameters['postprocess_conv.weight'], parameters['proj_out.weight']
    loss = DiffusionLoss(dit, 2).losses(tiny_examples(dit, 1))[0]
    of_conv, of_out = torch.autograd.grad(loss, [conv, out])
    mixed = torch.eye(len(out)) + conv[:, :, 0].detach()
    inner = torch.linalg.solve(mixed.T, of_out)  # Σ δ hᵀ
    torch.testing.assert_close(of_conv[:, :, 0], inner @ out.detach().T, rtol=1e-4, atol=1e-6)


def test_other_weights_are_lent_and_nothing_is_left_behind(dit):
    examples = tiny_examples(dit, 2)
    before = state_hash(dit.denoiser.state_dict())
    other = {name: tensor + 0.01 for name, tensor in dit.denoiser.state_dict().items()}
    reducers = {block.name: full_gradient for block in DiTFingerprinter(dit, RECIPE).blocks.values()}
    lent = DiTFingerprinter(dit, RECIPE, other).gradients(examples, reducers)
    own = DiTFingerprinter(dit, RECIPE).gradients(examples, reducers)
    assert all(not torch.allclose(lent[name], own[name]) for name in own)
    assert state_hash(dit.denoiser.state_dict()) == before
    assert all(p.grad is None for p in dit.denoiser.parameters())


def test_a_recipe_of_another_objective_is_refused(dit):
    with pytest.raises(LuminaError, match='v_objective'):
        DiTFingerprinter(dit, get_recipe('default'))


def test_draws_enter_the_hash_of_this_recipe_alone():
    assert get_recipe('dit', draws=8).fingerprint_hash != get_recipe('dit').fingerprint_hash
    assert 'draws' not in get_recipe('default').model_dump() and 'draws' in get_recipe('dit').describe()
    with pytest.raises(LuminaError, match='v_objective'):
        get_recipe('default', objective={'P': 'v_objective', 'M': 'margin'})


def test_songs_find_themselves_through_a_store_of_two_checkpoints(dit, tmp_path):
    """The whole route: fit, store, query with each checkpoint's own weights, scores, statistics."""
    songs = [Song(f'song-{i}', [dataclasses.replace(e, id=f'song-{i}')]) for i, e in enumerate(tiny_examples(dit, 6))]
    store = FingerprintStore.create(tmp_path / 'dit', Identity(
        model_id='tiny', model_config_hash=model_config_hash(dit.denoiser), codec_hash='c',
        recipe_hash=RECIPE.fingerprint_hash, recipe=RECIPE.model_dump(mode='json'), catalogue_hash='k',
        dim=RECIPE.projection.dim, channels=list(RECIPE.channels)),
        [TrackRecord(id=song.id, duration=1., sha256=song.id) for song in songs])
    for epoch in (1, 2):
        weights = {name: tensor * (1 + 0.05 * epoch) for name, tensor in dit.denoiser.state_dict().items()}
        info = CheckpointInfo(name=f'epoch-{epoch:04d}', epoch=epoch, model_hash=state_hash(weights))
        info = info.model_copy(update={'weights': store.save_weights(info, weights)})
        fingerprinter = DiTFingerprinter(dit, RECIPE, weights)
        projections, windows = fingerprinter.fit(songs)
        with store.writer(info) as writer:
            for channel, projection in projections.items():
                writer.put_projection(channel, projection.tensors(), projection.facts())
            for found in fingerprinter.fingerprints(songs):
                writer.add(found.song, found.vectors, found.norms, found.chunk_norms)
            writer.finish(noise=measured_noise(store, info.name))
    attributor = DiTAttributor(dit, FingerprintStore.open(tmp_path / 'dit'), codec_hash='c')
    queries = [list(song.examples) for song in songs]
    scores = attributor.scores(queries)
    assert set(scores) == {'P', 'M'} and scores['P'].shape == (6, 6)
    for channel in scores:
        assert (np.argmax(scores[channel], 1) == np.arange(6)).all()
    statistics = attributor.statistics(queries[0])
    assert np.argmax(statistics['P'].sts) == 0 and statistics['P'].cosine[0] == pytest.approx(1, abs=1e-3)
    with pytest.raises(LuminaError):
        DiTAttributor(dit, FingerprintStore.open(tmp_path / 'dit'), codec_hash='another')
    assert recipe_from_dict(attributor.store.identity.recipe) == RECIPE
