"""What a small diffusion transformer has learnt: `python benchmarks/dit_quality.py RUN [--halves]`.

Prints
- its v-loss on the songs it was trained on and on held-out ones, and what the best linear reading of latents would
  reach: a Gaussian with their covariance over w frames, whose loss averaged over angles is the mean of the square roots
  of the covariance's eigenvalues, latents scaled to spread 1;
- at which rank songs find themselves by the fingerprints beside it, where there are any;
- with `--halves`: two models are trained on disjoint halves A and B, and the difference of their losses is compared
  between A's and B's songs; `pairs` is how often it is lower for the song of A.
"""

import argparse
import sys
import time
import typing as tp
from pathlib import Path

import numpy as np


def gaussian_losses(latents: tp.Sequence[tp.Any], widths: tp.Sequence[int] = (1, 4, 32)) -> tp.Dict[int, float]:
    """Mean of the eigenvalues' roots per window width, of latents [C, T] that hold music alone."""
    import torch
    together = torch.cat(list(latents), dim=1)
    scaled = [(z - together.mean(1, keepdim=True)) / together.std(1, keepdim=True) for z in latents]
    found = {}
    for width in widths:
        rows = torch.cat([z.unfold(1, width, max(1, width // 4)).permute(1, 0, 2).flatten(1) for z in scaled
                          if z.shape[1] >= width])
        found[width] = float(torch.linalg.eigvalsh(rows.T @ rows / len(rows)).clamp(min=0).sqrt().mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='folder of a run of solver=lumina/dit_quickstart')
    parser.add_argument('--catalogue', type=Path, default=Path('outputs/embedded'))
    parser.add_argument('--work', type=Path, default=Path('outputs/dit_quality'))
    parser.add_argument('--draws', type=int, default=16)
    parser.add_argument('--halves', action='store_true')
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed
    from lumina_plugin import compat
    compat.install()
    import torch

    from lumina_plugin.catalogue import Catalogue
    from lumina_plugin.dit.attribution import DiTAttributor
    from lumina_plugin.dit.ground_truth import retrain
    from lumina_plugin.dit.latents import LatentEncoder, prepare_latents, windows_of
    from lumina_plugin.dit.loading import load_dit
    from lumina_plugin.dit.objective import DiffusionLoss
    from lumina_plugin.validation.plan import Retrained
    torch.set_num_threads(1)
    songs = Catalogue.from_manifest(args.catalogue / 'egs' / 'train')
    dit = load_dit(args.run)
    encoder = LatentEncoder(dit, cache=args.work / 'latents')
    own = windows_of(prepare_latents(songs, encoder))
    heldout = windows_of(prepare_latents(Catalogue.from_manifest(args.catalogue / 'egs' / 'heldout'), encoder))

    @torch.no_grad()
    def losses(model: tp.Any, examples: tp.Sequence[tp.Any]) -> np.ndarray:
        loss = DiffusionLoss(model, args.draws)
        return torch.cat([loss.losses(examples[i:i + 8]) for i in range(0, len(examples), 8)]).numpy()

    print(f'v-loss, {args.draws} draws: trained on {losses(dit, own).mean():.3f}, '
          f'held out {losses(dit, heldout).mean():.3f}')
    bounds = gaussian_losses([e.latents[:, :e.valid_frames] for e in [*own, *heldout]])
    print('Gaussian: ' + ', '.join(f'{width} frames {loss:.3f}' for width, loss in bounds.items()))
    if (args.run / 'lumina' / 'dit').is_dir():
        attributor, asked = DiTAttributor(dit, args.run / 'lumina' / 'dit'), own[::8]
        begun = time.process_time()
        scores = attributor.scores([[example] for example in asked])
        print(f'{(time.process_time() - begun) / len(asked):.2f} s of processor time per query')
        for channel, rows in scores.items():
            ranks = [int((row >= row[attributor.song_ids.index(e.id)]).sum())
                     for row, e in zip(rows, asked, strict=True)]
            print(f'{channel}: {ranks.count(1)} of {len(ranks)} songs find themselves first, mean rank '
                  f'{np.mean(ranks):.2f}')
    if args.halves:
        order = np.random.default_rng(0).permutation(len(songs))
        ids = [track.id for track in songs]
        parts = [tuple(ids[i] for i in np.sort(order[k * len(ids) // 2:(k + 1) * len(ids) // 2])) for k in (0, 1)]
        found, seconds = [], []
        for name, part in zip('AB', parts, strict=True):
            begun = time.process_time()
            model = retrain(args.run, songs, Retrained(name, 'half', part, 1), args.work / 'training' / name)
            seconds.append(time.process_time() - begun)
            found.append(losses(model, own))
        gap = found[0] - found[1]
        in_a = np.array([e.id in set(parts[0]) for e in own])
        pairs = (gap[in_a][:, None] < gap[~in_a][None]).mean()
        print(f"A's songs {gap[in_a].mean():+.4f} ± {gap[in_a].std():.4f}, B's {gap[~in_a].mean():+.4f} ± "
              f'{gap[~in_a].std():.4f}, pairs {pairs:.1%}; {np.mean(seconds):.0f} s of processor time per retraining')


if __name__ == '__main__':
    main()
