"""Objectives against audiocraft's own loss and closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_plugin.errors import LuminaError
from lumina_plugin.objectives import cross_entropy, get_objective, margin


def batch(seed: int, shape=(2, 3, 5), card: int = 7):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, card, generator=generator) * 3
    codes = torch.randint(0, card, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) > 0.3
    mask[..., 0] = True
    logits[~mask] = float('nan')  # as audiocraft marks them
    return logits, codes, mask


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_cross_entropy_is_audiocrafts_per_example(seed):
    logits, codes, mask = batch(seed)
    for b in range(len(codes)):
        expected = torch.stack([torch.nn.functional.cross_entropy(logits[b, k][mask[b, k]], codes[b, k][mask[b, k]])
                                for k in range(codes.shape[1])]).mean()
        torch.testing.assert_close(cross_entropy(logits, codes, mask)[b], expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_margin_is_log_odds(seed):
    logits, codes, mask = batch(seed)
    p = torch.where(mask[..., None], logits, torch.zeros(())).double().softmax(-1).gather(-1, codes[..., None])[..., 0]
    odds = torch.log(p / (1 - p))
    expected = torch.stack([torch.stack([odds[b, k][mask[b, k]].mean() for k in range(3)]).mean() for b in range(2)])
    torch.testing.assert_close(margin(logits, codes, mask).double(), expected, rtol=1e-4, atol=1e-4)


def test_margin_does_not_overflow_where_the_model_is_certain():
    logits = torch.zeros(1, 1, 1, 4)
    logits[..., 2] = 200.
    logits.requires_grad_()
    value = margin(logits, torch.full((1, 1, 1), 2), torch.ones(1, 1, 1, dtype=torch.bool))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0, 0, 2] == 1


@pytest.mark.parametrize('objective', [cross_entropy, margin])
def test_masked_logits_leave_no_nan_in_the_gradient(objective):
    logits, codes, mask = batch(0)
    logits.requires_grad_()
    objective(logits, codes, mask).sum().backward()
    assert torch.isfinite(logits.grad[mask]).all() and (logits.grad[~mask] == 0).all()


@pytest.mark.parametrize('objective', [cross_entropy, margin])
def test_an_example_without_valid_codes_is_zero(objective):
    logits, codes, mask = batch(0)
    assert (objective(logits, codes, torch.zeros_like(mask)) == 0).all()


def test_unknown_objective_names_the_choices():
    with pytest.raises(LuminaError, match='cross_entropy, margin'):
        get_objective('loss')


@pytest.mark.parametrize('objective', [cross_entropy, margin])
def test_without_a_gradient_the_values_are_the_same(objective):
    logits, codes, mask = batch(3)
    alone = objective(logits, codes, mask)
    torch.testing.assert_close(objective(logits.clone().requires_grad_(), codes, mask).detach(), alone, rtol=0, atol=0)
    assert torch.isfinite(alone).all()
