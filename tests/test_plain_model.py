"""The copy of a model that peers are given says and learns what the model itself does."""

import pytest
import torch

from lumina_plugin.errors import LuminaError
from lumina_plugin.gradients import Example
from lumina_plugin.recipe import get_recipe
from lumina_plugin.validation.plain_model import PlainModel, loader

from .oracle import oracle, relative_error
from .tiny import build_lm, build_songs

CHANNELS = get_recipe('default').channels


def examples_of(lm):
    """Whole ones, one whose prompt is masked, padded ones, and one whose codes end early."""
    found = [song.examples[0] for song in build_songs(lm, 4)]
    return [*found, Example(found[1].codes, 6, 24, found[1].attributes),
            Example(found[0].codes[:, :15], 3, 15, found[0].attributes)]


@pytest.mark.parametrize('fuse', ['prepend', 'cross'])
@pytest.mark.parametrize('objective', ['cross_entropy', 'margin'])
def test_gradients_are_those_of_the_model_itself(fuse, objective):
    lm = build_lm(fuse=fuse)
    examples = examples_of(lm)
    state = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    model = PlainModel(lm, CHANNELS).load(state).train_only(CHANNELS)
    for example, row in zip(examples, model.tensors(examples), strict=True):
        found = model(**{name: tensor[None] for name, tensor in row.items()})
        model.zero_grad()
        (found.losses if objective == 'cross_entropy' else found.margins).sum().backward()
        expected = oracle(lm, example, objective)
        for names in model.layers.values():
            for name in names:
                original = name.removeprefix('lm.').replace('in_proj', 'in_proj_weight')
                original = original if original in expected else original + '.weight'
                gradient = model.get_submodule(name).weight.grad
                assert relative_error(gradient, expected[original]) < 1e-4
    tapped = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(tapped) == sum(map(len, model.layers.values()))
    assert all(torch.equal(tensor, state[name]) for name, tensor in lm.state_dict().items())  # the model is untouched


def test_batches_hold_one_where_texts_differ_in_length():
    lm = build_lm()
    rows = PlainModel(lm, CHANNELS).tensors(examples_of(lm))
    assert loader(rows).batch_size > 1
    assert loader([*rows, {**rows[0], 'condition_0': torch.zeros(3)}]).batch_size == 1


def test_an_attention_that_the_copy_does_not_know_is_refused():
    lm = build_lm(qk_layer_norm=True).eval()
    for layer in lm.transformer.layers:  # as drawn it would hardly be seen
        torch.nn.init.normal_(layer.self_attn.q_layer_norm.weight, std=4.)
    example = examples_of(lm)[0]
    with pytest.raises(LuminaError, match='--peers'):
        PlainModel(lm, CHANNELS).expect_like(lm, example)
    plain = build_lm().eval()
    PlainModel(plain, CHANNELS).expect_like(plain, example)
