"""How well a codec keeps music: `python benchmarks/codec_quality.py [CODEC] [--catalogue FOLDER] [--json FILE]`.

Encodes and decodes the 16 held-out songs of the embedded catalogue, which no training ever sees, and prints
- chroma cosine: per frame, the cosine between the 12 pitch-class energies of original and reconstruction; mean over
  audible frames of a song (RMS of the original above -60 dBFS), then over songs. Two kinds of chroma, both librosa's at
  concert pitch (tuning 0): `chroma_stft` (2048 samples, hop 512: librosa's defaults) and `chroma_cqt` (hop 512).
  `mismatched` is the same figure between a reconstruction and the next song's original: what keeping nothing scores.
- mel distance: mean absolute difference of log10 mel spectrograms (64 bands, floor 1e-5), averaged over windows of 512,
  1024, 2048 and 4096 samples; 0.1 is 2 dB of energy.
- codebook use: share of each codebook's entries that occur at all in the codes of these songs.
- seconds to encode and to decode 10 s of audio: the median of seven runs, wall clock.
"""

import argparse
import json
import sys
import time
import typing as tp
from pathlib import Path

import numpy as np

HOP = 512
AUDIBLE = 10 ** (-60 / 20)


def chroma(y: np.ndarray, sample_rate: int, kind: str) -> np.ndarray:
    """Pitch-class energies [12, frames] of y [T]."""
    import librosa
    if kind == 'stft':
        return librosa.feature.chroma_stft(y=y, sr=sample_rate, n_fft=2048, hop_length=HOP, tuning=0.0, norm=None)
    return librosa.feature.chroma_cqt(y=y, sr=sample_rate, hop_length=HOP, tuning=0.0, norm=None)


def audible_frames(y: np.ndarray) -> np.ndarray:
    """Which frames of y [T] are louder than -60 dBFS: [frames], on the grid of `chroma`."""
    import librosa
    return librosa.feature.rms(y=y, frame_length=2048, hop_length=HOP)[0] > AUDIBLE


def chroma_cosine(reference: np.ndarray, estimate: np.ndarray, audible: np.ndarray) -> float:
    """Mean cosine over audible frames. reference, estimate: [12, frames], of which the common part is compared."""
    n = min(reference.shape[1], estimate.shape[1], len(audible))
    a, b = reference[:, :n], estimate[:, :n]
    cosine = (a * b).sum(0) / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-12)
    return float(cosine[audible[:n]].mean())


def mel_distance(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Multi-resolution distance of log mel spectrograms, see the module. Both [T]."""
    import librosa
    distances = []
    for n_fft in (512, 1024, 2048, 4096):
        mels = [np.log10(1e-5 + librosa.feature.melspectrogram(
            y=y, sr=sample_rate, n_fft=n_fft, hop_length=n_fft // 4, n_mels=64, fmin=40))
            for y in (reference, estimate)]
        distances.append(np.abs(mels[0] - mels[1]).mean())
    return float(np.mean(distances))


def median_seconds(call: tp.Callable[[], tp.Any], repeats: int = 7) -> float:
    """Median wall-clock seconds of `call`, after one call that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(model, songs: tp.Sequence[tp.Tuple[str, np.ndarray]]) -> tp.Dict[str, tp.Any]:
    """All figures. songs: (name, audio [T] at the codec's rate), at least two."""
    import torch

    from lumina_plugin import codec
    rate = int(model.sample_rate)
    used = torch.zeros(model.num_codebooks, model.cardinality, dtype=torch.bool)
    rows: tp.List[tp.Dict[str, tp.Any]] = []
    chromas: tp.List[tp.Dict[str, tp.Tuple[np.ndarray, np.ndarray]]] = []
    masks = []
    for name, song in songs:
        codes = codec.encode(model, torch.from_numpy(song)[None, None])  # [1, K, T]
        back = codec.decode(model, codes)[0, 0, :len(song)].numpy()
        for k in range(codes.shape[1]):
            used[k, codes[0, k].unique()] = True
        chromas.append({kind: (chroma(song, rate, kind), chroma(back, rate, kind)) for kind in ('stft', 'cqt')})
        masks.append(audible_frames(song))
        rows.append({'song': name, 'mel_distance': mel_distance(song, back, rate)})
    for i, row in enumerate(rows):
        j = (i + 1) % len(rows)
        for kind in ('stft', 'cqt'):
            row[f'chroma_{kind}'] = chroma_cosine(*chromas[i][kind], masks[i])
            row[f'mismatched_{kind}'] = chroma_cosine(chromas[j][kind][0], chromas[i][kind][1], masks[j])
    figures = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != 'song'}
    ten = torch.from_numpy(np.resize(songs[0][1], 10 * rate))[None, None]
    codes = codec.encode(model, ten)
    return {
        **figures, 'codebook_use': used.float().mean(1).tolist(),
        'encode_seconds_per_10s': median_seconds(lambda: codec.encode(model, ten)),
        'decode_seconds_per_10s': median_seconds(lambda: codec.decode(model, codes)),
        'threads': torch.get_num_threads(), 'frame_rate': float(model.frame_rate), 'sample_rate': rate,
        'hash': codec.codec_hash(model), 'songs': rows}


def heldout_songs(catalogue: Path, sample_rate: int) -> tp.List[tp.Tuple[str, np.ndarray]]:
    """The held-out songs of the embedded catalogue, rendered first if need be: (id, audio [T])."""
    import librosa
    import soundfile

    from lumina_plugin.embedded import build_embedded
    manifest = build_embedded(catalogue).heldout
    songs = []
    for line in manifest.read_text().splitlines():
        path = Path(json.loads(line)['path'])
        wav, rate = soundfile.read(path, dtype='float32')
        songs.append((path.stem, librosa.resample(wav, orig_sr=rate, target_sr=sample_rate)
                      if rate != sample_rate else wav))
    return songs


def table(result: tp.Mapping[str, tp.Any]) -> str:
    """Figures as text, one line per song and the means."""
    keys = ('chroma_stft', 'mismatched_stft', 'chroma_cqt', 'mismatched_cqt', 'mel_distance')
    lines = [f"{'song':<14}" + ''.join(f'{key:>17}' for key in keys)]
    for row in [*result['songs'], {**result, 'song': 'mean'}]:
        lines.append(f"{row['song']:<14}" + ''.join(f'{row[key]:>17.3f}' for key in keys))
    lines.append('codebook use     ' + '  '.join(f'{use:.0%}' for use in result['codebook_use']))
    lines.append(f"encode {result['encode_seconds_per_10s']:.3f} s, decode {result['decode_seconds_per_10s']:.3f} s "
                 f"per 10 s of audio, {result['threads']} threads")
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('codec', nargs='?', help='as load_codec takes it; the codec in the package by default')
    parser.add_argument('--catalogue', type=Path, default=Path('outputs/embedded'))
    parser.add_argument('--json', type=Path, help='also write the figures there')
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed
    from lumina_plugin.errors import LuminaError
    try:
        import torch

        from lumina_plugin.atomic import write_json
        from lumina_plugin.codec import load_codec
        torch.set_num_threads(args.threads)
        model = load_codec(args.codec)
        result = measure(model, heldout_songs(args.catalogue, int(model.sample_rate)))
        print(table(result))
        print(json.dumps({key: value for key, value in result.items() if key != 'songs'}))
        if args.json:
            write_json(args.json, result)
    except LuminaError as error:
        print(f'Error: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
