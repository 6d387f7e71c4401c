"""Where dora enters: `dora run solver=...` in a checkout, `dora -P lumina_plugin run solver=...` anywhere.

Stands in for `audiocraft.train`, which needs files that audiocraft's pip package lacks, and offers the same functions,
so that audiocraft's own code (`//sig/<signature>` in a configuration, for one) finds our runs.
Nothing here imports audiocraft before a run starts: `dora info` and reading a configuration stay quick.
"""

import logging
import multiprocessing
import os
import random
import sys
import typing as tp
from pathlib import Path

from . import compat

compat.install()  # before anything below

import flashy  # noqa: E402
import omegaconf  # noqa: E402
from dora import XP, get_xp, git_save  # noqa: E402
from dora.hydra import HydraMain  # noqa: E402
from hydra.core.global_hydra import GlobalHydra  # noqa: E402
from hydra.errors import HydraException  # noqa: E402

from .errors import LuminaError  # noqa: E402
from .inputs import check_inputs, resolve_config_dset_paths  # noqa: E402

logger = logging.getLogger(__name__)

# `audiocraft.train.get_solver_from_sig` and friends are looked up on this very module.
sys.modules.setdefault('audiocraft.train', sys.modules[__name__])

# Hydra wants the folder relative to this file; it is another one in a checkout than in an installed package.
_CONFIG_PATH = os.path.relpath(compat.config_dir(), Path(__file__).resolve().parent)


def resolve_device(cfg: omegaconf.DictConfig) -> None:
    """Replace `device: auto` by what the machine has, and drop mixed precision where there is no GPU. In place."""
    import torch
    if cfg.device == 'auto':
        cfg.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if cfg.device == 'cpu' and cfg.autocast:
        logger.info("autocast is switched off: it needs a GPU.")
        cfg.autocast = False


def prepare_data(cfg: omegaconf.DictConfig) -> None:
    """Render the songs that the tiny codec or autoencoder learns from, if this is its training, and check that all data
    is there."""
    if cfg.solver == 'lumina_unlearning':  # which opens another run with that one's songs
        return
    if cfg.solver in ('lumina_compression', 'lumina_oobleck') and cfg.codec.songs:
        from .embedded import build_embedded
        folder = git_save.to_absolute_path(cfg.lumina.catalogue)
        # Cached: with the songs there, this only looks at their sizes.
        build_embedded(folder, extra=cfg.codec.songs, progress=flashy.distrib.is_rank_zero())
    if cfg.solver == 'lumina_dit' and cfg.lumina.render and str(cfg.datasource.train).startswith(
            str(cfg.lumina.catalogue)):
        from .embedded import build_embedded
        build_embedded(git_save.to_absolute_path(cfg.lumina.catalogue), progress=flashy.distrib.is_rank_zero())
    resolve_config_dset_paths(cfg)


def _split_batch_size(cfg: omegaconf.DictConfig) -> None:
    """Turn every batch size, given over all processes, into that of one process. In place."""
    world = flashy.distrib.world_size()
    holders = [cfg.dataset] + [cfg.dataset[split] for split in ('train', 'valid', 'evaluate', 'generate')
                               if 'batch_size' in (cfg.dataset.get(split) or {})]
    for holder in holders:
        if holder.batch_size % world:
            raise LuminaError(f"dataset.batch_size {holder.batch_size} cannot be shared by {world} processes: "
                              "make it a multiple.")
        holder.batch_size //= world


def get_solver(cfg: omegaconf.DictConfig):
    """Build the solver that `cfg.solver` names, ours or one of audiocraft's, ready to run inside the current XP."""
    resolve_device(cfg)
    if cfg.solver == 'lumina_unlearning':
        from .unlearning.solver import UnlearningSolver
        return UnlearningSolver(cfg)
    _split_batch_size(cfg)
    prepare_data(cfg)
    if cfg.solver == 'lumina':
        from .solver import LuminaMusicGenSolver
        return LuminaMusicGenSolver(cfg)
    if cfg.solver == 'lumina_compression':
        from .codec_solver import LuminaCompressionSolver
        return LuminaCompressionSolver(cfg)
    if cfg.solver == 'lumina_dit':
        from .dit.solver import LuminaDiTSolver
        return LuminaDiTSolver(cfg)
    if cfg.solver == 'lumina_oobleck':
        from .dit.oobleck_solver import LuminaOobleckSolver
        return LuminaOobleckSolver(cfg)
    from audiocraft import solvers
    try:
        return solvers.get_solver(cfg)
    except KeyError as error:
        if error.args != (cfg.solver,):
            raise
        raise LuminaError(f"solver is {cfg.solver!r}, which is unknown: choose lumina, lumina_dit, lumina_unlearning, "
                          "musicgen, compression, lumina_compression or lumina_oobleck.") from None


