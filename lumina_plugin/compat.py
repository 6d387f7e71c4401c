"""Everything that lets audiocraft 1.3.0 run beside current releases of its dependencies.

This is the only module of the project that patches anything. Each shim first asks whether the real thing works
and, where it does, stays out of the way. What is shimmed, and why:

| name          | without it                                                                                    |
|---------------|-----------------------------------------------------------------------------------------------|
| `xformers`    | `audiocraft.modules.transformer` imports `xformers.ops` even where it never uses it           |
| `torchaudio`  | a torchaudio built for CUDA cannot load its compiled extension beside a CPU torch (OSError)   |
| `checkpoints` | torch >= 2.6 unpickles known types only; audiocraft's checkpoints hold omegaconf's            |
| `audio_write` | audiocraft writes audio by running the `ffmpeg` binary, which a fresh machine lacks           |
| `train`       | the pip package of audiocraft has no `config/`, so `audiocraft.train` cannot be imported      |
| `quiet`       | notices raised inside audiocraft's or flashy's code, which nobody who sees them can act upon  |

Importing this module costs nothing (no torch); `install` imports torch. Call it before audiocraft is imported.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import shutil
import sys
import types
import typing as tp
import warnings
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shim:
    """One shim as `lumina doctor` shows it.

    Attributes:
        name (str): Short name, see the table above.
        active (bool): False where the real thing works and nothing was patched.
        reason (str): Why it is active, or why it is not needed.
    """
    name: str
    active: bool
    reason: str


_installed: tp.Optional[tp.List[Shim]] = None


def install() -> tp.List[Shim]:
    """Install whatever is needed and return all shims, active or not. Idempotent: a second call changes nothing."""
    global _installed
    if _installed is None:
        _installed = [_xformers(), _torchaudio(), _checkpoints(), _audio_write(), _train(), _quiet()]
    return list(_installed)


def active() -> tp.List[Shim]:
    """The shims that patched something in this process (none before `install`)."""
    return [shim for shim in _installed or [] if shim.active]


def config_dir() -> Path:
    """Folder of the Hydra configuration: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).resolve().parent / 'config'
    return inside if inside.is_dir() else inside.parent.parent / 'config'


# --- helpers ----------------------------------------------------------------------------------------------------------

def _installed_path(package: str) -> tp.Optional[Path]:
    """Folder of an installed package without importing it, None where it is absent."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0]) if places else None


def _forget(package: str) -> None:
    """Drop a package whose import broke half way, so that the next import starts afresh."""
    for name in [name for name in sys.modules if name == package or name.startswith(package + '.')]:
        del sys.modules[name]


class _AfterImport(importlib.abc.MetaPathFinder):
    """Runs a function on a module right after its first import, so that installing a shim imports nothing heavy."""

    def __init__(self, name: str, then: tp.Callable[[types.ModuleType], None]):
        self.name, self.then = name, then

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)  # once only, and not while we look for the real module below
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                self.then(module)
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    @classmethod
    def register(cls, name: str, then: tp.Callable[[types.ModuleType], None]) -> None:
        """Call `then(module)` now if the module is imported already, otherwise once it is."""
        if name in sys.modules:
            then(sys.modules[name])
        else:
            sys.meta_path.insert(0, cls(name, then))


# --- xformers ---------------------------------------------------------------------------------------------------------

class LowerTriangularMask:
    """Asks for causal attention, as xformers' class of that name does when it is passed as `attn_bias`."""


def _memory_efficient_attention(query, key, value, attn_bias=None, p: float = 0.0, scale: tp.Optional[float] = None):
    """xformers' attention by torch's own kernel. query, key, value: [B, T, H, D]; returns [B, T, H, D]."""
    from torch.nn import functional as F
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [B, H, T, D]
    causal = isinstance(attn_bias, LowerTriangularMask)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=None if causal else attn_bias, is_causal=causal, dropout_p=p, scale=scale)
    return out.transpose(1, 2)


