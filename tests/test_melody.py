"""Melody generation: a chroma condition from real (small) HTDemucs stems, prepended to the music."""

import pytest
import torch

from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Fingerprinter, Song
from lumina_plugin.models import make_musicgen
from lumina_plugin.recipe import get_recipe

from .tiny import build_codec, build_lm, build_songs


@pytest.fixture(scope='module')
def musicgen():
    """A melody MusicGen: only the separator's pretrained weights are replaced, by a small HTDemucs of the same
    class."""
    from audiocraft.models import MusicGen
    from audiocraft.modules.conditioners import ChromaStemConditioner, ConditionFuser, ConditioningProvider
    from demucs import pretrained
    from demucs.htdemucs import HTDemucs
    small = HTDemucs(['drums', 'bass', 'other', 'vocals'], channels=16, dconv_comp=4, depth=2, t_layers=0,
                     samplerate=16000, segment=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, 'get_model', lambda name: small)
        chroma = ChromaStemConditioner(output_dim=16, sample_rate=16000, n_chroma=12, radix2_exp=9, duration=1.,
                                       match_len_on_eval=False, device='cpu')
    lm = build_lm(fuse='prepend')
    text = lm.condition_provider.conditioners['description']
    lm.condition_provider = ConditioningProvider({'self_wav': chroma, 'description': text})
    lm.fuser = ConditionFuser({'sum': [], 'cross': [], 'input_interpolate': [], 'prepend': ['self_wav', 'description']})
    codec, _ = build_codec()
    return make_musicgen(MusicGen, 'melody', codec, lm.eval(), 1.)


def test_melody_generations_are_attributed_under_their_melody(musicgen, tmp_path):
    from lumina_plugin import attach
    from lumina_plugin.catalogue import build_catalogue
    from lumina_plugin.codec import codec_hash
    from lumina_plugin.hashing import state_hash
    from lumina_plugin.passes import make_identity, open_or_create, run_pass
    from lumina_plugin.prepared import prepare
    from lumina_plugin.store import CheckpointInfo
    from lumina_plugin.tokens import Tokenizer

    from .tiny import write_songs
    recipe = get_recipe('default', chunk_seconds=1., projection={'dim': 64, 'residual_dim': 16})
    catalogue = build_catalogue(write_songs(tmp_path / 'songs', 4), tmp_path / 'catalogue', progress=False).catalogue
    digest = codec_hash(musicgen.compression_model)
    prepared = prepare(catalogue, Tokenizer(musicgen.compression_model, digest, 1.), musicgen.lm)
    identity = make_identity('melody', musicgen.lm, digest, recipe, catalogue, None)
    store = open_or_create(tmp_path / 'store', identity, prepared)
    run_pass(Fingerprinter(musicgen.lm, recipe), prepared, store,
             CheckpointInfo(name='live', model_hash=state_hash(musicgen.lm.state_dict())))
    attachment = attach(musicgen, store)
    musicgen.set_generation_params(duration=1., extend_stride=0.5, top_k=16)
    melody = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)[None]
    musicgen.generate_with_chroma(['slow waltz'], melody[None], 16000)
    with_melody = musicgen.last_attributions[0]
    assert with_melody.query.prompt == 'slow waltz' and len(with_melody.channels['P'].rows) == 4
    musicgen.generate_with_chroma(['slow waltz', 'fast'], [melody, None], 16000)
    assert len(musicgen.last_attributions) == 2
    musicgen.set_generation_params(duration=1.6, extend_stride=0.5, top_k=16)
    musicgen.generate_with_chroma(['slow waltz'], melody[None], 16000)  # windows overwrite the melody they were given
    assert len(musicgen.last_attributions[0].channels['M'].segments) == 2
    attachment.detach()


def test_the_melody_changes_the_gradient(musicgen):
    """The condition takes part in teacher forcing: the same codes under another melody are another query."""
    from audiocraft.modules.conditioners import WavCondition
    lm = musicgen.lm
    fingerprinter = Fingerprinter(lm, get_recipe('paper'))
    songs = build_songs(lm, 2)
    fingerprinter.fit(songs)
    example = songs[0].examples[0]
    import copy
    import dataclasses
    attributes = copy.deepcopy(example.attributes)
    wav = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)[None, None]
    attributes.wav['self_wav'] = WavCondition(wav, torch.tensor([16000]), [16000], [None], [0.])
    plain, _ = fingerprinter.query([example])
    melodic, _ = fingerprinter.query([dataclasses.replace(example, attributes=attributes)])
    assert torch.dot(plain['P'], melodic['P']) < 0.999


def test_a_later_chunk_goes_on_in_the_melody():
    """As MusicGen moves a melody along: from where the chunk begins, and from its start again after its end."""
    from audiocraft.modules.conditioners import WavCondition

    from lumina_plugin.conditions import attributes_at
    attributes = build_songs(build_lm(), 1)[0].examples[0].attributes
    assert attributes_at(attributes, 10.) is attributes
    wav = torch.arange(50.)[None, None]
    attributes.wav['self_wav'] = WavCondition(torch.nn.functional.pad(wav, (0, 14)), torch.tensor([50]), [10], [None])
    moved = attributes_at(attributes, 7.)
    assert torch.equal(moved.wav['self_wav'].wav[0, 0], (torch.arange(50) + 70) % 50 + 0.)
    assert attributes.wav['self_wav'].wav.shape[-1] == 64 and attributes_at(attributes, 0.) is attributes


def test_a_model_without_melody_says_so_itself():
    lm = build_lm()
    assert 'self_wav' not in build_songs(lm, 1)[0].examples[0].attributes.wav
    with pytest.raises(LuminaError):
        list(Fingerprinter(lm, get_recipe('default')).fingerprints([Song('a', build_songs(lm, 1)[0].examples)]))
