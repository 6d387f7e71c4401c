"""Ground truth of a small diffusion transformer: `python benchmarks/dit_ground_truth.py RUN --heldout MANIFEST`.

Retrains the run on 24 halves of its catalogue and asks every model about 16 free generations and 16 held-out songs.
Resumable; `--part I/N` trains every N-th model from the I-th on, so that several processes can share the work.
`--read FILE` prints what a finished one says of itself.
"""

import argparse
import logging
import sys
import typing as tp
from pathlib import Path

if tp.TYPE_CHECKING:
    from lumina_plugin.dit.ground_truth import DiTTruth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--read', type=Path, help='a ground truth; nothing is trained')
    parser.add_argument('run', type=Path, nargs='?', help='folder of a run of solver=lumina/dit_quickstart')
    parser.add_argument('--heldout', type=Path, default=Path('outputs/embedded/egs/heldout'))
    parser.add_argument('--work', type=Path, default=Path('outputs/dit_ground_truth'))
    parser.add_argument('--part', default='0/1', help='this part of so many')
    parser.add_argument('--halves', type=int, default=24)
    parser.add_argument('--draws', type=int, default=64)
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed
    from lumina_plugin import compat
    compat.install()
    import torch

    from lumina_plugin.dit.ground_truth import FILE, DiTTruth, make_truth
    from lumina_plugin.errors import LuminaError
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    torch.set_num_threads(args.threads)
    try:
        if args.read is not None:
            return print(told(DiTTruth.load(args.read)))
        if args.run is None:
            raise LuminaError("Name the run that is retrained, or a finished ground truth by --read.")
        first, _, count = args.part.partition('/')
        truth = make_truth(args.run, args.heldout, args.work, (int(first), int(count)), args.halves, draws=args.draws)
    except (LuminaError, ValueError) as error:
        print(f'Error: {error}', file=sys.stderr)
        sys.exit(2)
    if truth is not None:
        print(f'{len(truth.models)} models, {len(truth.queries)} queries: {args.work / FILE}\n{told(truth)}')


def told(truth: 'DiTTruth') -> str:
    """How far queries' losses move together from half to half, and how much of them is chance of their draws."""
    import numpy as np
    lines = []
    for family in dict.fromkeys(truth.families):
        losses = truth.losses[:, truth.columns(family)].double().numpy()  # [models, Q, BLOCKS]
        together = np.corrcoef(losses.mean(-1).T)[np.triu_indices(losses.shape[1], 1)].mean()
        draws = np.mean([np.corrcoef(one[:, ::2].mean(-1), one[:, 1::2].mean(-1))[0, 1]
                         for one in losses.transpose(1, 0, 2)])
        lines.append(f'{family}: losses of two queries correlate over the halves at {together:.2f}, of two halves of '
                     f'the draws at {draws:.2f}')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