def _xformers() -> Shim:
    if 'xformers' in sys.modules or _installed_path('xformers') is not None:
        try:
            importlib.import_module('xformers.ops')
            return Shim('xformers', False, 'the installed xformers works')
        except Exception as error:  # built for another torch: ImportError, OSError, RuntimeError, ...
            _forget('xformers')
            reason = f'the installed xformers does not import ({type(error).__name__}: {error})'
    else:
        reason = 'xformers is not installed; torch does the attention'
    import torch
    package, ops = types.ModuleType('xformers'), types.ModuleType('xformers.ops')
    package.__path__ = []  # a package without files: asking for any other submodule is a plain ImportError
    package.__doc__ = ops.__doc__ = 'Stand-in by lumina_plugin.compat.'
    for module in (package, ops):  # whoever asks importlib whether xformers is there gets an answer, not an error
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=module is package)
    package.ops = ops  # type: ignore[attr-defined]
    ops.unbind = torch.unbind  # type: ignore[attr-defined]
    ops.LowerTriangularMask = LowerTriangularMask  # type: ignore[attr-defined]
    ops.memory_efficient_attention = _memory_efficient_attention  # type: ignore[attr-defined]
    sys.modules['xformers'], sys.modules['xformers.ops'] = package, ops
    return Shim('xformers', True, reason)


# --- torchaudio -------------------------------------------------------------------------------------------------------

def _torchaudio() -> Shim:
    if 'torchaudio' not in sys.modules and _installed_path('torchaudio') is None:
        return Shim('torchaudio', False, 'torchaudio is not installed: audiocraft will ask for it')
    try:
        importlib.import_module('torchaudio')
        return Shim('torchaudio', False, 'the installed torchaudio works')
    except (OSError, ImportError, RuntimeError) as error:
        reason = f'its compiled extension does not load beside this torch ({type(error).__name__})'
    _forget('torchaudio')

    def no_extension(*_args, **_kwargs):
        raise RuntimeError("torchaudio's compiled extension is not available beside this torch.")
    extension = types.ModuleType('torchaudio._extension')
    extension.__doc__ = 'Stand-in by lumina_plugin.compat.'
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    extension._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
    extension._load_lib = no_extension  # type: ignore[attr-defined]
    extension.fail_if_no_align = lambda _fn: no_extension  # type: ignore[attr-defined]
    sys.modules['torchaudio._extension'] = extension
    importlib.import_module('torchaudio')  # spectrogram, mel and loudness are plain torch
    return Shim('torchaudio', True, reason)


# --- checkpoints ------------------------------------------------------------------------------------------------------

def _plain_dict(*_default_factory: tp.Any) -> dict:
    """What a pickled `defaultdict` becomes: torch's restricted unpickler fills plain dictionaries only."""
    return {}


def _checkpoints() -> Shim:
    import torch
    if not hasattr(torch.serialization, 'add_safe_globals'):
        return Shim('checkpoints', False, f'torch {torch.__version__} loads the types in checkpoints')
    import omegaconf
    from omegaconf import base, nodes
    # Containers and leaf nodes of a configuration, and the plain types that their pickles name. No code can hide in
    # these, so `weights_only=True` keeps protecting from everything else.
    torch.serialization.add_safe_globals([
        omegaconf.DictConfig, omegaconf.ListConfig, base.ContainerMetadata, base.Metadata, tp.Any,
        nodes.AnyNode, nodes.StringNode, nodes.IntegerNode, nodes.FloatNode, nodes.BooleanNode,
        (_plain_dict, 'collections.defaultdict'),  # in the state of audiocraft's running mean of weights
        dict, list, int, float, str, bool])
    return Shim('checkpoints', True, f'torch {torch.__version__} must be told that omegaconf types are data')


# --- audio_write ------------------------------------------------------------------------------------------------------

