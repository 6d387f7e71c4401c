"""A MusicGen from wherever it lies: a dora run, an exported folder, or a hub."""

import contextlib
import functools
import os
import re
import typing as tp
from pathlib import Path

import omegaconf
import torch

from . import compat
from .errors import LuminaError
from .store import FingerprintStore

LICENCE_NOTE = "The weights of {name} are published for non-commercial use only (CC BY-NC 4.0)."
_LM_FILE, _CODEC_FILE = 'state_dict.bin', 'compression_state_dict.bin'  # of audiocraft's export format
_HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+')
_TOP_K = 250  # audiocraft's default, more than a small codec has codes
_EXTEND_STRIDE = 18.  # audiocraft's default; a model that generates less at once needs a smaller one


def run_folder(source: tp.Union[str, Path]) -> tp.Optional[Path]:
    """The folder of a dora run, named by itself or by its signature; None where `source` is neither."""
    path = Path(source)
    if (path / '.hydra' / 'config.yaml').is_file():
        return path
    if re.fullmatch(r'[0-9a-f]{8}', str(source)):
        base = Path(os.environ.get('AUDIOCRAFT_DORA_DIR', os.environ.get('LUMINA_DORA_DIR', 'outputs')))
        folder = base / 'xps' / str(source)
        if (folder / '.hydra' / 'config.yaml').is_file():
            return folder
        raise LuminaError(f"There is no run {source} below {base}; check the signature or set LUMINA_DORA_DIR.")
    return None


def run_config(folder: Path) -> omegaconf.DictConfig:
    """The configuration that a dora run was started with.

    Raises:
        LuminaError: when it is no YAML mapping (any more).
    """
    with _configuration(folder):
        cfg = omegaconf.OmegaConf.load(folder / '.hydra' / 'config.yaml')
        if not isinstance(cfg, omegaconf.DictConfig):
            raise TypeError("it holds no keys")
    return cfg


def run_key(folder: Path, key: str) -> tp.Any:
    """The value of a dotted key in a run's configuration, interpolations resolved; None where it is empty or absent.

    Raises:
        LuminaError: when the configuration is damaged or the value refers to something that is not there.
    """
    with _configuration(folder):
        value = omegaconf.OmegaConf.select(run_config(folder), key)
        return omegaconf.OmegaConf.to_container(value, resolve=True) if omegaconf.OmegaConf.is_config(value) else value


def run_paths(folder: Path, path: tp.Union[str, Path]) -> tp.List[Path]:
    """Where a path of a run's configuration may lie, likeliest first: seen from where dora was started, which hydra
    notes, from here, or from beside dora's folder if the run was moved with all that lies around it."""
    notes = folder / '.hydra' / 'hydra.yaml'
    with _configuration(folder):
        started = omegaconf.OmegaConf.select(omegaconf.OmegaConf.load(notes), 'hydra.runtime.cwd') \
            if notes.is_file() else None
    bases = [*([Path(started)] if started else []), Path.cwd(), folder.resolve().parent.parent.parent]
    return list(dict.fromkeys(base / Path(path).expanduser() for base in bases))


def run_stores(folder: Path) -> tp.List[Path]:
    """Fingerprint stores beside a run's checkpoints, the one of recipe `default` first."""
    found = sorted(path.parent for path in (folder / 'lumina').glob('*/manifest.json'))
    return sorted(found, key=lambda path: path.name != 'default')


def default_device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def expect_model(source: tp.Union[str, Path]) -> None:
    """Raise LuminaError where `source` is nothing that `load_musicgen` could take; nothing is loaded or fetched."""
    if run_folder(source) is not None:
        return
    if Path(source).is_dir():
        missing = [name for name in (_LM_FILE, _CODEC_FILE) if not (Path(source) / name).is_file()]
        if missing:
            raise LuminaError(f"{source} has no {missing[0]}: it is neither an exported MusicGen nor a dora run; "
                              "export one with lumina_plugin.models.export_musicgen.")
    elif Path(source).exists() or not _HUB_NAME.fullmatch(str(source)):
        raise LuminaError(f"There is no model {source}: give a dora run's folder or signature, an exported folder, or "
                          "a hub name such as facebook/musicgen-small.")


