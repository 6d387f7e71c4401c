"""A MusicGen from wherever it lies: a dora run, an exported folder, or a hub."""

import re
import typing as tp
from pathlib import Path

import omegaconf
import torch

from . import compat
from .errors import LuminaError
from .store import FingerprintStore

LICENCE_NOTE = "The weights of {name} are published for non-commercial use only (CC BY-NC 4.0)."
_HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+')
_EXTEND_STRIDE = 18.  # audiocraft's default; a model that generates less at once needs a smaller one


def run_folder(source: tp.Union[str, Path]) -> tp.Optional[Path]:
    """The folder of a dora run, named by itself or by its signature; None where `source` is neither."""
    path = Path(source)
    if (path / '.hydra' / 'config.yaml').is_file():
        return path
    if re.fullmatch(r'[0-9a-f]{8}', str(source)):
        import os
        base = Path(os.environ.get('AUDIOCRAFT_DORA_DIR', os.environ.get('LUMINA_DORA_DIR', 'outputs')))
        folder = base / 'xps' / str(source)
        if (folder / '.hydra' / 'config.yaml').is_file():
            return folder
        raise LuminaError(f"There is no run {source} below {base}; check the signature or set LUMINA_DORA_DIR.")
    return None


def run_config(folder: Path) -> omegaconf.DictConfig:
    """The configuration that a dora run was started with."""
    return tp.cast(omegaconf.DictConfig, omegaconf.OmegaConf.load(folder / '.hydra' / 'config.yaml'))


def run_stores(folder: Path) -> tp.List[Path]:
    """Fingerprint stores beside a run's checkpoints, the one of recipe `default` first."""
    found = sorted(path.parent for path in (folder / 'lumina').glob('*/manifest.json'))
    return sorted(found, key=lambda path: path.name != 'default')


def default_device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


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
    folder = run_folder(source)
    if folder is not None:
        return _from_run(folder, device)
    from audiocraft.models import MusicGen
    path = Path(source)
    if path.is_dir():
        missing = [name for name in ('state_dict.bin', 'compression_state_dict.bin') if not (path / name).is_file()]
        if missing:
            raise LuminaError(f"{source} has no {missing[0]}: it is neither an exported MusicGen nor a dora run; "
                              "export one with lumina_plugin.models.export_musicgen.")
    elif not _HUB_NAME.fullmatch(str(source)):
        raise LuminaError(f"There is no model {source}: give a dora run's folder or signature, an exported folder, or "
                          "a hub name such as facebook/musicgen-small.")
    try:
        lm, codec = _load_exported(str(source), device)
    except OSError as error:
        raise LuminaError(f"Cannot load {source} ({_first_line(error)}); connect to the hub once, or give a "
                          "folder.") from error
    return make_musicgen(MusicGen, str(source), codec, lm, float(lm.cfg.dataset.segment_duration))


def _load_exported(source: str, device: str) -> tp.Tuple[tp.Any, tp.Any]:
    from audiocraft.models.loaders import load_compression_model, load_lm_model, load_lm_model_ckpt
    lm = load_lm_model(source, device=device)
    if device != 'cpu':  # it was rounded to fp16; hashes and fingerprints want the weights as they are
        lm.float().load_state_dict(load_lm_model_ckpt(source)['best_state'])
    codec = load_compression_model(source, device=device)
    if 'self_wav' in lm.condition_provider.conditioners:  # as MusicGen.get_pretrained does for melody models
        melody: tp.Any = lm.condition_provider.conditioners['self_wav']
        melody.match_len_on_eval = True
        melody._use_masking = False
    return lm, codec


def _from_run(folder: Path, device: str) -> tp.Any:
    """The model of a dora run with the weights of its last fingerprinted checkpoint, else of its last checkpoint."""
    from audiocraft.models import MusicGen, builders

    from .codec import load_codec
    cfg = run_config(folder)
    cfg.device, cfg.dtype = device, 'float32'
    lm: tp.Any = builders.get_lm_model(cfg).to(device)
    lm.load_state_dict(_run_weights(folder))
    lm.eval()
    lm.cfg = cfg
    codec = load_codec(cfg.compression_model_checkpoint, device=device)
    return make_musicgen(MusicGen, f'dora:{folder.name}', codec, lm, float(cfg.dataset.segment_duration))


def _run_weights(folder: Path) -> tp.Mapping[str, torch.Tensor]:
    for path in run_stores(folder):
        store = FingerprintStore.open(path)
        kept = [c for c in store.checkpoints if c.complete and c.weights is not None]
        if kept:
            return store.load_weights(kept[-1])
    last = folder / 'checkpoint.th'
    if not last.is_file():
        raise LuminaError(f"Run {folder.name} has no checkpoint yet; train it first with `dora run`.")
    state = torch.load(last, map_location='cpu', weights_only=True)
    return state['ema']['state']['model'] if state.get('ema') else state['model']


def make_musicgen(kind: tp.Any, name: str, codec: tp.Any, lm: tp.Any, segment: float) -> tp.Any:
    """Build a `MusicGen` that generates `segment` seconds at once, also where that is less than its default stride."""
    musicgen = kind(name, codec, lm, max_duration=max(segment, _EXTEND_STRIDE + 1))
    musicgen.max_duration = segment
    musicgen.set_generation_params(top_k=min(250, lm.card), duration=segment,
                                   extend_stride=min(_EXTEND_STRIDE, segment / 2))
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
                'version': '1.3.0'}, out / 'state_dict.bin')
    export_compression_state(cfg.compression_model_checkpoint, out / 'compression_state_dict.bin')
    return out


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
