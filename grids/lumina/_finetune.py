"""What the grids that fine-tune MusicGen have in common."""

import os

GPUS = 8

# The same folder for training and validation: with `datasource.valid` songs of their own, chance is measured by those.
_FOLDER = os.environ.get('LUMINA_SONGS', 'outputs/mine')
SONGS = {'dset': 'audio/default', 'datasource.train': _FOLDER, 'datasource.valid': _FOLDER}

LARGE = {'solver': 'lumina/musicgen_large', 'optim.max_norm': 3.}