def _expect_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LuminaError(f"The device {device} cannot be used here ({_first_line(error)[:80]}); choose cpu, or cuda "
                          "where there is an NVIDIA GPU.") from error


def licence_note(name: str) -> tp.Optional[str]:
    """What must be said about a hub model's weights, or None."""
    return LICENCE_NOTE.format(name=name) if name.startswith('facebook/') else None


def load_musicgen(source: tp.Union[str, Path], device: tp.Optional[str] = None) -> tp.Any:
    """Load a MusicGen, ready to generate.

    Args:
        source (str or path): Folder or signature of a dora run, a folder with `state_dict.bin` and
            `compression_state_dict.bin` (audiocraft's export format), or a hub name such as facebook/musicgen-small.
        device (str, optional): cpu or cuda; cuda where there is one unless said.
    Returns:
        audiocraft `MusicGen`.
    Raises:
        LuminaError: when there is no such model, or a hub cannot be reached.
    """
    compat.install()
    device = device or default_device()
    _expect_device(device)
    expect_model(source)
    folder = run_folder(source)
    return _from_run(folder, device) if folder is not None else _from_export(str(source), device)


def _from_export(source: str, device: str) -> tp.Any:
    """The model of an exported folder, or of a hub."""
    from audiocraft.models import MusicGen
    from audiocraft.models.loaders import load_compression_model, load_lm_model, load_lm_model_ckpt
    mend = "connect to the hub once, or give an exported folder"
    if Path(source).is_dir():
        mend = "export it again, or connect to the hub once if its codec is a hub's"
    with _usable(f"{_LM_FILE} of {source}", mend):
        lm: tp.Any = load_lm_model(source, device=device)
        if device != 'cpu':  # it was rounded to fp16; hashes and fingerprints want the weights as they are
            lm.float().load_state_dict(load_lm_model_ckpt(source)['best_state'])
        segment = float(lm.cfg.dataset.segment_duration)
    with _usable(f"{_CODEC_FILE} of {source}", mend):
        codec = load_compression_model(source, device=device)
    if 'self_wav' in lm.condition_provider.conditioners:  # as MusicGen.get_pretrained does for melody models
        melody: tp.Any = lm.condition_provider.conditioners['self_wav']
        melody.match_len_on_eval = True
        melody._use_masking = False
    return make_musicgen(MusicGen, source, codec, lm, segment)


def _from_run(folder: Path, device: str) -> tp.Any:
    """The model of a dora run with the weights of its last fingerprinted checkpoint, else of its last checkpoint."""
    from audiocraft.models import MusicGen, builders

    from .codec import load_codec
    cfg, weights = run_config(folder), _run_weights(folder)
    with _configuration(folder):
        cfg.device, cfg.dtype = device, 'float32'
        lm: tp.Any = builders.get_lm_model(cfg).to(device)
        segment = float(cfg.dataset.segment_duration)
    with _usable(f"The checkpoint of run {folder.name}", "train it again with `dora run`"):
        lm.load_state_dict(weights)
    lm.eval()
    lm.cfg = cfg
    codec = load_codec(_run_codec(folder), device=device)
    return make_musicgen(MusicGen, f'dora:{folder.name}', codec, lm, segment)


def _run_codec(folder: Path) -> tp.Union[str, Path]:
    """What a run calls its codec; a path of it, which may be relative, made absolute."""
    name = run_key(folder, 'compression_model_checkpoint')
    if not name:
        raise LuminaError(f"The configuration of run {folder.name} names no compression_model_checkpoint, so that its "
                          "codec is not known; restore the key, or train the run again with `dora run`.")
    if str(name) == 'tiny' or str(name).startswith(('//', 'lumina//')):  # names, whatever lies around
        return str(name)
    return next((path for path in run_paths(folder, name) if path.exists()), str(name))


