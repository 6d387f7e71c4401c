"""Recordings of every common kind come in; what is no recording is named."""
import hashlib
import typing as tp

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_plugin import audio
from lumina_plugin.errors import LuminaError


def tone(rate: int, seconds: float = 1., frequency: float = 440., level: float = .4) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def peak(wav: torch.Tensor, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(wav.numpy() * np.hanning(wav.shape[-1])))
    return float(spectrum.argmax()) * rate / wav.shape[-1]


def encode(path, wav: np.ndarray, rate: int, codec: str) -> None:
    """Write `[C, T]` with PyAV."""
    import av
    with av.open(str(path), 'w') as container:
        stream: tp.Any = container.add_stream(codec, rate=rate, layout='mono' if len(wav) == 1 else 'stereo')
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wav), format='fltp', layout=stream.layout.name)
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, frame_size=stream.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


# --- reading --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('rate', [8000, 11025, 16000, 22050, 32000, 44056, 44100, 47999, 48000, 96000, 192000])
def test_any_rate_gives_the_same_tone(tmp_path, rate):
    sf.write(tmp_path / 'a.wav', tone(rate), rate, subtype='FLOAT')
    wav = audio.load_audio(tmp_path / 'a.wav', 16000)
    assert wav.dtype == torch.float32 and wav.shape == (1, 16000)
    middle = slice(1000, 15000)
    assert torch.allclose(wav[0, middle], torch.from_numpy(tone(16000))[middle], atol=2e-3)


def test_what_lies_above_the_new_rate_does_not_fold_back():
    for rate in (44100, 44056):
        high = torch.from_numpy(tone(rate, 1., 11_000))[None]
        assert audio.resample(high, rate, 16000)[0, 500:-500].std() < 1e-3 * high.std()


@pytest.mark.parametrize('name,kind', [('a.wav', {}), ('a.wav', {'subtype': 'PCM_24'}), ('a.flac', {}), ('a.ogg', {}),
                                       ('a.mp3', {}), ('a.aiff', {}), ('a.opus', {'format': 'OGG', 'subtype': 'OPUS'})])
def test_formats_of_libsndfile(tmp_path, name, kind):
    sf.write(tmp_path / name, np.stack([tone(48000), tone(48000)], 1), 48000, **kind)
    wav = audio.load_audio(tmp_path / name, 16000)
    assert abs(wav.shape[-1] - 16000) < 1200 and abs(peak(wav[0], 16000) - 440) < 3


@pytest.mark.parametrize('name,codec', [('a.m4a', 'aac'), ('a.mp4', 'aac'), ('a.webm', 'libopus'), ('a.mka', 'aac')])
def test_formats_of_pyav(tmp_path, name, codec):
    encode(tmp_path / name, np.stack([tone(48000, 2.), tone(48000, 2.)]), 48000, codec)
    wav = audio.load_audio(tmp_path / name, 16000, channels=2)
    assert wav.shape[0] == 2 and abs(wav.shape[-1] - 32000) < 1600
    assert abs(peak(wav[0], 16000) - 440) < 3 and .2 < wav.abs().max() < .6


def test_the_suffix_does_not_matter(tmp_path):
    sf.write(tmp_path / 'a.wav', tone(16000), 16000)
    (tmp_path / 'a.wav').rename(tmp_path / 'a.mp3')
    assert audio.load_audio(tmp_path / 'a.mp3', 16000).shape == (1, 16000)


@pytest.mark.parametrize('seconds', [.3, 120.])
def test_short_and_long_files(tmp_path, seconds):
    sf.write(tmp_path / 'a.wav', np.tile(tone(44100, .1), int(seconds * 10)), 44100)
    assert audio.load_audio(tmp_path / 'a.wav', 16000).shape[-1] == int(seconds * 16000)


# --- channels -------------------------------------------------------------------------------------------------------

def test_mono_and_stereo():
    left, right = torch.tensor([[1., 0.]]), torch.tensor([[0., .5]])
    both = torch.cat([left, right])
    assert torch.equal(audio.downmix(both, 1), torch.tensor([[.5, .25]]))
    assert torch.equal(audio.downmix(both, 2), both)
    assert torch.equal(audio.downmix(left, 2), torch.cat([left, left]))


