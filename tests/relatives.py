"""AudioGen's and MAGNeT's language models, small: audiocraft's own builders on audiocraft's own configurations."""

import typing as tp
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lumina_plugin.conditions import attributes_for
from lumina_plugin.fingerprint import Song
from lumina_plugin.gradients import Example

from .tiny import LMModel

DEFAULT = Path(__file__).parent.parent / 'config' / 'model' / 'lm' / 'default.yaml'  # as audiocraft's lm/default
TEXTS = ['slow waltz', 'rain on a tin roof', None, 'dog barking far away on a tin roof', 'plucked strings']
SMALL = dict(dim=16, num_heads=2, num_layers=2, hidden_scale=2, n_q=4, card=16)

# What differs from lm/default in audiocraft's model/lm/audiogen_lm with conditioner/text2sound ...
AUDIOGEN: tp.Dict[str, tp.Any] = dict(
    transformer_lm=SMALL,
    conditioners=dict(description=dict(model='t5', t5=dict(name='t5-large', finetune=False, word_dropout=0.))))
# ... and in its solver/magnet/magnet_32khz with conditioner/text2music, but at 20 frames per second instead of 50
MAGNET: tp.Dict[str, tp.Any] = dict(
    lm_model='transformer_lm_magnet', codebooks_pattern=dict(modeling='parallel', parallel=dict(empty_initial=-1)),
    transformer_lm=dict(causal=False, subcodes_context=5, compression_model_framerate=20, segment_duration=2,
                        span_len=3, **SMALL),
    conditioners=dict(description=dict(model='t5', t5=dict(name='t5-base', finetune=False, word_dropout=0.3))))


def build_relative(patch: pytest.MonkeyPatch, config: tp.Mapping[str, tp.Any], **transformer_lm: tp.Any) -> LMModel:
    """A language model that reads its text by cross attention, with random weights.

    Of T5, only what is downloaded is replaced: the weights and the words that it knows, by a small T5 of the same
    classes. MAGNeT masks its attention in xformers' way, which is switched on for as long as `patch` lasts.
    """
    from audiocraft.models.builders import get_lm_model
    from audiocraft.modules import transformer
    from audiocraft.modules.conditioners import T5Conditioner, T5EncoderModel, T5Tokenizer
    from transformers import T5Config
    words = sorted({word for text in TEXTS if text for word in text.split()})
    vocabulary = [('<pad>', 0.), ('</s>', 0.), ('<unk>', -9.), *((f'▁{word}', -2.) for word in words)]
    patch.setattr(T5Tokenizer, 'from_pretrained', lambda name: T5Tokenizer(vocabulary, extra_ids=0))
    patch.setattr(T5EncoderModel, 'from_pretrained', lambda name: T5EncoderModel(T5Config(
        vocab_size=len(vocabulary), d_model=T5Conditioner.MODELS_DIMS[name], d_kv=8, d_ff=16, num_layers=1,
        num_heads=2)))
    if config.get('lm_model') == 'transformer_lm_magnet':
        patch.setattr(transformer, '_efficient_attention_backend', 'xformers')
    torch.manual_seed(0)
    return get_lm_model(OmegaConf.merge(OmegaConf.load(DEFAULT), dict(
        device='cpu', dtype='float32', dataset=dict(segment_duration=2), attribute_dropout={},
        classifier_free_guidance=dict(training_dropout=0.1, inference_coef=3.0),
        fuser=dict(cross_attention_pos_emb=False, cross_attention_pos_emb_scale=1, sum=[], prepend=[],
                   cross=['description'], input_interpolate=[])), config, dict(transformer_lm=transformer_lm)))


def build_captioned(lm: LMModel, frames: int = 24) -> tp.List[Song]:
    """Random songs of two chunks each, the second of them padded, with texts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    return [Song(f'song-{i}', [Example(torch.randint(0, lm.card, (lm.n_q, frames), generator=generator), 0, stop,
                                       attributes_for(lm, text)) for stop in (frames, frames - 7)])
            for i, text in enumerate(TEXTS)]
