"""The capture under autocast in bfloat16, with weights in fp32."""

import pytest
import torch

from lumina_plugin.capture import TwoSided, full_gradient
from lumina_plugin.fingerprint import Fingerprinter
from lumina_plugin.recipe import get_recipe

from .oracle import oracle, relative_error
from .tiny import build_lm, build_songs

PATHS = pytest.mark.parametrize('options', [
    dict(), dict(custom=True, memory_efficient=False), dict(checkpointing='torch'), dict(n_q=8), dict(fuse='cross'),
    dict(custom=False, memory_efficient=False), dict(fuse='cross', custom=False, memory_efficient=False),
], ids=lambda options: ','.join(f'{k}={v}' for k, v in options.items()) or 'memory_efficient')


def autocast():
    return torch.autocast('cpu', torch.bfloat16)


def captured_and_model(batch, **options):
    lm = build_lm(**options)
    fingerprinter = Fingerprinter(lm, get_recipe('default', channels={'A': ['all']}), autocast=autocast)
    examples = [example for song in build_songs(lm, 6) for example in song.examples][:batch]
    return fingerprinter.gradients(examples, {name: full_gradient for name in fingerprinter.blocks}), lm, examples


@pytest.mark.parametrize('batch', [1, 3, 8])
@PATHS
def test_rounded_as_autograd_rounds_it_is_autograds_gradient(options, batch):
    """Both multiply the same bfloat16 numbers and add up in fp32. Autograd then rounds each weight's gradient to
    bfloat16, whose 8 bits are worth about 1.7e-3 of its length; the capture keeps fp32."""
    captured, lm, examples = captured_and_model(batch, **options)
    for row, example in enumerate(examples):
        expected = oracle(lm, example, 'margin', autocast)
        for name, gradient in captured.items():
            assert gradient.dtype == torch.float32
            assert relative_error(gradient[row], expected[name]) < 2 ** -8, (name, row)
            assert relative_error(gradient[row].bfloat16().float(), expected[name]) < 1e-5, (name, row)


def in_double(lm, example, linears):
    """Σ_t δ aᵀ in fp64, of the bfloat16 numbers that hooks on a pass of one example alone see."""
    seen = {}

    def hook_of(name):
        def hook(module, inputs, out):
            a = inputs[0].bfloat16().double()
            out.register_hook(lambda delta: seen.update({name: torch.einsum('bto,bti->oi', delta.double(), a)}))
        return hook
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in linears.items()]
    oracle(lm, example, 'margin', autocast)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize('batch', [1, 3, 8])
def test_what_is_captured_is_not_rounded(batch):
    captured, lm, examples = captured_and_model(batch)
    linears = {f'{name}.weight': module for name, module in lm.named_modules() if f'{name}.weight' in captured}
    assert len(linears) == 4 + 2 * 3  # all but the in_proj_weight, which is a bare parameter
    for row, example in enumerate(examples):
        for name, expected in in_double(lm, example, linears).items():
            assert relative_error(captured[name][row], expected) < 1e-5, (name, row)


def test_two_sided_factors_multiply_in_full_precision():
    """They are no part of the model: only what the model itself rounds is rounded."""
    lm = build_lm()
    examples = build_songs(lm, 3)[2].examples
    fingerprinter = Fingerprinter(lm, get_recipe('default', channels={'A': ['all']}), autocast=autocast)
    generator = torch.Generator().manual_seed(0)
    reducers = {name: TwoSided(torch.randn(block.in_features, 5, generator=generator),
                               torch.randn(block.out_features, 7, generator=generator))
                for name, block in fingerprinter.blocks.items()}
    found = fingerprinter.gradients(examples, reducers)
    whole = fingerprinter.gradients(examples, {name: full_gradient for name in reducers})
    for name, both in reducers.items():
        assert relative_error(found[name], both.u_out.T @ whole[name] @ both.u_in) < 1e-5, name
