"""Ground truth of a small diffusion transformer: `python benchmarks/dit_ground_truth.py RUN --heldout MANIFEST`.

Retrains the run on 24 halves of its catalogue and asks every model about 16 free generations and 16 held-out songs.
Resumable; `--part I/N` trains every N-th model from the I-th on, so that several processes can share the work.
"""

import argparse
import logging
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='folder of a run of solver=lumina/dit_quickstart')
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

    from lumina_plugin.dit.ground_truth import FILE, make_truth
    from lumina_plugin.errors import LuminaError
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    torch.set_num_threads(args.threads)
    try:
        first, _, count = args.part.partition('/')
        truth = make_truth(args.run, args.heldout, args.work, (int(first), int(count)), args.halves, draws=args.draws)
    except (LuminaError, ValueError) as error:
        print(f'Error: {error}', file=sys.stderr)
        sys.exit(2)
    if truth is not None:
        print(f'{len(truth.models)} models, {len(truth.queries)} queries: {args.work / FILE}')


if __name__ == '__main__':
    main()
