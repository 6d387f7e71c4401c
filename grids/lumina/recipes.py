"""Recipe ablation on the quickstart: what each key of a fingerprint's recipe does to the same model.

    dora grid lumina.recipes --dry_run --init

Keys of `fingerprint` say what is measured of a training, never what it learns, so they are not part of a signature: two
runs that differ in them alone are one run to dora. `label` makes them two. Each run trains the quickstart's model anew
and, by the same seed on the same machine, to the same weights (a fingerprint pass leaves the training untouched, to the
bit): what then differs in the table is the recipe's doing.

With one run trained already, there is a cheaper way that needs no grid; a store each, at all its checkpoints:

    lumina fingerprint SIGNATURE --set objective=cross_entropy --set name=cross-entropy
"""

from ._explorers import LuminaExplorer


@LuminaExplorer
def explorer(launcher):
    launcher.slurm_(gpus=1, cpus_per_gpu=4, mem_per_gpu=8, time=60)
    launcher.bind_(solver='lumina/quickstart')

    def recipe(label, **keys):
        """One run, whose store has the label's name."""
        launcher({'label': label, 'fingerprint.recipe.name': label},
                 {f'fingerprint.recipe.{key.replace("__", ".")}': value for key, value in keys.items()})

    # the two presets as they are: both stores in one run, since presets may be listed
    launcher({'fingerprint.recipes': ['default', 'paper']})

    # from here on, `default` (margin, fitted to 512 numbers, kernel) with one key changed
    # objective: the loss's own gradient against the log odds of the right code
    recipe('cross-entropy', objective='cross_entropy')

    # projection: how a channel's gradient becomes a vector, and how long that is
    for kind in ['random', 'separated']:
        recipe(f'projection-{kind}', projection__kind=kind)
    for dim in [64, 128, 256, 1024]:
        recipe(f'dim-{dim}', projection__dim=dim)

    # does every weight count the same, whatever the size of its gradient?
    recipe('no-block-norm', block_norm=False)

    # checkpoints: the last one alone instead of four, and twice as many. The table shows a run's latest one, and what
    # the others add is told by `lumina validate lds`
    for label, every in [('last', 8), ('every-epoch', 1)]:
        launcher({'label': label, 'fingerprint.recipe.name': label, 'fingerprint.every': every})

    # scoring: what is asked of two vectors
    for method in ['cosine', 'dot']:
        recipe(f'score-{method}', scoring__method=method)
