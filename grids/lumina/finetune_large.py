"""Fingerprint what `lumina.finetune` made of MusicGen large; after it, not together with it.

    LUMINA_SONGS=outputs/mine dora grid lumina.finetune_large

A sharded training keeps whole weights of its best epoch alone: the store has one checkpoint, those.
"""

from lumina_plugin.train import main

from ._explorers import LuminaExplorer
from ._finetune import GPUS, LARGE, SONGS


@LuminaExplorer
def explorer(launcher):
    launcher.slurm_(gpus=GPUS, cpus_per_gpu=8, mem_per_gpu=100, time=24 * 60)
    launcher.bind_(SONGS)

    # the very overrides of lumina.finetune, whose signature follows from them
    trained = main.get_xp(main.value_to_argv([SONGS, LARGE])).sig
    # unsharded: without gradients and moments the weights alone fit, and the 8 GPUs share the songs
    launcher(LARGE, {'fsdp.use': False, 'execute_only': 'fingerprint', 'continue_from': f'//sig/{trained}'})
