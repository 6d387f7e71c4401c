"""Train a model as a run trained its own, on some of its songs: what ground truth is made of."""

import copy
import dataclasses
import gzip
import logging
import typing as tp
from pathlib import Path

import omegaconf
import torch

from .. import compat
from ..atomic import write_atomic
from ..catalogue import Catalogue
from ..errors import LuminaError
from ..models import run_config
from .plan import Retrained

logger = logging.getLogger(__name__)


class Retraining:
    """Trains models of a run's configuration on parts of its catalogue.

    Each gets the run's own solver, optimiser, schedule and number of epochs. An epoch of a part has as many fewer
    updates as the part is shorter, so that every song is seen as often as in the run.

    Args:
        run (Path): Folder of a dora run. catalogue (Catalogue): Its training songs.
        work (Path): Folder for what a training leaves (manifests, histories).
        threads (int): Of torch.
    """

    def __init__(self, run: Path, catalogue: Catalogue, work: Path, threads: int = 1):
        compat.install()
        self.run, self.catalogue, self.work, self.threads = run, catalogue, Path(work).absolute(), threads
        self.seconds = {track.id: track.duration for track in catalogue}

    def train(self, model: Retrained) -> torch.nn.Module:
        """Train one model.

        Returns:
            nn.Module: audiocraft `LMModel` with its last (or EMA) weights, in evaluation mode.
        Raises:
            LuminaError: when a song of the plan is not in the catalogue, or training ends with weights that are not
                finite.
        """
        import dora.xp

        from .. import train
        cfg = self._config(model)
        train.init_seed_and_system(cfg)
        train.main.dora.dir = self.run.absolute().parent.parent  # where `continue_from` finds other runs
        xp = dora.xp.XP(dataclasses.replace(train.main.dora, dir=self.work), cfg, [], sig=model.name)
        xp.folder.mkdir(parents=True, exist_ok=True)
        with xp.enter():
            solver = train.get_solver(cfg)
            solver.restore()  # where the run continued from another model, so does this one
            for _ in range(int(cfg.optim.epochs)):
                solver.run_stage('train', solver.train)
                solver.commit(save_checkpoints=False)
            weights = solver._current_weights()
        lm = tp.cast(torch.nn.Module, solver.model)
        lm.load_state_dict(weights)
        if not all(bool(torch.isfinite(weight).all()) for weight in weights.values() if weight.is_floating_point()):
            raise LuminaError(f"{model.name} ended with weights that are not finite; lower optim.lr of the run that is "
                              "to be validated.")
        return lm.eval()

    def _config(self, model: Retrained) -> omegaconf.DictConfig:
        """The run's configuration for one model: fewer songs, another seed, nothing but training."""
        missing = [song for song in model.songs if song not in self.seconds]
        if missing:
            raise LuminaError(f"{model.name} is to be trained on {missing[0]}, which is not in the catalogue; make a "
                              "new plan.")
        cfg = copy.deepcopy(run_config(self.run))
        omegaconf.OmegaConf.set_struct(cfg, False)
        part = sum(self.seconds[song] for song in model.songs) / sum(self.seconds.values())
        manifest = str(self._manifest(model))
        for split in ('train', 'valid', 'evaluate', 'generate'):
            cfg.datasource[split] = manifest
        cfg.optim.updates_per_epoch = max(1, round(part * int(cfg.optim.updates_per_epoch)))
        cfg.seed, cfg.num_threads = model.seed, self.threads
        cfg.fingerprint.every = cfg.evaluate.every = cfg.generate.every = None
        cfg.fingerprint.catalogue = None
        cfg.logging.log_updates = 1
        if not cfg.lumina.codes_cache:
            cfg.lumina.codes_cache = str(self.run.absolute() / 'lumina' / 'codes')
        return cfg

    def _manifest(self, model: Retrained) -> Path:
        """Folder with the lines of the catalogue's manifest that are a model's songs."""
        if self.catalogue.source is None:
            raise LuminaError("A catalogue without a manifest cannot be retrained on; write one with `lumina catalogue "
                              "build`.")
        source = Path(self.catalogue.source)
        raw = gzip.open(source).read() if source.suffix == '.gz' else source.read_bytes()
        lines = [line for line in raw.decode('utf-8').splitlines() if line.strip()]
        wanted = set(model.songs)
        kept = [line for line, track in zip(lines, self.catalogue, strict=True) if track.id in wanted]
        return write_atomic(self.work / 'songs' / model.name / 'data.jsonl', '\n'.join(kept) + '\n').parent