def _run_weights(folder: Path) -> tp.Mapping[str, torch.Tensor]:
    for path in run_stores(folder):
        store = FingerprintStore.open(path)
        kept = [c for c in store.checkpoints if c.complete and c.weights is not None]
        if kept:
            return store.load_weights(kept[-1])
    last = folder / 'checkpoint.th'
    if not last.is_file():
        raise LuminaError(f"Run {folder.name} has no checkpoint yet; train it first with `dora run`.")
    return training_weights(last)


def training_weights(path: Path) -> tp.Mapping[str, torch.Tensor]:
    """A model's weights in a training's `checkpoint.th`, as exports take them: of the EMA where there is one.

    Raises:
        LuminaError: when it cannot be read as one.
    """
    compat.install()
    with _usable(str(path), "restore it from a backup, or train the run again with `dora run`"):
        state = torch.load(path, map_location='cpu', weights_only=True)
        weights: tp.Mapping[str, torch.Tensor] = state['ema']['state']['model'] if state.get('ema') else state['model']
        return weights


def make_musicgen(kind: tp.Any, name: str, codec: tp.Any, lm: tp.Any, segment: float) -> tp.Any:
    """Build a `MusicGen` that generates `segment` seconds at once.

    Where audiocraft's defaults for a stride and for top_k do not fit a short or small model, its own
    `set_generation_params` gets others, so that callers need not know.
    """
    musicgen = kind(name, codec, lm, max_duration=max(segment, _EXTEND_STRIDE + 1))
    musicgen.max_duration = segment
    stride, top_k = min(_EXTEND_STRIDE, segment / 2), min(_TOP_K, lm.card)
    if segment <= _EXTEND_STRIDE or lm.card < _TOP_K:
        musicgen.set_generation_params = functools.partial(musicgen.set_generation_params, extend_stride=stride,
                                                           top_k=top_k)
    musicgen.set_generation_params(top_k=top_k, duration=segment, extend_stride=stride)
    return musicgen


def export_musicgen(source: tp.Union[str, Path], out: tp.Union[str, Path]) -> Path:
    """Write a dora run's model as a folder in audiocraft's export format, which `load_musicgen` and audiocraft read.

    Raises:
        LuminaError: when `source` is no dora run.
    """
    compat.install()
    from .codec import export_compression_state
    folder = run_folder(source)
    if folder is None:
        raise LuminaError(f"{source} is no dora run: give the folder or signature of a training.")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    cfg = run_config(folder)
    torch.save({'best_state': dict(_run_weights(folder)), 'xp.cfg': omegaconf.OmegaConf.to_yaml(cfg), 'exported': True,
                'version': '1.3.0'}, out / _LM_FILE)
    export_compression_state(_run_codec(folder), out / _CODEC_FILE)
    return out


@contextlib.contextmanager
def _usable(what: str, mend: str) -> tp.Iterator[None]:
    """Tell as bad input that a file is damaged: reading one, audiocraft and torch raise exceptions of every kind."""
    try:
        yield
    except LuminaError:
        raise
    except torch.OutOfMemoryError as error:
        raise LuminaError(f"{what} does not fit into the memory of the GPU; use --device cpu.") from error
    except Exception as error:
        raise LuminaError(f"{what} cannot be used ({_first_line(error)}); {mend}.") from error


def _configuration(folder: Path) -> tp.ContextManager[None]:
    return _usable(f"The configuration of run {folder.name}, {folder / '.hydra' / 'config.yaml'},",
                   "restore it from a backup, or train the run again with `dora run`")


def _first_line(error: BaseException) -> str:
    """The kind of an error and its first sentence: torch says a lot more about files that it cannot read."""
    first = (str(error).strip().splitlines() or [''])[0].split('. ')[0].rstrip('.:')[:200]
    return f'{type(error).__name__}: {first}' if first else type(error).__name__
