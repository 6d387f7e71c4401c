"""Packaging of lumina_plugin.

Two things are unusual, both on purpose:

- audiocraft is not among the requirements. Its release pins torch==2.1.0, av==11.0.0 and xformers<0.0.23, which cannot
  be installed beside anything current, so a second command puts it in without its pins (`make install` runs both):
      pip install --no-deps audiocraft==1.3.0
  What audiocraft imports is listed below instead.
- `config/` and `grids/` stand at the top of a checkout, where audiocraft's users look for them, and are installed as
  `lumina_plugin.config` and `lumina_plugin.grids`: a top-level package named `config` would belong to everybody.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r"^__version__ = '([^']+)'$", (HERE / 'lumina_plugin' / '__init__.py').read_text(), re.M)
README = HERE / 'README.md'

# From the oldest release that the tests were run with to the next major one. Two exceptions: the tests were run with
# torch 2.13 and torchaudio 2.11; 2.6 is the oldest torch that transformers 5 takes.
REQUIRED = [
    # what we import ourselves (audiocraft shares most of it)
    'av>=14,<19',                   # reads what soundfile cannot (m4a, video)
    'diffusers>=0.42,<0.43',        # Stable Audio's classes (lumina_plugin.dit)
    'dora-search>=0.1.12,<1',
    'filelock>=3.20,<5',            # processes that want the same Fisher information
    'flashy>=0.0.2,<1',
    'gradio>=6.31,<7',              # `lumina demo`; tabs that wrap in a narrow window
    'hydra-core>=1.3.2,<1.4',
    'jinja2>=3.1.2,<4',
    'julius>=0.2.7,<1',
    'librosa>=0.10.2,<1',
    'matplotlib>=3.9,<4',
    'mutagen>=1.48,<2',             # attributions in the tags of audio files
    'numpy>=2,<3',
    'omegaconf>=2.3,<3',
    'packaging>=24,<27',
    'pyarrow>=18,<27',              # the store's index of songs, and exports
    'psutil>=6,<8',                 # the memory that a process takes (`lumina validate soak`)
    'pydantic>=2.11,<3',
    'rich>=13.7,<16',
    'safetensors>=0.5,<1',
    'scipy>=1.14,<2',
    'soundfile>=0.13,<1',
    'torch>=2.6,<3',
    'tqdm>=4.66,<5',
    'treetable>=0.2.5,<1',
    'typer>=0.16,<1',
    # what audiocraft imports on our path
    'einops>=0.8,<1',
    'huggingface_hub>=1.3,<3',
    'num2words>=0.5.13,<1',
    'spacy>=3.8.7,<4',
    'torchaudio>=2.6,<3',
    'torchmetrics>=1.6,<2',
    'transformers>=5,<6',
    # what hub models need: T5's tokenizer, and the separation of stems in melody models
    'demucs>=4.1,<5',
    'protobuf>=5,<8',
    'sentencepiece>=0.2,<1',
]

# What `lumina validate lds --peers` and benchmarks/peers.py compare with, from the release that they were run with.
# kronfluence asks for torchvision as well, which it never imports and which must be of the same build as torch; so
# `make validate-peers` installs these without what they ask for: all that they import is here or above.
PEERS = [
    'accelerate>=1.15,<2',          # kronfluence imports it, as also einconv and opt-einsum
    'dattri>=0.3,<0.4',
    'einconv>=0.1,<1',
    'kronfluence>=1.0.1,<1.1',
    'opt-einsum>=3.4,<4',
]

# C2PA manifests: who vouches for an attribution signs it together with the audio. c2pa-python brings a native library.
C2PA = [
    'c2pa-python>=0.38,<0.39',
    'cryptography>=50,<51',         # which kind of key it is
]

setup(
    name='lumina_plugin',
    version=VERSION[1] if VERSION else None,
    description='Which training songs shaped a generated song: LUMINA attribution for audiocraft and MusicGen.',
    long_description=README.read_text(encoding='utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    python_requires='>=3.11,<3.14',
    packages=[*find_packages(include=['lumina_plugin', 'lumina_plugin.*']),
              'lumina_plugin.config',
              *(f'lumina_plugin.{name}' for name in find_packages(include=['grids', 'grids.*']))],
    package_dir={'lumina_plugin.config': 'config', 'lumina_plugin.grids': 'grids'},
    package_data={'lumina_plugin': ['**/*.safetensors', '**/*.json', '**/*.j2', '**/*.css', '**/*.js', '**/*.md'],
                  'lumina_plugin.config': ['**/*.yaml']},
    install_requires=REQUIRED,
    extras_require={'c2pa': C2PA, 'peers': PEERS,
                    # playwright drives a Chromium of the system; setuptools: a test builds the wheel without network
                    'test': [*C2PA, 'fastapi>=0.165,<1', 'httpx>=0.28,<1', 'hypothesis>=6.100,<7', 'mypy>=1.15,<3',
                             'playwright>=1.49,<2', 'pytest>=8,<10', 'ruff>=0.9,<1', 'setuptools>=68']},
    entry_points={'console_scripts': ['lumina = lumina_plugin.cli:main']},
    classifiers=['Intended Audience :: Science/Research', 'Programming Language :: Python :: 3 :: Only',
                 'Topic :: Multimedia :: Sound/Audio :: Analysis',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
)
