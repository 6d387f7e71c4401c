"""Trains a small latent diffusion transformer on a catalogue's latents, and fingerprints the catalogue alongside."""

import typing as tp
from pathlib import Path

import flashy
import numpy as np
import omegaconf
import torch
from audiocraft.solvers import builders
from audiocraft.solvers.base import StandardSolver

from ..audio import save_audio
from ..catalogue import Catalogue
from ..channels import resolve_channels
from ..errors import LuminaError
from ..hashing import seed_of, state_hash
from ..inputs import recipes_of
from ..passes import make_identity, open_or_create, run_pass, store_path
from ..prepared import PreparedCatalogue
from ..store import CheckpointInfo, FingerprintStore
from .fingerprint import DiTFingerprinter
from .latents import LatentEncoder, prepare_latents, windows_of
from .loading import build_dit
from .model import LatentExample
from .objective import DiffusionLoss, v_errors

__all__ = ['LatentBatches', 'LuminaDiTSolver', 'chosen_songs']

Batch = tp.Tuple[tp.List[LatentExample], torch.Generator]


class LatentBatches:
    """Windows in batches, every window as often as any other, and a generator for whatever else a step draws.

    What a step gets depends on the seed, the epoch and the step alone, so that a resumed training sees what an
    uninterrupted one would have seen.

    Args:
        examples (sequence of LatentExample): All windows.
        batch_size (int): Per step. passes (float): How often an epoch sees each window. seed (int): Of the order.
    """
    sampler = None  # a DataLoader has one

    def __init__(self, examples: tp.Sequence[LatentExample], batch_size: int, passes: float, seed: int):
        self.examples, self.batch_size, self.seed = list(examples), batch_size, seed
        self.updates = max(1, round(passes * len(self.examples) / batch_size))
        self.epoch = 1

    def __len__(self) -> int:
        return self.updates

    def __iter__(self) -> tp.Iterator[Batch]:
        first = (self.epoch - 1) * self.updates
        for step in range(first, first + self.updates):
            places = range(step * self.batch_size, (step + 1) * self.batch_size)
            yield ([self.examples[self._song(place)] for place in places],
                   torch.Generator().manual_seed(seed_of(self.seed, 'step', step)))

    def _song(self, place: int) -> int:
        """Which window comes at a place of the endless row of shuffled passes over all windows."""
        turn, index = divmod(place, len(self.examples))
        if getattr(self, '_turn', None) != turn:
            generator = torch.Generator().manual_seed(seed_of(self.seed, 'order', turn))
            self._order, self._turn = torch.randperm(len(self.examples), generator=generator), turn
        return int(self._order[index])


def chosen_songs(ids: tp.Sequence[str], cfg: tp.Any) -> tp.List[str]:
    """The songs of a catalogue that a training is given, in the catalogue's order.

    Args:
        ids (sequence of str): All. cfg: Keys `songs` (ids; empty: all), `fraction` of them and its `seed`.
    Raises:
        LuminaError: an unknown id, or a fraction that leaves none.
    """
    wanted = list(cfg.songs or ids)
    unknown = [song for song in wanted if song not in set(ids)]
    if unknown:
        raise LuminaError(f"dit.subset.songs names {unknown[0]}, which is not in the catalogue of {len(ids)} songs; "
                          "correct the key.")
    kept = [song for song in ids if song in set(wanted)]
    fraction = float(cfg.fraction)
    if not 0 < fraction <= 1 or round(fraction * len(kept)) < 1:
        raise LuminaError(f"dit.subset.fraction is {fraction:g}, which leaves none of {len(kept)} songs or more than "
                          "all; use a number above 0 and at most 1.")
    if fraction == 1:
        return kept
    rng = np.random.default_rng([int(cfg.seed), len(kept)])
    return [kept[i] for i in np.sort(rng.permutation(len(kept))[:round(fraction * len(kept))])]


