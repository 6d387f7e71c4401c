"""The capture against one-example autograd, over the ways audiocraft computes attention."""

import dataclasses

import pytest
import torch

from lumina_plugin.capture import GradientCapture, Moments, TwoSided, full_gradient
from lumina_plugin.channels import LAYER_GROUPS, resolve_blocks
from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Fingerprinter
from lumina_plugin.gradients import Example
from lumina_plugin.recipe import get_recipe

from .oracle import oracle, relative_error
from .tiny import build_lm, build_songs


@pytest.mark.parametrize('batch', [1, 3, 8])
@pytest.mark.parametrize('options', [
    dict(memory_efficient=True), dict(custom=True, memory_efficient=False), dict(checkpointing='torch'),
    dict(n_q=8), dict(fuse='cross'), dict(positional_embedding='rope'), dict(custom=False, memory_efficient=False),
    dict(fuse='cross', custom=False, memory_efficient=False, bias_attn=True),
], ids=lambda options: ','.join(f'{k}={v}' for k, v in options.items()))
def test_batched_capture_equals_autograd(options, batch):
    lm = build_lm(**options)
    recipe = get_recipe('default', channels={'A': ['all']}, objective='margin' if batch == 3 else 'cross_entropy')
    examples = [example for song in build_songs(lm, 6) for example in song.examples][:batch]
    fingerprinter = Fingerprinter(lm, recipe)
    captured = fingerprinter.gradients(examples, {name: full_gradient for name in fingerprinter.blocks})
    for row, example in enumerate(examples):
        expected = oracle(lm, example, recipe.objective)
        for name, gradient in captured.items():
            assert relative_error(gradient[row], expected[name]) < 1e-5, (name, row)


def test_masked_frames_give_no_gradient():
    """What a prompt's codes should have been is not asked; as context they stay."""
    lm = build_lm()
    example = build_songs(lm, 1)[0].examples[0]
    fingerprinter = Fingerprinter(lm, get_recipe('default', objective='margin', channels={'M': ['output_linears']}))
    masked = Example(example.codes, 10, example.stop, example.attributes)
    captured = fingerprinter.gradients([masked], {name: full_gradient for name in fingerprinter.blocks})
    expected = oracle(lm, masked, 'margin')
    whole = oracle(lm, example, 'margin')
    for name, gradient in captured.items():
        torch.testing.assert_close(gradient[0], expected[name], rtol=1e-4, atol=1e-7)
        assert (gradient[0] - whole[name]).norm() > 0.1 * whole[name].norm()


def test_two_sided_reduction_is_the_reduced_gradient():
    generator = torch.Generator().manual_seed(0)
    a, delta = torch.randn(3, 7, 10, generator=generator), torch.randn(3, 7, 12, generator=generator)
    u_in, u_out = torch.randn(10, 4, generator=generator), torch.randn(12, 5, generator=generator)
    whole = full_gradient(a, delta)
    for both, expected in ((TwoSided(u_in, u_out), u_out.T @ whole @ u_in), (TwoSided(None, u_out), u_out.T @ whole),
                           (TwoSided(u_in, None), whole @ u_in)):
        torch.testing.assert_close(both(both.keep(a), delta), expected)


def test_moments_are_second_moments_over_all_positions():
    generator = torch.Generator().manual_seed(0)
    a, delta = torch.randn(3, 7, 4, generator=generator), torch.randn(3, 7, 5, generator=generator)
    moments = Moments()
    moments(a[:2], delta[:2])
    moments(a[2:], delta[2:])
    moments.settle()
    torch.testing.assert_close(moments.a, torch.einsum('bti,btj->ij', a, a))
    torch.testing.assert_close(moments.delta, torch.einsum('bti,btj->ij', delta, delta))
    moments(a, torch.zeros_like(delta))  # positions without a gradient are no evidence of which inputs matter
    moments.settle()
    moments(a, delta)
    moments.forget()
    moments.settle()
    torch.testing.assert_close(moments.a, torch.einsum('bti,btj->ij', a, a))


def test_what_follows_the_music_does_not_matter():
    lm = build_lm()
    example = build_songs(lm, 1)[0].examples[0]  # its last frames are padding
    other = dataclasses.replace(example, codes=example.codes.clone())
    other.codes[:, example.stop:] = 3
    fingerprinter = Fingerprinter(lm, get_recipe('default'))
    reducers = {name: full_gradient for name in fingerprinter.blocks}
    for a, b in zip(fingerprinter.gradients([example], reducers).values(),
                    fingerprinter.gradients([other], reducers).values(), strict=True):
        assert torch.equal(a, b)


