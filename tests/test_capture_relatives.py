"""The capture on the language models of MusicGen's relatives: AudioGen, MAGNeT, MusicGen with a melody.

Texts and melodies of unlike lengths are among the examples: audiocraft's models attend to what pads them.
"""

import copy
import dataclasses
import random

import pytest
import torch
from torch.nn import functional as F

from lumina_plugin.capture import Moments, full_gradient
from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Fingerprinter
from lumina_plugin.magnet import hidden_frames
from lumina_plugin.recipe import get_recipe

from .oracle import gradients_of, oracle, relative_error
from .relatives import AUDIOGEN, MAGNET, build_captioned, build_relative
from .test_melody import musicgen  # noqa: F401  (a fixture)


def capture(lm, examples):
    """Gradients by block name, [n, o, i], however the examples are put into batches."""
    fingerprinter = Fingerprinter(lm, get_recipe('default', channels={'A': ['all']}, objective='cross_entropy'))
    parts = list(fingerprinter.batches(examples, {name: full_gradient for name in fingerprinter.blocks}))
    order = torch.tensor([index for batch, _ in parts for index in batch]).argsort()
    return {name: torch.cat([gradients[name] for _, gradients in parts])[order] for name in fingerprinter.blocks}


def examples_of(lm, batch):
    return [example for song in build_captioned(lm) for example in song.examples][:batch]


def magnet_oracle(lm, example):
    """The training loss of audiocraft's MagnetSolver, the mean over its choice of a codebook, with the fixed spans."""
    frames = torch.arange(example.codes.shape[-1])
    spans = hidden_frames(len(frames), lm.n_q, lm.span_len) & (frames < example.stop)
    padded = example.codes.masked_fill(frames >= example.stop, lm.special_token_id)[None]

    def loss():
        conditions = lm.condition_provider(lm.condition_provider.tokenize([example.attributes]))
        losses = []
        for stage in range(lm.n_q):
            mask = torch.zeros_like(padded, dtype=torch.bool)
            mask[:, stage], mask[:, stage + 1:] = spans[stage], True
            tokens = torch.where(mask, lm.special_token_id, padded)
            logits = lm.compute_predictions(tokens, [], conditions, stage=stage).logits
            losses.append(F.cross_entropy(logits[0, stage, spans[stage]], example.codes[stage, spans[stage]]))
        return torch.stack(losses).mean()
    return gradients_of(lm, loss)


@pytest.mark.parametrize('batch', [1, 3, 8])
def test_audiogen(monkeypatch, batch):
    lm = build_relative(monkeypatch, AUDIOGEN)
    examples = examples_of(lm, batch)
    captured = capture(lm, examples)
    assert len(captured) == 4 + 2 * 6
    for row, example in enumerate(examples):
        expected = oracle(lm, example, 'cross_entropy')
        for name, gradient in captured.items():
            assert relative_error(gradient[row], expected[name]) < 1e-5, (name, row)


@pytest.mark.parametrize('options', [dict(), dict(checkpointing='torch'), dict(subcodes_context=-1)], ids=str)
@pytest.mark.parametrize('batch', [1, 3, 8])
def test_magnet(monkeypatch, batch, options):
    lm = build_relative(monkeypatch, MAGNET, **options)
    assert [mask is None for mask in lm.attn_mask_per_stage] == [True, *[bool(options.get('subcodes_context'))] * 3]
    examples = examples_of(lm, batch)
    captured = capture(lm, examples)
    assert len(captured) == 4 + 2 * 6
    for row, example in enumerate(examples):
        expected = magnet_oracle(lm, example)
        for name, gradient in captured.items():
            assert relative_error(gradient[row], expected[name]) < 1e-5, (name, row)


def test_melodies(musicgen):  # noqa: F811
    from audiocraft.modules.conditioners import WavCondition
    lm = musicgen.lm
    examples = [dataclasses.replace(example, attributes=copy.deepcopy(example.attributes))
                for example in examples_of(lm, 4)]
    for example, seconds in zip(examples, (0.6, 1.), strict=False):  # the others are without a melody
        wav = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(int(seconds * 16000)) / 16000)[None, None]
        example.attributes.wav['self_wav'] = WavCondition(wav, torch.tensor([wav.shape[-1]]), [16000], [None], [0.])
    random.seed(7)
    state = random.getstate()
    captured = capture(lm, examples)
    assert random.getstate() == state  # demucs draws where to begin; a fingerprint always lets it begin at one place
    for row, example in enumerate(examples):
        random.seed(0)
        expected = oracle(lm, example, 'cross_entropy')
        for name, gradient in captured.items():
            assert relative_error(gradient[row], expected[name]) < 1e-5, (name, row)


def test_magnets_spans_hide_as_much_as_training_does():
    hidden = hidden_frames(90, 4, 3)
    assert hidden.float().mean(-1).tolist() == pytest.approx([2 / 3] * 4)  # 2/π in training
    assert hidden[:3].sum(0).tolist() == [2] * 90  # each codebook hears another third
    assert hidden[0, :9].tolist() == [True] * 6 + [False] * 3


def test_a_magnet_that_would_ignore_its_masks_is_refused(monkeypatch):
    from audiocraft.modules import transformer
    lm = build_relative(monkeypatch, MAGNET)
    with pytest.raises(LuminaError, match='chunk_seconds'):
        capture(lm, build_captioned(lm, frames=41)[0].examples)
    monkeypatch.setattr(transformer, '_efficient_attention_backend', 'torch')
    with pytest.raises(LuminaError, match='xformers'):
        capture(lm, examples_of(lm, 1))


@pytest.mark.parametrize('config', [AUDIOGEN, MAGNET], ids=['audiogen', 'magnet'])
def test_second_moments_do_not_depend_on_neighbours(monkeypatch, config):
    lm = build_relative(monkeypatch, config)
    examples = examples_of(lm, 8)
    fingerprinter = Fingerprinter(lm, get_recipe('default', channels={'M': ['output_linears']}))
    together, apart = ({name: Moments() for name in fingerprinter.blocks} for _ in range(2))
    list(fingerprinter.batches(examples, together))
    for example in examples:
        fingerprinter.gradients([example], apart)
    for name, moments in together.items():
        torch.testing.assert_close(moments.a, apart[name].a, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(moments.delta, apart[name].delta, rtol=1e-4, atol=1e-9)
