"""The quickstart as a grid: recipes and seeds side by side.

    dora grid lumina.quickstart --dry_run --init

Without `--dry_run` a grid needs Slurm; `dora run solver=lumina/quickstart` needs nothing.
"""

from ._explorers import LuminaExplorer


@LuminaExplorer
def explorer(launcher):
    launcher.slurm_(gpus=1, cpus_per_gpu=4, mem_per_gpu=8, time=30)
    launcher.bind_(solver='lumina/quickstart')

    # the quickstart itself, then with other seeds: how much of an attribution is luck?
    launcher()
    for seed in [1, 2, 3]:
        launcher(seed=seed)

    # width of the model; P grows with it four times as fast as M
    wide = launcher.bind({'transformer_lm.dim': 192, 'transformer_lm.num_heads': 6})
    wide()
