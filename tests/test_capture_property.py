"""Any stack of linears: with shared weights, with some rows of a weight, with taps on whole weights or some rows."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lumina_plugin.capture import GradientCapture, full_gradient

WIDTH = 3  # of every input, and the fewest rows of a weight


@st.composite
def ranges(draw, rows):
    """Where some consecutive rows begin and end."""
    first = draw(st.integers(0, rows - 1))
    return first, draw(st.integers(first + 1, rows))


@st.composite
def stacks(draw):
    """Rows of each weight, the (weight, rows, bias?) of each layer, a tap per weight used, sizes and a seed."""
    rows = draw(st.lists(st.integers(WIDTH, 7), min_size=1, max_size=3))
    layers = []
    for _ in range(draw(st.integers(1, 5))):
        index = draw(st.integers(0, len(rows) - 1))
        first = draw(st.integers(0, rows[index] - WIDTH))
        stop = draw(st.integers(first + WIDTH, rows[index]))
        layers.append((index, first, stop, draw(st.booleans())))
    taps = {}
    for index in {layer[0] for layer in layers}:
        low, high = draw(ranges(rows[index]))
        if any(first < high and low < stop for i, first, stop, _ in layers if i == index):
            taps[index] = low, high
    return rows, layers, taps, draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(0, 2 ** 16))


def run(weights, layers, x):
    """Each layer's first outputs are the next one's inputs; all outputs count."""
    total = x.new_zeros(len(x))
    for index, first, stop, biased in layers:
        out = torch.tanh(F.linear(x, weights[index][first:stop], torch.ones(stop - first) if biased else None))
        total = total + torch.einsum('bto,o->b', out, torch.arange(1., stop - first + 1))
        x = out[..., :WIDTH]
    return total


@given(stacks())
def test_captured_is_autograd_for_any_stack(stack):
    rows, layers, taps, batch, frames, seed = stack
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(n, WIDTH, generator=generator) / math.sqrt(WIDTH) for n in rows]
    x = torch.randn(batch, frames, WIDTH, generator=generator)
    tapped = {str(index): weights[index][low:high] for index, (low, high) in taps.items()}
    capture = GradientCapture(tapped, {name: full_gradient for name in tapped})
    if tapped:
        with capture:
            run(weights, layers, x).sum().backward()
    captured = capture.collect()
    for example in range(batch):
        own = [weight.clone().requires_grad_() for weight in weights]
        run(own, layers, x[example:example + 1]).sum().backward()
        for index, (low, high) in taps.items():
            expected = own[index].grad[low:high]
            assert (captured[str(index)][example] - expected).norm() <= 1e-5 * own[index].grad.norm()
