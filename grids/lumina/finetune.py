"""Fine-tune MusicGen small, medium and large on a catalogue of one's own, fingerprinting it alongside.

    LUMINA_SONGS=outputs/mine dora grid lumina.finetune

Needs Slurm, 8 GPUs per run and a hub for the weights; `--dry_run --init` shows the table and makes the folders without
any of them. LUMINA_SONGS names the folder of a manifest, as `lumina catalogue build` writes it.
"""

from ._explorers import LuminaExplorer
from ._finetune import GPUS, LARGE, SONGS


@LuminaExplorer
def explorer(launcher):
    # a node of eight; `time` is what one job may take, and dora asks for the next one where training is not done
    launcher.slurm_(gpus=GPUS, cpus_per_gpu=8, mem_per_gpu=100, time=3 * 24 * 60)
    # replace this by a dset of your own (config/dset) where train and valid differ
    launcher.bind_(SONGS)

    # small and medium fit into a GPU whole (DDP): fingerprints are made alongside, at 4 checkpoints, by all 8 GPUs
    launcher({'solver': 'lumina/musicgen_small'})
    launcher({'solver': 'lumina/musicgen_medium'})

    # large is sharded (FSDP), which flattens the weights that a fingerprint looks for: it is trained without, and
    # `dora grid lumina.finetune_large` fingerprints what it has become
    launcher(LARGE)
