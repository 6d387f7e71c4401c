"""How well an Oobleck autoencoder keeps music: `python benchmarks/autoencoder_quality.py [NAME] [--catalogue FOLDER]`.

The figures of benchmarks/codec_quality.py (which says what they are) on the same 16 held-out songs, and what a
diffusion model must know of the latents: mean and spread of each channel.
"""

import argparse
import sys
import typing as tp
from pathlib import Path

import numpy as np
from codec_quality import audible_frames, chroma, chroma_cosine, heldout_songs, median_seconds, mel_distance


def measure(vae: tp.Any, songs: tp.Sequence[tp.Tuple[str, np.ndarray]]) -> tp.Dict[str, float]:
    """All figures. songs: (name, audio [T] at the autoencoder's rate), at least two."""
    import torch
    rate, hop = int(vae.config.sampling_rate), int(vae.hop_length)
    latents, pairs = [], []
    with torch.no_grad():
        for _, song in songs:
            wav = torch.from_numpy(song)[None, None]
            z = vae.encode(torch.nn.functional.pad(wav, (0, -wav.shape[-1] % hop))).latent_dist.mode()
            latents.append(z[0])
            pairs.append((song, vae.decode(z).sample[0, 0, :len(song)].numpy()))
    figures: tp.Dict[str, float] = {'mel_distance': float(np.mean([mel_distance(*pair, rate) for pair in pairs]))}
    for kind in ('stft', 'cqt'):
        own = [(chroma(song, rate, kind), chroma(back, rate, kind)) for song, back in pairs]
        masks = [audible_frames(song) for song, _ in pairs]
        figures[f'chroma_{kind}'] = float(np.mean([chroma_cosine(*one, mask)
                                                   for one, mask in zip(own, masks, strict=True)]))
        figures[f'mismatched_{kind}'] = float(np.mean([chroma_cosine(
            own[(i + 1) % len(own)][0], own[i][1], masks[(i + 1) % len(own)]) for i in range(len(own))]))
    flat = torch.cat(latents, dim=1)
    figures.update(mean_of_means=float(flat.mean(1).abs().max()), least_spread=float(flat.std(1).min()),
                   largest_spread=float(flat.std(1).max()))
    ten = torch.from_numpy(np.resize(songs[0][1], 10 * rate))[None, None]
    with torch.no_grad():
        z = vae.encode(ten).latent_dist.mode()
        figures['encode_seconds_per_10s'] = median_seconds(lambda: vae.encode(ten), 3)
        figures['decode_seconds_per_10s'] = median_seconds(lambda: vae.decode(z), 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', nargs='?', default='lumina//oobleck', help='as load_oobleck takes it')
    parser.add_argument('--catalogue', type=Path, default=Path('outputs/embedded'))
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed
    from lumina_plugin.errors import LuminaError
    try:
        import torch

        from lumina_plugin.dit.oobleck import load_oobleck
        torch.set_num_threads(args.threads)
        vae = load_oobleck(args.name)
        for key, value in measure(vae, heldout_songs(args.catalogue, int(vae.config.sampling_rate))).items():
            print(f'{key:<24}{value:>8.3f}')
    except LuminaError as error:
        print(f'Error: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
