"""A tiny project that several test modules share: songs, a codec, and one real training by dora."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = ['solver=lumina/quickstart', 'transformer_lm.dim=16', 'transformer_lm.num_layers=2',
        'transformer_lm.num_heads=2', 'transformer_lm.card=16', 'dataset.segment_duration=1', 'dataset.batch_size=2',
        'dataset.valid.num_samples=2', 'optim.epochs=4', 'optim.updates_per_epoch=2', 'schedule.cosine.warmup=2',
        'fingerprint.recipe.chunk_seconds=1.0',
        'fingerprint.recipe.scoring.method=cosine',  # of a model that has learnt nothing, all gradients are alike
        'num_threads=1', 'generate.lm.top_k=16']


class Project:
    """A catalogue, a codec and the dora runs of one folder."""

    def __init__(self, root: Path):
        self.root = root
        from lumina_plugin.catalogue import build_catalogue

        from .tiny import write_codec, write_outside, write_songs
        self.manifest = build_catalogue(write_songs(root / 'songs'), root / 'catalogue', progress=False).manifest
        self.codec = write_codec(root / 'codec')
        self.argv = [*TINY, f'compression_model_checkpoint={self.codec}', f'datasource.train={self.manifest.parent}',
                     f'datasource.valid={self.manifest.parent}',
                     f'fingerprint.outside={write_outside(root / "outside")}']

    def start(self, *overrides: str, processes: int = 1) -> subprocess.Popen:
        """`dora run` in a process of its own, or by several."""
        ddp = ['-d', '--ddp_workers', str(processes)] if processes > 1 else []
        return subprocess.Popen([sys.executable, '-m', 'dora', '-P', 'lumina_plugin', 'run', *ddp, *self.argv,
                                 *overrides],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.root,
                                env={**os.environ, 'LUMINA_DORA_DIR': str(self.root / 'runs')})

    def dora(self, *overrides: str, check: bool = True, processes: int = 1) -> subprocess.CompletedProcess:
        """`dora run` to its end."""
        process = self.start(*overrides, processes=processes)
        out, err = process.communicate()
        assert not check or process.returncode == 0, err[-3000:]
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def folder(self, *overrides: str) -> Path:
        from lumina_plugin.train import main
        main.dora.dir = self.root / 'runs'
        return main.get_xp([*self.argv, *overrides]).folder


@pytest.fixture(scope='session')
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp('project'))
    project.dora()
    return project


@pytest.fixture(scope='session')
def studio(project):
    from lumina_plugin.workflows import Studio
    return Studio(project.folder())
