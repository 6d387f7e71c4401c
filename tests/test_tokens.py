"""Audio to codes: every chunk once, padding masked, remembered on disk."""

import pytest
import torch

from lumina_plugin.audio import save_audio
from lumina_plugin.codec import codec_hash
from lumina_plugin.tokens import Tokenizer

from .tiny import build_codec


@pytest.fixture(scope='module')
def codec():
    return build_codec()[0]


def noise(seconds: float) -> torch.Tensor:
    return 0.1 * torch.randn(1, int(16000 * seconds), generator=torch.Generator().manual_seed(0))


def test_every_chunk_once_and_the_last_one_padded(codec):
    tokenized = Tokenizer(codec, 'hash', chunk_seconds=1.).audio(noise(2.5))
    assert [chunk.start for chunk in tokenized.chunks] == [0., 1., 2.]
    assert [chunk.frames for chunk in tokenized.chunks] == [50, 50, 25]
    assert all(chunk.codes.shape == (4, 50) for chunk in tokenized.chunks)
    assert tokenized.codes.shape == (4, 125)


def test_chunks_are_encoded_by_themselves(codec):
    wav = noise(2.)
    tokenized = Tokenizer(codec, 'hash', chunk_seconds=1.).audio(wav)
    with torch.no_grad():
        expected = codec.encode(wav[None, :, 16000:])[0][0]
    assert torch.equal(tokenized.chunks[1].codes, expected)


def test_very_short_audio_is_one_chunk(codec):
    tokenized = Tokenizer(codec, 'hash').audio(noise(0.3))
    assert len(tokenized.chunks) == 1 and tokenized.chunks[0].frames == 15


def test_silence_is_known_per_chunk(codec):
    wav = torch.cat([noise(1.), torch.zeros(1, 16000)], dim=1)
    tokenized = Tokenizer(codec, 'hash', chunk_seconds=1.).audio(wav)
    assert [chunk.silent for chunk in tokenized.chunks] == [False, True] and not tokenized.silent


def test_generated_codes_are_cut_not_encoded_again(codec):
    codes = torch.randint(0, 16, (4, 130))
    tokenized = Tokenizer(codec, 'hash', chunk_seconds=1.).finished(codes)
    assert torch.equal(tokenized.codes, codes) and [chunk.frames for chunk in tokenized.chunks] == [50, 50, 30]
    assert len(Tokenizer(codec, 'hash', chunk_seconds=1.).finished(codes[:, :105]).chunks) == 2


def test_the_cache_knows_content_codec_and_chunking(codec, tmp_path, monkeypatch):
    path = tmp_path / 'song.wav'
    save_audio(path, noise(1.5), 16000)
    tokenizer = Tokenizer(codec, codec_hash(codec), chunk_seconds=1., cache=tmp_path / 'codes')
    first = tokenizer.file(path)
    monkeypatch.setattr(Tokenizer, 'audio', lambda *_: pytest.fail("encoded again"))
    again = tokenizer.file(path)
    assert all(torch.equal(a.codes, b.codes) and (a.frames, a.start, a.silent) == (b.frames, b.start, b.silent)
               for a, b in zip(first.chunks, again.chunks, strict=True))
    monkeypatch.undo()
    for other in (Tokenizer(codec, 'another', 1., cache=tmp_path / 'codes'),
                  Tokenizer(codec, codec_hash(codec), 0.5, cache=tmp_path / 'codes')):
        before = len(list((tmp_path / 'codes').iterdir()))
        other.file(path)
        assert len(list((tmp_path / 'codes').iterdir())) == before + 1
    save_audio(path, noise(0.7), 16000)
    assert len(tokenizer.file(path).chunks) == 1


def test_damaged_codes_are_made_again(codec, tmp_path, caplog):
    path = tmp_path / 'song.wav'
    save_audio(path, noise(1.5), 16000)
    tokenizer = Tokenizer(codec, codec_hash(codec), chunk_seconds=1., cache=tmp_path / 'codes')
    first = tokenizer.file(path)
    remembered, = (tmp_path / 'codes').iterdir()
    for damage in (b'', b'\0' * 40, remembered.read_bytes()[:-20]):
        remembered.write_bytes(damage)
        assert torch.equal(tokenizer.file(path).codes, first.codes)
        assert 'damaged' in caplog.text
        assert len(tokenizer.file(path).chunks) == 2


def test_phases_begin_within_one_frame(codec, tmp_path):
    """Four starts a quarter of a frame apart, the first of them the recording as it is."""
    wav = noise(2.5)
    path = tmp_path / 'song.wav'
    save_audio(path, wav, 16000)
    tokenizer = Tokenizer(codec, 'hash', chunk_seconds=1.)
    phases = tokenizer.phases(path, 4)  # 320 samples a frame
    expected = [tokenizer.audio(wav_of(path)[:, start:]) for start in (0, 80, 160, 240)]
    assert [len(phase.chunks) for phase in phases] == [3] * 4
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(phases, expected, strict=True))
    assert torch.equal(phases[0].codes, tokenizer.file(path).codes)
    remembering = Tokenizer(codec, 'hash', chunk_seconds=1., cache=tmp_path / 'codes')
    for _ in range(2):
        again = remembering.phases(path, 4)
        assert all(torch.equal(a.codes, b.codes) for a, b in zip(phases, again, strict=True))
    assert len(list((tmp_path / 'codes').iterdir())) == 4
    assert torch.equal(remembering.file(path).codes, phases[0].codes)
    assert len(remembering.phases(path, 2)) == 2 and len(list((tmp_path / 'codes').iterdir())) == 5
    save_audio(path, noise(0.03), 16000)
    assert len(remembering.phases(path, 4)) == len(remembering.phases(path, 4)) < 4
    assert 1 <= len(tokenizer.phases(path, 4)) < 4  # too short to lose most of a frame


def wav_of(path):
    from lumina_plugin.audio import load_audio
    return load_audio(path, 16000, 1)
