"""MusicGen's solver with one more stage: fingerprint, beside the checkpoints, at the weights of this very moment."""

import functools
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
from audiocraft.utils import checkpoint
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from . import codec as codecs
from .batches import TokenBatchLoader
from .calibration import songs_needed
from .catalogue import Catalogue, Track
from .catalogue.tracks import read_sidecar
from .channels import resolve_channels
from .errors import LuminaError
from .fingerprint import Fingerprinter
from .hashing import state_hash
from .inputs import BORROWED, recipes_of
from .models import licence_note
from .monitoring import checkpoint_figures
from .null_pass import recordings_of, run_null, with_generations
from .origins import Origin, origins_of, songs_hash
from .outside import Outside, gather
from .passes import make_identity, open_or_create, run_pass, store_path
from .prepared import PreparedCatalogue, estimate, prepare, progress_bar
from .recipe import Recipe
from .store import CheckpointInfo, FingerprintStore, Identity
from .tokens import Tokenizer
from .workers import Workers

__all__ = ['LuminaMusicGenSolver']


class LuminaMusicGenSolver(MusicGenSolver):
    """Train a MusicGen and fingerprint its catalogue alongside.

    After the stages of an epoch, `fingerprint` runs when `fingerprint.every` says so and at the last epoch (a 0 in its
    list: also before the first, with the weights that `continue_from` brought), for each of `fingerprint.recipes`, over
    `fingerprint.catalogue` (the training manifest unless said otherwise). It uses the EMA weights where there is an
    EMA, else the raw ones, and leaves the training's weights, gradients, modes and random state alone.
    `execute_only=fingerprint` runs it on an existing signature; where that was never trained, on the last weights of
    the run that `continue_from` names, as checkpoint epoch-0000 of a store of its own.

    In a distributed training all processes fingerprint together, each its own shards of the store.
    """

    def __init__(self, cfg: omegaconf.DictConfig):
        self._prepared: tp.Optional[PreparedCatalogue] = None
        self._prepared_for: tp.Optional[tp.Tuple[str, float, float, int]] = None
        self._outside: tp.Optional[tp.Tuple[tp.Tuple[float, ...], tp.Optional[Outside]]] = None
        self._recipes = recipes_of(cfg)
        super().__init__(cfg)
        for recipe in self._recipes:
            resolve_channels(self.model, recipe.channels)  # a layer group that this model lacks is told at once
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
            tracks = [track for track in prepared.catalogue if track.id not in prepared.skipped]
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

    # -- weights that were trained before -------------------------------------------------------------------------

    @property
    def _borrows(self) -> bool:
        """Whether to fingerprint weights that another run or a hub brought: this one was never trained."""
        own = self.checkpoint_path(use_fsdp=False).exists()
        return self.cfg.execute_only == 'fingerprint' and bool(self.cfg.continue_from) and not own

    def load_checkpoints(self, load_best: bool = False, ignore_state_keys: tp.Sequence[str] = ()
                         ) -> tp.Optional[dict]:
        """As in audiocraft; but fingerprints of another run are made of its last weights, never of its best ones."""
        if not self._borrows or self.cfg.continue_from.startswith('//pretrained/'):
            return super().load_checkpoints(load_best, list(ignore_state_keys))
        path = checkpoint.resolve_checkpoint_path(self.cfg.continue_from, use_fsdp=False)
        if path is None:
            raise LuminaError(f"continue_from is {self.cfg.continue_from}, which has no checkpoint: name another run.")
        state = checkpoint.load_checkpoint(path)
        weights = state['ema']['state']['model'] if state.get('ema') else state.get('model')
        if state.get('fsdp_best_state'):
            self.logger.warning("%s was sharded: its best weights are the only whole ones, and rounded to the type it "
                                "was trained in; fingerprinting those.", path)
            weights = state['fsdp_best_state']['model']
        if not weights:
            raise LuminaError(f"continue_from leads to {path}, which holds no weights: name another run.")
        self._expect_fit(weights, whole=True)
        self.model.load_state_dict(weights)
        if self.ema is not None:
            self.initialize_ema()  # it was set up from what the model held before
        self.logger.info("Fingerprinting the weights of %s as %s.", path, BORROWED)
        return state

    def load_state_dict(self, state: dict) -> None:
        if not self.cfg.fsdp.use:
            for weights in (state.get('model'), (state.get('best_state') or {}).get('model')):
                self._expect_fit(weights or {})
        super().load_state_dict(state)

    def load_from_pretrained(self, name: str) -> dict:
        """Weights of a hub's model or of an exported folder."""
        try:
            return super().load_from_pretrained(name)
        except Exception as error:  # of a hub, a connection or a file
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise LuminaError(f"continue_from is //pretrained/{name}, which cannot be fetched ({reason}): check the "
                              "name and the connection, or name an exported folder.") from error

    def _expect_fit(self, weights: tp.Mapping[str, torch.Tensor], whole: bool = False) -> None:
        """LuminaError where weights are not of a model of this configuration, or with `whole` some are missing."""
        own = self.model.state_dict()
        for name in [*weights, *(own if whole else ())]:
            found, needed = (tuple(side[name].shape) if name in side else 'absent' for side in (weights, own))
            if found != needed:
                raise LuminaError(
                    f"The weights of {self.cfg.continue_from or self.xp.sig} do not fit this model ({name}: {found} "
                    f"there, {needed} here): repeat the overrides that they were trained with, e.g. transformer_lm.*.")

    # -- the stage ------------------------------------------------------------------------------------------------

    def get_formatter(self, stage_name: str) -> flashy.Formatter:
        if stage_name == 'fingerprint':
            return flashy.Formatter({'seconds': '.1f', 'songs': '.0f', 'rank_*': '.0f', 'spread_*': '.3f',
                                     'alike_*': '.2f', 'hubs_*': '.1f'})
        return super().get_formatter(stage_name)

    def run_epoch(self) -> None:
        every = self.cfg.fingerprint.get('every')
        if self.epoch == 1 and omegaconf.OmegaConf.is_list(every) and 0 in every:
            self.fingerprint(0)  # no stage of its own: an epoch has one of a name
        super().run_epoch()
        if not self.should_run_stage('fingerprint'):
            return
        try:
            self.run_stage('fingerprint', self.fingerprint)
        except Exception:
            self.commit()  # what was learnt in this epoch is not lost over its fingerprints
            self.logger.error("Epoch %d is saved; mend what follows and finish its fingerprints by the same command "
                              "with execute_only=fingerprint.", self.epoch - 1)
            raise

    def should_run_stage(self, stage_name: str) -> bool:
        """As in audiocraft, at the last epoch and every so many; but `every` may be a list of epochs, and a stage whose
        `every` is empty never runs."""
        every = self.cfg[stage_name].get('every')
        if omegaconf.OmegaConf.is_list(every):
            return self.epoch in every or self.epoch == self.cfg.optim.epochs
        return every not in (None, '') and super().should_run_stage(stage_name)

    def run_stage(self, stage_name: str, method: tp.Callable, *args: tp.Any, **kwargs: tp.Any) -> dict:
        with logging_redirect_tqdm():  # a line of the log goes above a progress bar, not into it
            return super().run_stage(stage_name, method, *args, **kwargs)

    def log_progress(self, stage_name: str, iterable: tp.Iterable, total: tp.Optional[int] = None, updates: int = 5
                     ) -> flashy.logging.LogProgressBar:
        """audiocraft's lines in the log; on a terminal, also a bar for what takes longer than two seconds."""
        bar = tqdm(iterable, desc=f'{stage_name} {self.epoch}', total=total, delay=2, mininterval=0.5, leave=False,
                   dynamic_ncols=True, disable=None)  # None: where standard error is no terminal
        return super().log_progress(stage_name, bar, total=len(bar) if total is None else total, updates=updates)

    def run_one_stage(self, stage_name: str) -> None:
        if stage_name != 'fingerprint':
            return super().run_one_stage(stage_name)
        if self.epoch < 2 and not self._borrows:
            raise LuminaError(f"Signature {self.xp.sig} has no checkpoint to fingerprint: train it first with `dora "
                              "run`, or take another run's weights by continue_from=//sig/<signature>.")
        self._start_epoch()
        self.run_stage('fingerprint', self.fingerprint, 0 if self._borrows else self.epoch - 1)
        return None

    def fingerprint(self, epoch: tp.Optional[int] = None) -> tp.Dict[str, float]:
        """Fingerprint the catalogue with the current weights into `<xp folder>/lumina/<recipe>/`.

        All processes of a training work on it together; what stops one stops them all.

        Args:
            epoch (int, optional): Epoch that these weights ended; the current one unless given.
        Returns:
            dict: songs, seconds, and of the last recipe the rank per channel and `monitoring.checkpoint_figures`.
        Raises:
            LuminaError: bad input; in the other processes, any failure of one.
        """
        metrics: tp.Dict[str, float] = {}
        epoch = self.epoch if epoch is None else epoch
        with Workers.here() as workers, _kept_random_state():
            for recipe in self._recipes:
                metrics = self._fingerprint_with(recipe, epoch, workers)
        return metrics

    def _fingerprint_with(self, recipe: Recipe, epoch: int, workers: Workers) -> tp.Dict[str, float]:
        weights = self._current_weights()
        catalogue = self.cfg.fingerprint.catalogue or self.cfg.datasource.train
        prepared = self._prepare(Catalogue.from_manifest(catalogue), recipe, workers)
        fingerprinter = Fingerprinter(self.model, recipe, weights, batch_size=self.cfg.fingerprint.batch_size)
        info = CheckpointInfo(name=f'epoch-{epoch:04d}', epoch=epoch, model_hash=state_hash(weights))
        path = store_path(self.folder, recipe.name)
        if workers.first:
            store = open_or_create(path, self._identity(recipe, prepared), prepared)
            stale = store.manifest.find(info.name)
            if stale is not None and stale.model_hash != info.model_hash:
                self.logger.warning("%s was fingerprinted with other weights, of an epoch that was interrupted; "
                                    "doing it again.", info.name)
                store.drop_checkpoint(info.name)
            self.logger.info("Fingerprinting with recipe %s%s: %s", recipe.name,
                             f', {workers.count} processes' if workers.count > 1 else '',
                             estimate(prepared, fingerprinter))
        workers.barrier()
        metrics = run_pass(fingerprinter, prepared, FingerprintStore.open(path), info, weights, workers)
        if workers.first:
            self._measure_chance(fingerprinter, prepared, FingerprintStore.open(path), info.name)
            metrics.update(checkpoint_figures(FingerprintStore.open(path), info.name, recipe))
        return workers.broadcast(metrics)

    def _measure_chance(self, fingerprinter: Fingerprinter, prepared: PreparedCatalogue, store: FingerprintStore,
                        checkpoint: str) -> None:
        """Fingerprint the outside songs, which are read once, beside the catalogue's."""
        recipe, source = fingerprinter.recipe, self.cfg.datasource
        wanted = (recipe.chunk_seconds, recipe.silence_db, recipe.gate.rate, recipe.query_phases)
        if self._outside is None or self._outside[0] != wanted:
            needed, tokenizer, catalogue = songs_needed(recipe.gate.rate), prepared.tokenizer, prepared.catalogue
            found = gather(self.cfg.fingerprint.get('outside'), store, tokenizer, needed, valid=source.get('valid'),
                           seen=frozenset(recordings_of(source.get('train'))), phases=recipe.query_phases)
            found = with_generations(found, store, tokenizer, needed, self.cfg.fingerprint.get('generations_of'),
                                     self._origins[1:] if self._borrows else self._origins, catalogue, str(self.device))
            self._outside = (wanted, found)
        if self._outside[1] is not None:
            run_null(fingerprinter, self._outside[1], store, checkpoint)

    def _current_weights(self) -> tp.Dict[str, torch.Tensor]:
        """EMA weights where there is an EMA, else raw ones, in fp32; as exports take them."""
        state = self.ema.state_dict()['state']['model'] if self.ema is not None else self.model.state_dict()
        return {name: t.detach().float() if t.is_floating_point() else t.detach() for name, t in state.items()}

    def _prepare(self, catalogue: Catalogue, recipe: tp.Optional[Recipe] = None,
                 workers: tp.Optional[Workers] = None) -> PreparedCatalogue:
        recipe = recipe or self._recipes[0]
        wanted = (catalogue.hash, recipe.chunk_seconds, recipe.silence_db, recipe.song_phases)
        if self._prepared is None or self._prepared_for != wanted:
            tokenizer = Tokenizer(self.compression_model, codecs.codec_hash(self.compression_model),
                                  recipe.chunk_seconds, recipe.silence_db,
                                  cache=self.cfg.lumina.codes_cache or Path(self.folder) / 'lumina' / 'codes')
            self._prepared = prepare(catalogue, tokenizer, self.model, self.cfg.fingerprint.strict, recipe.song_phases,
                                     workers)
            self._prepared_for = wanted
        return self._prepared

    def _identity(self, recipe: Recipe, prepared: PreparedCatalogue) -> Identity:
        origins = self._origins
        if self._borrows:
            trained_on = origins[0].trained_on
        elif self.cfg.fingerprint.catalogue in (None, self.cfg.datasource.train):
            trained_on = prepared.catalogue.hash
        else:
            trained_on = songs_hash(self.cfg.datasource.train)
        model_id = ' from '.join([f'dora:{self.xp.sig}', *(origin.words for origin in origins)])
        licences = [note for note in (licence_note(origin.name) for origin in origins) if note]
        return make_identity(model_id, self.model, codecs.codec_hash(self.compression_model), recipe,
                             prepared.catalogue, trained_on, ' '.join(licences) or None)

    @functools.cached_property
    def _origins(self) -> tp.List[Origin]:
        """The models that this one's training started from, nearest first."""
        return origins_of(self.cfg.continue_from, Path(self.folder).parent)


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
