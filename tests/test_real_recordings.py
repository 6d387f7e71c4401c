"""Real music through the first half of the route: catalogue, audio, codec."""

import torch

from lumina_plugin.audio import load_audio
from lumina_plugin.catalogue import build_catalogue, check_catalogue
from lumina_plugin.codec import codec_hash, decode, encode, load_codec
from lumina_plugin.tokens import Tokenizer


def test_real_recordings_become_a_catalogue_and_codes(real_recordings, tmp_path):
    built = build_catalogue(real_recordings, tmp_path / 'catalogue', progress=False)
    assert built.songs == 8 and not built.skipped and not built.silent and not built.duplicates
    assert check_catalogue(tmp_path / 'catalogue', progress=False).ok
    codec = load_codec()
    track = min(built.catalogue, key=lambda track: track.duration)
    tokenized = Tokenizer(codec, codec_hash(codec), cache=tmp_path / 'codes').file(track.path)
    assert abs(sum(chunk.frames for chunk in tokenized.chunks) / tokenized.frame_rate - track.duration) < 0.1
    wav = load_audio(track.path, codec.sample_rate)[:, :codec.sample_rate * 4][None]
    back = decode(codec, encode(codec, wav))[..., :wav.shape[-1]]
    window = torch.hann_window(1024)
    spectra = [torch.stft(x[0, 0], 1024, window=window, return_complex=True).abs().flatten() for x in (wav, back)]
    assert torch.cosine_similarity(*spectra, dim=0) > 0.6
