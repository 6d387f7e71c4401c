"""MusicGen's solver with one more stage: fingerprint, beside the checkpoints, at the weights of this very moment."""

import random
import typing as tp
from contextlib import contextmanager
from pathlib import Path

import flashy
import numpy as np
import omegaconf
import torch
from audiocraft import models
from audiocraft.data.audio_dataset import AudioMeta, SegmentInfo
from audiocraft.data.music_dataset import MusicInfo
from audiocraft.solvers import builders
from audiocraft.solvers.musicgen import MusicGenSolver
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from . import codec as codecs
from .batches import TokenBatchLoader
from .catalogue import Catalogue, Track
from .catalogue.tracks import read_sidecar
from .errors import LuminaError
from .fingerprint import Fingerprinter
from .hashing import state_hash
from .passes import (
    PreparedCatalogue,
    estimate,
    make_identity,
    open_or_create,
    prepare,
    progress_bar,
    run_pass,
    store_path,
)
from .recipe import Recipe, get_recipe
from .store import CheckpointInfo, Identity
from .tokens import Tokenizer

__all__ = ['LuminaMusicGenSolver']


class LuminaMusicGenSolver(MusicGenSolver):
    """Train a MusicGen and fingerprint its catalogue alongside.

    After the stages of an epoch, `fingerprint` runs when `fingerprint.every` says so and at the last epoch, for each of
    `fingerprint.recipes`, over `fingerprint.catalogue` (the training manifest unless said otherwise). It uses the EMA
    weights where there is an EMA, else the raw ones, and leaves the training's weights, gradients, modes and random
    state alone. `execute_only=fingerprint` runs it on an existing signature.
    """

    def __init__(self, cfg: omegaconf.DictConfig):
        self._prepared: tp.Optional[PreparedCatalogue] = None
        super().__init__(cfg)
        if cfg.lumina.tokens_in_memory and 'train' in self.dataloaders:
            if cfg.cache.path:
                raise LuminaError("lumina.tokens_in_memory and cache.path both replace the training loader; set one of "
                                  "them to null or false.")
            self._train_from_tokens()

    # -- building -------------------------------------------------------------------------------------------------

    def build_model(self) -> None:
        """Instantiate the codec, by any name that `lumina_plugin.codec` knows, the language model and its optimiser."""
        cfg = self.cfg
        self.compression_model = codecs.load_for_solver(cfg, cfg.compression_model_checkpoint, device=self.device)
        _expect('sample_rate', cfg.sample_rate, self.compression_model.sample_rate)
        _expect('transformer_lm.card', cfg.transformer_lm.card, self.compression_model.cardinality)
        _expect('transformer_lm.n_q', cfg.transformer_lm.n_q, self.compression_model.num_codebooks)
        self.model = models.builders.get_lm_model(cfg).to(self.device)
        if cfg.fsdp.use:
            self.model = self.wrap_with_fsdp(self.model)
        self.register_ema('model')
        self.optimizer = builders.get_optimizer(builders.get_optim_parameter_groups(self.model), cfg.optim)
        self.lr_scheduler = builders.get_lr_scheduler(self.optimizer, cfg.schedule, self.total_updates)
        self.register_stateful('model', 'optimizer', 'lr_scheduler')
        self.register_best_state('model')
        self.autocast_dtype = getattr(torch, cfg.autocast_dtype)
        half = cfg.fsdp.param_dtype == 'float16' if cfg.fsdp.use else cfg.autocast and cfg.autocast_dtype == 'float16'
        self.scaler = None
        if half:  # small gradients would vanish in fp16
            self.scaler = tp.cast(tp.Any, ShardedGradScaler() if cfg.fsdp.use else torch.amp.GradScaler('cuda'))
            self.register_stateful('scaler')

    def build_dataloaders(self) -> None:
        """Instantiate audio dataloaders; a fingerprint pass alone needs none."""
        if self.cfg.execute_only == 'fingerprint':
            self.dataloaders = {}
            return
        for split in ('train', 'valid'):
            Catalogue.from_manifest(self.cfg.datasource[split])  # a missing or empty manifest is told in one sentence
        for split in ('evaluate', 'generate'):  # whoever brings songs of their own should not need four manifests
            if not self.cfg.datasource.get(split) or not Path(self.cfg.datasource[split]).exists():
                self.cfg.datasource[split] = self.cfg.datasource.valid
        super().build_dataloaders()

    def _train_from_tokens(self) -> None:
        """Encode the training songs once and draw segments from their codes: no second encode in any epoch.

        A song is encoded from several starts within one frame of the codec. Codes depend on where the frames begin; a
        model that saw one way to cut a song would learn that cut, and not know the song in an excerpt.
        """
        with _kept_random_state():
            prepared = self._prepare(Catalogue.from_manifest(self.cfg.datasource.train))
            tracks = [track for track in prepared.catalogue if track.id in prepared.tokens]
            streams = [prepared.tokenizer.shifted(track.path, self.cfg.lumina.token_phases)
                       for track in progress_bar(tracks, 'encoding shifted', len(tracks))]
        loader = TokenBatchLoader([self._info(track) for track in tracks], streams, prepared.tokenizer.frame_rate,
                                  self.cfg.dataset.segment_duration, self.cfg.dataset.batch_size,
                                  self.train_updates_per_epoch, self.cfg.seed)
        self.dataloaders['original_train'] = self.dataloaders['train']
        self.dataloaders['train'] = self._cached_batch_loader = tp.cast(tp.Any, loader)

    def _info(self, track: Track) -> MusicInfo:
        """A track as audiocraft's datasets describe a segment of it, with everything its sidecar says."""
        samples = int(track.duration * self.cfg.sample_rate)
        segment = SegmentInfo(AudioMeta(str(track.path), track.duration, track.sample_rate), 0., samples, samples,
                              self.cfg.sample_rate, self.cfg.channels)
        return MusicInfo.from_dict({**(read_sidecar(track.sidecar) or {}), **segment.to_dict()}, fields_required=False)

    # -- the stage ------------------------------------------------------------------------------------------------

    def get_formatter(self, stage_name: str) -> flashy.Formatter:
        if stage_name == 'fingerprint':
            return flashy.Formatter({'seconds': '.1f', 'songs': '.0f', 'rank_*': '.0f'})
        return super().get_formatter(stage_name)

    def run_epoch(self) -> None:
        super().run_epoch()
        if self.should_run_stage('fingerprint'):
            self.run_stage('fingerprint', self.fingerprint)

    def should_run_stage(self, stage_name: str) -> bool:
        """As in audiocraft, at the last epoch and every so many; but a stage whose `every` is empty never runs."""
        return self.cfg[stage_name].get('every') is not None and super().should_run_stage(stage_name)

    def run_one_stage(self, stage_name: str) -> None:
        if stage_name != 'fingerprint':
            return super().run_one_stage(stage_name)
        if self.epoch < 2:
            raise LuminaError(f"Signature {self.xp.sig} has no checkpoint to fingerprint; train it first with `dora "
                              "run` or name one with continue_from=//sig/<signature>.")
        self._start_epoch()
        self.run_stage('fingerprint', self.fingerprint, self.epoch - 1)
        return None

    def fingerprint(self, epoch: tp.Optional[int] = None) -> tp.Dict[str, float]:
        """Fingerprint the catalogue with the current weights into `<xp folder>/lumina/<recipe>/`.

        Args:
            epoch (int, optional): Epoch that these weights ended; the current one unless given.
        Returns:
            dict: songs, seconds, rank per channel of the last recipe.
        """
        metrics: tp.Dict[str, float] = {}
        if not flashy.distrib.is_rank_zero():
            flashy.distrib.barrier()
            return metrics
        epoch = self.epoch if epoch is None else epoch
        with _kept_random_state():
            for name in self.cfg.fingerprint.recipes:
                metrics = self._fingerprint_with(self._recipe(name), epoch)
        flashy.distrib.barrier()
        return metrics

    def _fingerprint_with(self, recipe: Recipe, epoch: int) -> tp.Dict[str, float]:
        weights = self._current_weights()
        catalogue = self.cfg.fingerprint.catalogue or self.cfg.datasource.train
        prepared = self._prepare(Catalogue.from_manifest(catalogue), recipe)
        fingerprinter = Fingerprinter(self.model, recipe, weights, batch_size=self.cfg.fingerprint.batch_size)
        info = CheckpointInfo(name=f'epoch-{epoch:04d}', epoch=epoch, model_hash=state_hash(weights))
        store = open_or_create(store_path(self.folder, recipe.name), self._identity(recipe, prepared), prepared)
        stale = store.manifest.find(info.name)
        if stale is not None and stale.model_hash != info.model_hash:
            self.logger.warning("%s was fingerprinted with other weights, of an epoch that was interrupted; "
                                "doing it again.", info.name)
            store.drop_checkpoint(info.name)
        self.logger.info("Fingerprinting with recipe %s: %s", recipe.name, estimate(prepared, fingerprinter))
        return run_pass(fingerprinter, prepared, store, info, weights)

    def _recipe(self, name: str) -> Recipe:
        overrides = omegaconf.OmegaConf.to_container(self.cfg.fingerprint.recipe, resolve=True) or {}
        return get_recipe(name, **{key: value for key, value in tp.cast(dict, overrides).items() if value is not None})

    def _current_weights(self) -> tp.Dict[str, torch.Tensor]:
        """EMA weights where there is an EMA, else raw ones, in fp32; as exports take them."""
        state = self.ema.state_dict()['state']['model'] if self.ema is not None else self.model.state_dict()
        return {name: t.detach().float() if t.is_floating_point() else t.detach() for name, t in state.items()}

    def _prepare(self, catalogue: Catalogue, recipe: tp.Optional[Recipe] = None) -> PreparedCatalogue:
        recipe = recipe or self._recipe(self.cfg.fingerprint.recipes[0])
        if self._prepared is None or self._prepared.catalogue.hash != catalogue.hash:
            tokenizer = Tokenizer(self.compression_model, codecs.codec_hash(self.compression_model),
                                  recipe.chunk_seconds, recipe.silence_db,
                                  cache=self.cfg.lumina.codes_cache or Path(self.folder) / 'lumina' / 'codes')
            self._prepared = prepare(catalogue, tokenizer, self.model, strict=self.cfg.fingerprint.strict)
        return self._prepared

    def _identity(self, recipe: Recipe, prepared: PreparedCatalogue) -> Identity:
        trained_on = prepared.catalogue.hash
        if self.cfg.fingerprint.catalogue and self.cfg.fingerprint.catalogue != self.cfg.datasource.train:
            trained_on = Catalogue.from_manifest(self.cfg.datasource.train).hash
        return make_identity(f'dora:{self.xp.sig}', self.model, codecs.codec_hash(self.compression_model), recipe,
                             prepared.catalogue, trained_on)


def _expect(key: str, configured: tp.Any, found: tp.Any) -> None:
    if configured != found:
        raise LuminaError(f"{key} is {configured}, but the codec of compression_model_checkpoint has {found}; set it "
                          "to that or choose another codec.")


@contextmanager
def _kept_random_state() -> tp.Iterator[None]:
    """Put torch's, numpy's and Python's random states back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