class LuminaDiTSolver(StandardSolver):
    """Trains diffusers' `StableAudioDiTModel` by the v-objective, as `config/solver/lumina/dit_quickstart.yaml` says.

    Latents are computed once and remembered. Like MusicGen's solver it fingerprints the catalogue at the epochs of
    `fingerprint.every`, into `<run>/lumina/<recipe>/`, and ends with the same weights as one that does not.
    """

    def __init__(self, cfg: omegaconf.DictConfig):
        self.dit = build_dit(cfg.dit, cfg.device)
        self._recipes = recipes_of(cfg)
        for recipe in self._recipes:
            resolve_channels(self.dit.denoiser, recipe.channels)
        self._prepared: tp.Dict[str, PreparedCatalogue] = {}
        super().__init__(cfg)
        if self.dit.text is not None:
            self.text_encoder = self.dit.text.encoder
            self.register_stateful('text_encoder')

    # -- building ---------------------------------------------------------------------------------------------------

    def build_dataloaders(self) -> None:
        """Encode what is trained on and what is held out, unless that is remembered."""
        cfg = self.cfg
        if cfg.execute_only == 'fingerprint':
            return
        train = self._latents('train')
        wanted = set(chosen_songs([track.id for track in train.catalogue], cfg.dit.subset))
        examples = [example for example in windows_of(train) if example.id in wanted]
        if not examples:
            raise LuminaError("None of the songs of dit.subset can be used: they are silent or cannot be read; choose "
                              "others.")
        self.logger.info("Training on %d of %d songs, %d windows of %.2f s.", len({e.id for e in examples}),
                         len(train.catalogue), len(examples), self.dit.seconds)
        batches = LatentBatches(examples, cfg.dataset.batch_size, cfg.dit.passes_per_epoch, int(cfg.seed))
        self.dataloaders = tp.cast(tp.Any, {
            'train': batches, 'valid': _in_batches(windows_of(self._latents('valid')), cfg.dataset.batch_size)})

    def _latents(self, split: str) -> PreparedCatalogue:
        path = str(self.cfg.datasource[split]) if split != 'fingerprint' else \
            str(self.cfg.fingerprint.catalogue or self.cfg.datasource.train)
        if path not in self._prepared:
            cache = self.cfg.lumina.latents_cache or Path(self.folder) / 'lumina' / 'latents'
            encoder = LatentEncoder(self.dit, int(self.cfg.dit.windows), cache)
            self._prepared[path] = prepare_latents(Catalogue.from_manifest(path), encoder,
                                                   bool(self.cfg.fingerprint.strict))
            self._codec_hash = encoder.hash
        return self._prepared[path]

    def build_model(self) -> None:
        self.model = self.dit.denoiser
        self.register_ema('model')
        self.optimizer = builders.get_optimizer([p for p in self.model.parameters() if p.requires_grad],
                                                self.cfg.optim)
        self.lr_scheduler = builders.get_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        self.register_stateful('model', 'optimizer', 'lr_scheduler')
        self.register_best_state('model')
        self.asked = DiffusionLoss(self.dit, int(self.cfg.dit.valid_draws), seed=0)

    def show(self) -> None:
        self.log_model_summary(self.model)

    # -- stages -----------------------------------------------------------------------------------------------------

    def train(self) -> dict:
        """One epoch."""
        tp.cast(LatentBatches, self.dataloaders['train']).epoch = self.epoch
        return super().train()

    def run_step(self, idx: int, batch: tp.Any, metrics: dict) -> dict:
        """One step of training on (examples, generator), or the losses of held-out examples at fixed draws."""
        if not self.is_training:
            metrics['loss'] = self.asked.losses(batch).mean()
            return metrics
        examples, generator = batch
        loss = training_loss(self.dit, examples, generator, float(self.cfg.dit.text_dropout))
        loss.backward()
        flashy.distrib.sync_model(self.model)
        metrics['grad_norm'] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optim.max_norm or 1e9)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        metrics.update(loss=loss.detach(), lr=torch.tensor(self.optimizer.param_groups[0]['lr']))
        return metrics

    def evaluate(self) -> dict:
        """Losses of `datasource.evaluate` at the fixed draws."""
        examples = windows_of(self._latents('evaluate'))
        with torch.no_grad():
            losses = [self.asked.losses(batch) for batch in _in_batches(examples, self.cfg.dataset.batch_size)]
        return {'loss': float(torch.cat(losses).mean())}

    def generate(self) -> dict:
        """Write a few clips below `<run>/samples/<epoch>/`."""
        made = self.dit.generate(int(self.cfg.generate.num_samples), seed=int(self.cfg.seed))
        for example, wav in zip(made, self.dit.decode(torch.stack([e.latents for e in made])), strict=True):
            save_audio(Path(self.folder) / str(self.cfg.generate.path) / str(self.epoch) / f'{example.id}.wav',
                       wav.clamp(-1, 1), self.dit.sample_rate)
        return {}

    def should_run_stage(self, stage_name: str) -> bool:
        """Whether a stage is due: `every` so many epochs or at those listed, and at the last; never if it is empty."""
        every = self.cfg[stage_name].get('every')
        if omegaconf.OmegaConf.is_list(every):
            return self.epoch in every or self.epoch == self.cfg.optim.epochs
        return every not in (None, '') and super().should_run_stage(stage_name)

    def run_epoch(self) -> None:
        super().run_epoch()
        if self.should_run_stage('fingerprint'):
            self.run_stage('fingerprint', self.fingerprint)

    def run_one_stage(self, stage_name: str) -> None:
        if stage_name != 'fingerprint':
            return super().run_one_stage(stage_name)
        if self.epoch < 2:
            raise LuminaError(f"Signature {self.xp.sig} has no checkpoint to fingerprint: train it first with `dora "
                              "run`.")
        self._start_epoch()
        self.run_stage('fingerprint', self.fingerprint, self.epoch - 1)
        return None

    def get_formatter(self, stage_name: str) -> flashy.Formatter:
        if stage_name == 'fingerprint':
            return flashy.Formatter({'seconds': '.1f', 'songs': '.0f', 'rank_*': '.0f'})
        return flashy.Formatter({'lr': '.1E', 'grad_norm': '.1E'}, default_format='.4f')

    def fingerprint(self, epoch: tp.Optional[int] = None) -> tp.Dict[str, float]:
        """Fingerprint the catalogue with the current weights, for each recipe. Returns the last one's metrics."""
        epoch = self.epoch if epoch is None else epoch
        weights, metrics = self._current_weights(), {}
        for recipe in self._recipes:
            prepared = self._latents('fingerprint')
            identity = make_identity(f'dora:{self.xp.sig}', self.model, self._codec_hash, recipe, prepared.catalogue,
                                     Catalogue.from_manifest(self.cfg.datasource.train).hash)
            store = open_or_create(store_path(self.folder, recipe.name), identity, prepared)
            info = CheckpointInfo(name=f'epoch-{epoch:04d}', epoch=epoch, model_hash=state_hash(weights))
            stale = store.manifest.find(info.name)
            if stale is not None and stale.model_hash != info.model_hash:
                store.drop_checkpoint(info.name)
            fingerprinter = DiTFingerprinter(self.dit, recipe, weights, batch_size=self.cfg.fingerprint.batch_size)
            metrics = run_pass(fingerprinter, prepared, FingerprintStore.open(store.path), info, weights)
        return metrics

    def _current_weights(self) -> tp.Dict[str, torch.Tensor]:
        """EMA weights where there is an EMA, else raw ones, in fp32."""
        state = self.ema.state_dict()['state']['model'] if self.ema is not None else self.model.state_dict()
        return {name: tensor.detach().float().clone() for name, tensor in state.items()}


def training_loss(dit: tp.Any, examples: tp.Sequence[LatentExample], generator: torch.Generator, hide: float
                  ) -> torch.Tensor:
    """Mean squared error of v over a batch, all frames counted: what follows the music is to be learnt as silence.

    Angles are stratified over the batch: one in each of B equal parts of (0, 1).

    Args:
        generator (torch.Generator): Of angles, noise and what is hidden; on the CPU, so that devices agree.
        hide (float): Probability that an example's text is hidden.
    """
    count = len(examples)
    x0 = torch.stack([example.latents for example in examples])  # [B, C, T]
    t = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    eps = torch.randn(x0.shape, generator=generator)
    heard = torch.rand(count, generator=generator) >= hide
    conditions = dit.conditions(examples)
    if conditions.mask is not None:
        conditions = conditions._replace(mask=conditions.mask & heard.to(dit.device)[:, None])
    return v_errors(dit.denoiser, x0.to(dit.device), eps.to(dit.device), t.clamp(1e-4, 1 - 1e-4).to(dit.device),
                    conditions).mean()


def _in_batches(examples: tp.Sequence[LatentExample], size: int) -> tp.List[tp.List[LatentExample]]:
    return [list(examples[first:first + size]) for first in range(0, len(examples), size)]