def test_model_is_left_as_it_was():
    lm = build_lm()
    lm.train()
    lm.transformer.layers[0].eval()  # a mode that is not the same everywhere
    modes = [module.training for module in lm.modules()]
    weights = {name: p.clone() for name, p in lm.named_parameters()}
    for p in lm.parameters():
        p.grad = torch.ones_like(p)
    state = torch.get_rng_state()
    songs = build_songs(lm, 5)
    recipe = get_recipe('default', projection={'block_width': 4, 'dim': 32, 'residual_dim': 8})
    fingerprinter = Fingerprinter(lm, recipe)
    fingerprinter.fit(songs)
    list(fingerprinter.fingerprints(songs))
    assert [module.training for module in lm.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for name, p in lm.named_parameters():
        assert torch.equal(p, weights[name]) and p.requires_grad and torch.equal(p.grad, torch.ones_like(p))


def test_an_unseen_weight_is_an_error_not_a_weaker_channel():
    weight = torch.zeros(3, 3)
    with GradientCapture({'w': weight}, {'w': full_gradient}) as capture:
        pass
    with pytest.raises(LuminaError, match='No gradient reached w'):
        capture.collect()


def test_channels_resolve_to_the_papers_sources():
    lm = build_lm(fuse='cross')
    names = [block.name for block in resolve_blocks(lm, ['self_attention'])]
    assert names == [f'transformer.layers.{i}.self_attn.{w}' for i in range(2)
                     for w in ('in_proj_weight', 'out_proj.weight')]
    assert [block.name for block in resolve_blocks(lm, ['output_linears'])] == [f'linears.{k}.weight' for k in range(4)]
    assert not set(names) & {block.name for block in resolve_blocks(lm, ['cross_attention'])}
    with pytest.raises(LuminaError, match=', '.join(LAYER_GROUPS)):
        resolve_blocks(lm, ['nothing'])
    with pytest.raises(LuminaError, match='no regular expression'):
        resolve_blocks(lm, ['('])
    every = {group: {block.name for block in resolve_blocks(lm, [group])} for group in LAYER_GROUPS}
    assert every.pop('all') == set().union(*every.values()) - every['cross_attention_key_value']
    assert every['feed_forward'] == {f'transformer.layers.{i}.linear{n}.weight' for i in range(2) for n in (1, 2)}
    without = [block.name for block in resolve_blocks(build_lm(), ['all'])]  # a model without cross attention
    assert set(without) == every['self_attention'] | every['feed_forward'] | every['output_linears']
    own = [block.name for block in resolve_blocks(lm, [r'transformer\..*_attn\..*'])]
    assert own == names  # patterns mean parameters, never parts of one


@pytest.mark.parametrize('plain', [False, True])
def test_keys_and_values_of_cross_attention_alone(plain):
    lm = build_lm(fuse='cross', memory_efficient=not plain)
    channels = {'X': ['cross_attention_key_value']}
    fingerprinter = Fingerprinter(lm, get_recipe('default', channels=channels))
    example = build_songs(lm, 1)[0].examples[0]
    captured = fingerprinter.gradients([example], {name: full_gradient for name in fingerprinter.blocks})
    expected = oracle(lm, example, 'margin')
    assert len(captured) == 2
    for block in fingerprinter.channels['X']:
        rows = expected[block.parameter][16:]  # dim 16: after the queries' rows
        assert captured[block.name].shape == (1, 32, 16)
        torch.testing.assert_close(captured[block.name][0], rows, rtol=1e-4, atol=1e-7)
    with pytest.raises(LuminaError, match='a part of it'):
        resolve_blocks(lm, ['cross_attention', 'cross_attention_key_value'])


def test_attention_that_cannot_be_captured_is_refused():
    attention = torch.nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True)
    x = torch.randn(1, 3, 8)
    with GradientCapture({'w': attention.in_proj_weight.detach()}, {'w': full_gradient}):
        with pytest.raises(LuminaError, match='bias_k'):
            attention(x, x, x, need_weights=False)
    lm = build_lm(custom=False, memory_efficient=False, checkpointing='torch')
    fingerprinter = Fingerprinter(lm, get_recipe('default'))
    with pytest.raises(LuminaError, match='checkpointed'):
        fingerprinter.gradients(build_songs(lm, 1)[0].examples, {name: full_gradient for name in fingerprinter.blocks})