def test_surround_follows_the_documented_matrix():
    wav = torch.eye(6)  # one sample per channel: L R C LFE Ls Rs
    root = 2 ** -.5
    want = torch.tensor([[1, 0, root, 0, root, 0], [0, 1, root, 0, 0, root]]) / (1 + 2 * root)
    assert torch.allclose(audio.downmix(wav, 2), want)
    assert torch.allclose(audio.downmix(wav, 1), want.mean(0, keepdim=True))


@pytest.mark.parametrize('count', range(1, 12))
def test_full_scale_never_clips(count):
    for channels in (1, 2):
        mixed = audio.downmix(torch.ones(count, 10), channels)
        assert mixed.shape == (channels, 10) and torch.allclose(mixed, torch.ones(()))


def test_surround_in_an_ogg_file_is_put_in_order(tmp_path):
    """libsndfile hands on Vorbis' own order (L C R Ls Rs LFE); ffmpeg, the other reader, knows better."""
    pitches = [200, 350, 500, 650, 800, 100]
    sf.write(tmp_path / 'a.ogg', np.stack([tone(48000, 1., f) for f in pitches], 1), 48000)
    mine, _ = audio.read_audio(tmp_path / 'a.ogg')
    other, _ = audio._read_av(tmp_path / 'a.ogg')
    found = [round(peak(c, 48000), -1) for c in mine]
    assert found == [round(peak(torch.from_numpy(c), 48000), -1) for c in other] == [200, 500, 350, 100, 650, 800]


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(LuminaError, match='1 or 2'):
        audio.downmix(torch.zeros(2, 5), 3)


# --- bad input ------------------------------------------------------------------------------------------------------

def test_bad_files_are_named(tmp_path):
    sf.write(tmp_path / 'none.wav', np.zeros(0, np.float32), 16000)
    sf.write(tmp_path / 'nan.wav', np.array([0., np.nan, .1], np.float32), 16000, subtype='FLOAT')
    sf.write(tmp_path / 'inf.wav', np.array([0., np.inf, .1], np.float32), 16000, subtype='FLOAT')
    sf.write(tmp_path / 'slow.wav', np.zeros(100, np.float32), 4000)
    (tmp_path / 'empty.wav').write_bytes(b'')
    (tmp_path / 'text.mp3').write_text('not a song, ' * 500)
    (tmp_path / 'noise.m4a').write_bytes(np.random.default_rng(0).bytes(20_000))
    (tmp_path / 'folder.wav').mkdir()
    for name, words in {'none.wav': 'no samples', 'nan.wav': 'NaN', 'inf.wav': 'infinite', 'slow.wav': '4000 Hz',
                        'empty.wav': '0 bytes', 'text.mp3': 'cannot be read', 'noise.m4a': 'cannot be read',
                        'folder.wav': 'is a folder', 'gone.wav': 'does not exist'}.items():
        with pytest.raises(LuminaError, match=words) as caught:
            audio.load_audio(tmp_path / name, 16000)
        assert name in str(caught.value) and '\n' not in str(caught.value)


def test_a_damaged_flac_is_an_error_not_half_a_song(tmp_path):
    sf.write(tmp_path / 'a.flac', np.random.default_rng(0).standard_normal(48000).astype(np.float32) * .1, 48000)
    data = bytearray((tmp_path / 'a.flac').read_bytes())
    data[len(data) // 2:len(data) // 2 + 4000] = bytes(4000)
    (tmp_path / 'a.flac').write_bytes(data)
    with pytest.raises(LuminaError, match='a.flac'):
        audio.load_audio(tmp_path / 'a.flac', 16000)


def test_a_film_without_sound(tmp_path):
    import av
    with av.open(str(tmp_path / 'a.mp4'), 'w') as container:
        stream = container.add_stream('mpeg4', rate=5)
        stream.width = stream.height = 32
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode(None))
    with pytest.raises(LuminaError, match='no audio track'):
        audio.load_audio(tmp_path / 'a.mp4', 16000)


