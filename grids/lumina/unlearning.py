"""Unlearning on a model with a ground truth: step, Fisher information, layers and mask, each recipe a run.

    dora grid lumina.unlearning --dry_run --init

A run forgets each query of the truth and 40 of the training songs, and shows what its scores foretell of retraining
beside what the step did to the model. Nothing is trained. LUMINA_TRUTH names another ground truth than the repository's
(`lumina validate ground-truth` makes one), LUMINA_RUN the folder or signature of the run, where it is not the one that
the truth names. The Fisher information of a checkpoint is computed once for all runs that share its layers; so are the
generations of the untouched model.

Without Slurm, `lumina unlearn grid` does the part with the truth in one process.
"""

import itertools
import os

from ._explorers import UnlearningExplorer

TRUTH = os.environ.get('LUMINA_TRUTH', 'benchmarks/ground_truth.safetensors')
RUN = os.environ.get('LUMINA_RUN')

# an lr means nothing without the scale of the Fisher information: beside the published one, lengths of the way
SIZES = [{'unlearning.lr': 1e-6}, *({'unlearning.relative': length} for length in [1e-3, 3e-3, 1e-2, 3e-2])]


@UnlearningExplorer
def explorer(launcher):
    launcher.slurm_(gpus=1, cpus_per_gpu=4, mem_per_gpu=16, time=4 * 60)
    launcher.bind_({'solver': 'lumina/unlearning', 'unlearning.truth': TRUTH})
    if RUN:
        launcher.bind_({'unlearning.of': RUN})

    with launcher.job_array():
        # what the paper found best, its hardly damped Fisher included
        launcher({'unlearning.preset': 'published'})

        # how far, in how many steps, held by what: the keys that depend on each other. `identity` holds nothing, and
        # tells what the Fisher information is worth at all
        for fisher, steps, size in itertools.product(['kronecker', 'diagonal', 'adam', 'identity'], [1, 4], SIZES):
            if fisher == 'identity' and (steps > 1 or 'unlearning.lr' in size):
                continue  # without F, an lr is as large as it likes: several steps would overshoot, 1e-6 is nothing
            launcher(size, {'unlearning.fisher': fisher, 'unlearning.steps': steps, 'unlearning.layers': 'all',
                            'unlearning.mask': 'mixed'})

        # which weights, and whether padding and silence count; steps of all lengths again, since fewer weights bear
        # another one. The corner (all, mixed) is above already: dora sees that it is the same run
        for layers, mask, size in itertools.product(['all', 'P', 'M'], ['mixed', 'none'], SIZES):
            launcher(size, {'unlearning.fisher': 'kronecker', 'unlearning.steps': 1, 'unlearning.layers': layers,
                            'unlearning.mask': mask})