def get_solver_from_xp(xp: XP, override_cfg: tp.Optional[tp.Union[dict, omegaconf.DictConfig]] = None,
                       restore: bool = True, load_best: bool = True,
                       ignore_state_keys: tp.Sequence[str] = (), disable_fsdp: bool = True):
    """Build the solver of a run that exists, by default with its best weights.

    Args:
        xp (XP): The run.
        override_cfg (dict or DictConfig): Nested values that replace those of the run's configuration. The run keeps
            its folder and signature.
        restore (bool): Load the last checkpoint.
        load_best (bool): Take the best state within it, rather than the last.
        ignore_state_keys (sequence of str): Parts of the checkpoint to skip, e.g. `optimizer`.
        disable_fsdp (bool): Build plain modules even if the run was sharded. Sharded parts of the checkpoint are then
            skipped, so that `load_best` is needed.
    """
    cfg = xp.cfg
    if override_cfg is not None:
        cfg = omegaconf.OmegaConf.merge(cfg, omegaconf.DictConfig(override_cfg))
    ignored = list(ignore_state_keys)
    if disable_fsdp and cfg.fsdp.use:
        if not load_best:
            raise LuminaError("A sharded run is loaded unsharded from its best state only: pass load_best=True.")
        cfg.fsdp.use = False
        ignored += ['model', 'ema', 'best_state']
    logger.info("Loading the solver of %s (%s)", xp.sig, ' '.join(xp.argv or []))
    try:
        with xp.enter():
            solver = get_solver(cfg)
            if restore:
                solver.restore(load_best=load_best, ignore_state_keys=ignored)
        return solver
    finally:
        GlobalHydra.instance().clear()


def get_solver_from_sig(sig: str, *args, **kwargs):
    """`get_solver_from_xp` by signature. Raises LuminaError where no such run exists below `dora.dir`."""
    try:
        xp = main.get_xp_from_sig(sig)
    except RuntimeError:
        raise LuminaError(f"There is no run {sig} below {main.dora.dir}: "
                          "check the signature, or set LUMINA_DORA_DIR to the folder that holds it.") from None
    return get_solver_from_xp(xp, *args, **kwargs)


def init_seed_and_system(cfg: omegaconf.DictConfig) -> None:
    """Seed python, numpy and torch; set threads, the way workers start and the attention kernel."""
    import numpy as np
    import torch
    from audiocraft.modules.transformer import set_efficient_attention_backend

    multiprocessing.set_start_method(cfg.mp_start_method, force=True)
    random.seed(cfg.seed)
    np.random.seed(cfg.seed)
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(cfg.num_threads)
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):  # for workers, which start afresh
        os.environ[name] = str(cfg.num_threads)
    set_efficient_attention_backend(cfg.efficient_attention_backend)


def _run(cfg: omegaconf.DictConfig) -> None:
    """One run from its configuration, inside its XP."""
    import torch
    # first: bad input is told before audiocraft's slow import
    check_inputs(cfg, get_xp().folder, main.dora.dir / main.dora.xps)
    prepare_data(cfg)
    init_seed_and_system(cfg)
    log_name = f'{cfg.execute_only or "solver"}.log.{{rank}}'
    flashy.setup_logging(level=logging.getLevelName(str(cfg.logging.level).upper()), log_name=log_name)
    flashy.distrib.init('nccl' if torch.cuda.is_available() else 'gloo')
    # The signature does not depend on execute_only, so that this is the run that was trained: work in its folder and
    # add no epoch to its history.
    cfg.execute_inplace = cfg.execute_inplace or bool(cfg.execute_only)
    solver = get_solver(cfg)
    if cfg.show:
        solver.show()
    elif cfg.execute_only:
        solver.restore(replay_metrics=False)
        solver.run_one_stage(cfg.execute_only)
    else:
        solver.run()


class _Main(HydraMain):
    """dora's entry, which tells a bad override in one sentence."""

    def get_xp(self, argv: tp.Sequence[str]) -> XP:
        """The run that overrides lead to. As part of the command `dora`, ends it with exit code 2 where they are bad.

        Raises:
            LuminaError: elsewhere; an unknown key or preset.
        """
        try:
            return super().get_xp(argv)
        except HydraException as error:
            reason = str(error).strip().splitlines()[0].rstrip('.')
            told = LuminaError(f"{reason}: correct the override; config/ holds all keys and presets.")
            if 'dora' not in (Path(sys.argv[0]).stem, Path(sys.argv[0]).parent.name):
                raise told from error
            _end(told)


def _end(error: LuminaError) -> tp.NoReturn:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(2)


def _hydra_main(function: tp.Callable[[omegaconf.DictConfig], None]) -> _Main:
    return _Main(function, config_path=_CONFIG_PATH, config_name='config', version_base='1.3')


@_hydra_main
def main(cfg: omegaconf.DictConfig) -> None:
    """What dora runs. Bad input ends with one sentence and exit code 2, Ctrl-C with another and 130."""
    try:
        _run(cfg)
    except LuminaError as error:
        _end(error)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