# --- chunks, silence ------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 2), st.floats(.5, 3.))
def test_each_sample_is_in_exactly_one_chunk(length, channels, seconds):
    rate = 400
    wav = torch.arange(1, length * channels + 1, dtype=torch.float32).reshape(channels, length)
    chunks = audio.chunk(wav, rate, seconds)
    size = round(seconds * rate)
    assert all(c.wav.shape == (channels, size) for c in chunks)
    joined = torch.cat([c.wav[:, :c.valid] for c in chunks], 1)
    assert torch.equal(joined, wav[:, :joined.shape[1]])
    assert 0 <= length - joined.shape[1] < audio.MIN_REMAINDER * rate
    assert [c.offset for c in chunks] == [i * size for i in range(len(chunks))]
    assert all(not c.wav[:, c.valid:].any() for c in chunks)


def test_a_short_remainder_goes_only_where_there_is_more():
    assert [c.valid for c in audio.chunk(torch.ones(1, 2050), 1000, 1.)] == [1000, 1000]
    assert [c.valid for c in audio.chunk(torch.ones(1, 2250), 1000, 1.)] == [1000, 1000, 250]
    assert [c.valid for c in audio.chunk(torch.ones(1, 50), 1000, 1.)] == [50]
    for wav, seconds in ((torch.ones(1, 0), 1.), (torch.ones(1, 5), 0.)):
        with pytest.raises(LuminaError):
            audio.chunk(wav, 1000, seconds)


def test_silence():
    hiss = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 16000)).astype(np.float32))
    assert audio.silent(torch.zeros(1, 16000)) and audio.silent(torch.zeros(1, 0)) and audio.silent(torch.zeros(1, 3))
    assert audio.silent(hiss * 10 ** (-66 / 20)) and not audio.silent(hiss * 10 ** (-54 / 20))
    assert audio.silent(torch.full((1, 16000), .5)), "a constant offset is no sound"
    sound = torch.zeros(2, 160_000)
    sound[1, 90_000:92_000] = torch.from_numpy(tone(16000, .125))
    assert not audio.silent(sound)
    mask = audio.activity_mask(sound, 16000, 50.)
    assert mask.shape == (500,) and mask.dtype == torch.bool
    assert mask.nonzero().flatten().tolist() == list(range(90_000 // 320, -(-92_000 // 320)))


# --- writing --------------------------------------------------------------------------------------------------------

def test_what_is_saved_comes_back(tmp_path):
    wav = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 5000)).astype(np.float32))
    path = audio.save_audio(tmp_path / 'new' / 'a.wav', wav, 32000)
    assert torch.allclose(audio.load_audio(path, 32000, 2), wav, atol=1 / 32768)
    assert [p.name for p in path.parent.iterdir()] == ['a.wav'] and sf.info(path).subtype == 'PCM_16'
    loud = audio.load_audio(audio.save_audio(path, torch.tensor([3., -3.]), 16000), 16000)
    assert torch.allclose(loud, torch.tensor([[1., -1.]]), atol=1e-3)


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = audio.save_audio(tmp_path / 'a.wav', torch.zeros(1, 10), 16000)
    before = path.read_bytes()
    with pytest.raises(LuminaError, match='NaN'):
        audio.save_audio(path, torch.tensor([[float('nan')]]), 16000)
    assert path.read_bytes() == before
    with pytest.raises(LuminaError, match='cannot write'):
        audio.save_audio(path / 'b.wav', torch.zeros(1, 10), 16000)


def test_file_sha256(tmp_path):
    (tmp_path / 'a').write_bytes(b'x' * 3_000_000)
    assert audio.file_sha256(tmp_path / 'a') == hashlib.sha256(b'x' * 3_000_000).hexdigest()
    with pytest.raises(LuminaError, match='gone'):
        audio.file_sha256(tmp_path / 'gone')


@pytest.mark.parametrize('name', ['song.m3u8', 'song.m4a'])
def test_a_playlist_that_calls_itself_a_recording_fetches_nothing(name, tmp_path):
    """ffmpeg tells a playlist by its content, whatever its name; docs/security.md promises that no address is asked."""
    import http.server
    import threading
    asked = []

    class Listening(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), Listening) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/secret.ts'
        (tmp_path / name).write_text(f'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n')
        with pytest.raises(LuminaError, match='cannot be read as audio'):
            audio.read_audio(tmp_path / name)
        server.shutdown()
    assert asked == []