def _write_with_soundfile(out_path, wav, sample_rate: int, flags: tp.Sequence[str]) -> None:
    """Stands in for audiocraft's pipe into ffmpeg. wav: [C, T] in -1..1; flags: ffmpeg's, of which `-f` is read."""
    import soundfile
    kind = flags[list(flags).index('-f') + 1] if '-f' in flags else Path(out_path).suffix.lstrip('.') or 'wav'
    form, subtype = {'wav': ('WAV', 'PCM_16'), 'flac': ('FLAC', 'PCM_16'),
                     'ogg': ('OGG', 'VORBIS'), 'mp3': ('MP3', 'MPEG_LAYER_III')}[kind]
    samples = wav.detach().cpu().float().clamp(-1, 1).t().numpy()  # [T, C]
    part = f'{out_path}.part'
    try:
        soundfile.write(part, samples, sample_rate, format=form, subtype=subtype)
        os.replace(part, out_path)
    finally:
        Path(part).unlink(missing_ok=True)


def _audio_write() -> Shim:
    if shutil.which('ffmpeg') is not None:
        return Shim('audio_write', False, 'the ffmpeg binary is there')

    def patch(module: types.ModuleType) -> None:
        module._piping_to_ffmpeg = _write_with_soundfile  # type: ignore[attr-defined]
    _AfterImport.register('audiocraft.data.audio', patch)
    return Shim('audio_write', True, 'no ffmpeg binary; soundfile writes wav, flac, ogg and mp3')


# --- train ------------------------------------------------------------------------------------------------------------

def _train() -> Shim:
    place = _installed_path('audiocraft')
    if place is None:
        return Shim('train', False, 'audiocraft is not installed')
    if (place.parent / 'config' / 'config.yaml').is_file():
        return Shim('train', False, "audiocraft's own config folder is there")
    os.environ.setdefault('AUDIOCRAFT_CONFIG', str(config_dir() / 'teams' / 'default.yaml'))
    if 'audiocraft.train' not in sys.modules:
        sys.meta_path.insert(0, _TrainAlias())
    return Shim('train', True, 'audiocraft came without config/; lumina_plugin.train stands in for audiocraft.train')


class _TrainAlias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes `audiocraft.train` another name of `lumina_plugin.train`, imported when somebody asks for it."""

    def find_spec(self, fullname, path=None, target=None):
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == 'audiocraft.train' else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        sys.modules['audiocraft.train'] = importlib.import_module('lumina_plugin.train')


# --- quiet ------------------------------------------------------------------------------------------------------------

# What a notice says, its category, and the module whose line it is attributed to ('' is any).
_NOTICES: tp.Tuple[tp.Tuple[str, tp.Type[Warning], str], ...] = (
    # audiocraft's convolutions use the older of torch's two weight norms; their checkpoints depend on it.
    (r'.*torch\.nn\.utils\.weight_norm.*is deprecated.*', FutureWarning, ''),
    # audiocraft's solvers name the gradient scaler and autocast by their old place.
    (r'.*torch\.cuda\.amp\.\w+\(args\.\.\.\).*is deprecated.*', FutureWarning, ''),
    # Tells every run about a bug of audiocraft 1.0.1 that is fixed in 1.3.0.
    (r'Up to version 1\.0\.1, the _prepare_tokens_and_attributes.*', UserWarning, ''),
    # flashy's averager takes float() of the losses that audiocraft's solvers hand it undetached, only to show them; no
    # gradient goes that way. From any other module the same warning may name a real mistake, so it is still shown.
    (r'Converting a tensor with requires_grad=True to a scalar.*', UserWarning, r'flashy\.utils$'),
)


def _quiet() -> Shim:
    for message, category, module in _NOTICES:
        warnings.filterwarnings('ignore', message=message, category=category, module=module)
    return Shim('quiet', True, f'{len(_NOTICES)} notices of audiocraft 1.3.0 and flashy are not shown')
