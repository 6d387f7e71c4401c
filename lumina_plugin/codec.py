"""Codecs by name: the one in the package, a dora run's, an exported folder's, or a hub's.

The shipped codec is two files, `weights/codec_tiny.safetensors` and `weights/codec_tiny.json` (architecture, hash):
no pickle, no download. audiocraft is imported only when a codec is built.
"""

import hashlib
import json
import typing as tp
from pathlib import Path

from . import compat
from .atomic import write_atomic, write_json
from .errors import LuminaError

if tp.TYPE_CHECKING:
    import omegaconf
    import torch
    from audiocraft.models import CompressionModel

WEIGHTS = Path(__file__).parent / 'weights'
SHIPPED = 'codec_tiny'
_SHIPPED_NAMES = ('lumina//tiny', 'tiny')
_FORMAT = 1
# The quantiser's bookkeeping while it trains: encoding and decoding do not read it.
_TRAINING_ONLY = ('cluster_size', 'embed_avg', 'inited')
_ARCHITECTURE_KEYS = ('compression_model', 'sample_rate', 'channels', 'encodec', 'seanet', 'rvq')


def load_codec(name_or_path: tp.Union[str, Path, None] = None,
               device: tp.Union[str, 'torch.device'] = 'cpu') -> 'CompressionModel':
    """Load a codec, in eval mode.

    Args:
        name_or_path (str or Path, optional): One of
            - nothing, or `lumina//tiny`: the codec in the package;
            - a folder or file that `export_codec` made;
            - a folder with audiocraft's `compression_state_dict.bin`, or such a file;
            - `//sig/<signature>`, a run's folder or its `checkpoint.th`: a codec trained by dora;
            - `//pretrained/<name>` or a name on the hub, e.g. `facebook/encodec_32khz`, `facebook/musicgen-small`.
        device (str or torch.device): Where its weights go.
    Returns:
        CompressionModel: audiocraft's, here an `EncodecModel`.
    Raises:
        LuminaError: nothing of that name, or what is there is no codec or is damaged.
    """
    compat.install()
    name = str(name_or_path) if name_or_path is not None else _SHIPPED_NAMES[0]
    if name in _SHIPPED_NAMES:
        return _load_exported(WEIGHTS / f'{SHIPPED}.json', device)
    if name.startswith('lumina//'):
        raise LuminaError(f"{name} is not in the package: the only codec there is {_SHIPPED_NAMES[0]}.")
    if name.startswith('//sig/'):
        return _load_run(name, device)
    name = name.removeprefix('//pretrained/')
    path = Path(name).expanduser()
    if path.exists():
        return _load_path(path, device)
    if name.startswith(('/', '.', '~')):
        raise LuminaError(f"There is no codec at {path}: correct the path, or use {_SHIPPED_NAMES[0]}.")
    return _load_hub(name, device)


def load_for_solver(cfg: 'omegaconf.DictConfig', name_or_path: tp.Union[str, Path, None],
                    device: tp.Union[str, 'torch.device'] = 'cpu') -> 'CompressionModel':
    """`load_codec` for a MusicGen solver: also applies `interleave_stereo_codebooks` and `compression_model_n_q`.

    Takes the place of audiocraft's `CompressionSolver.wrapped_model_from_checkpoint`, with the same meaning of `cfg`.
    """
    model = load_codec(name_or_path, device)
    from audiocraft.models.builders import get_wrapped_compression_model
    return get_wrapped_compression_model(model, cfg)


def encode(model: 'CompressionModel', wav: 'torch.Tensor') -> 'torch.Tensor':
    """wav: [B, C, samples] at the codec's rate. Returns codes [B, K, T]. No gradients."""
    import torch
    if wav.dim() != 3 or wav.shape[1] != model.channels:
        raise LuminaError(f"The codec takes audio of shape [B, {model.channels}, samples], not {list(wav.shape)}.")
    with torch.no_grad():
        codes, scale = model.encode(wav)
    if scale is not None:
        raise LuminaError("This codec rescales each example, which no language model over its codes can follow: "
                          "use one with renormalize: false.")
    return codes


def decode(model: 'CompressionModel', codes: 'torch.Tensor') -> 'torch.Tensor':
    """codes: [B, K, T]. Returns audio [B, C, samples], T frames long. No gradients."""
    import torch
    with torch.no_grad():
        return model.decode(codes, None)


def codec_hash(model: 'CompressionModel') -> str:
    """SHA-256 over what decides a codec's codes and sound: layout, layers and weights.

    The same in every process and on every device. The quantiser's bookkeeping while it trains is left out, so that a
    checkpoint and its fp32 export share a hash.
    """
    digest = hashlib.sha256()
    facts = {key: getattr(model, key, None) for key in
             ('sample_rate', 'channels', 'cardinality', 'num_codebooks', 'causal', 'renormalize')}
    facts['frame_rate'] = float(model.frame_rate)
    layers = [[name, type(module).__name__]
              + [list(value) for key in ('kernel_size', 'stride', 'dilation')
                 if isinstance(value := getattr(module, key, None), tuple)]
              for name, module in model.named_modules()]
    digest.update(json.dumps([facts, layers], sort_keys=True, default=str).encode())
    for name, tensor in sorted(_weights(model).items()):
        tensor = tensor.detach().cpu()
        tensor = (tensor.float() if tensor.is_floating_point() else tensor.long()).contiguous()
        digest.update(f'{name} {list(tensor.shape)}\0'.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _weights(model: 'CompressionModel') -> tp.Dict[str, 'torch.Tensor']:
    return {name: tensor for name, tensor in model.state_dict().items()
            if name.rsplit('.', 1)[-1] not in _TRAINING_ONLY}


# --- exporting --------------------------------------------------------------------------------------------------------

def export_codec(sig_or_checkpoint: tp.Union[str, Path], out_dir: tp.Union[str, Path], name: str = SHIPPED,
                 half: bool = False, audiocraft_too: bool = False) -> Path:
    """Write a dora run's codec as safetensors and JSON: the best state, which is the running mean of the weights.

    Args:
        sig_or_checkpoint (str or Path): `//sig/<signature>`, a run's folder or its `checkpoint.th`.
        out_dir (str or Path): Folder of the files `<name>.safetensors` and `<name>.json`.
        name (str): Their stem.
        half (bool): Keep weights in fp16, half the size.
        audiocraft_too (bool): Also write audiocraft's own `compression_state_dict.bin`.
    Returns:
        Path: the JSON file, which `load_codec` takes.
    Raises:
        LuminaError: there is no such run, or it is not an EnCodec model, or the folder cannot be written.
    """
    compat.install()
    import torch
    from omegaconf import OmegaConf
    from safetensors.torch import save
    state = _checkpoint(sig_or_checkpoint)
    cfg = OmegaConf.to_container(state['xp.cfg'], resolve=True)
    assert isinstance(cfg, dict)
    architecture = {key: cfg[key] for key in _ARCHITECTURE_KEYS}
    if architecture['encodec']['quantizer'] != 'rvq':
        raise LuminaError(f"{sig_or_checkpoint} has no residual vector quantiser: only codecs with codes are exported.")
    model = _build(architecture, 'cpu')
    model.load_state_dict(state['best_state']['model'])
    weights = {key: (value.half() if half else value.float()).contiguous() for key, value in _weights(model).items()}
    out_dir = Path(out_dir)
    write_atomic(out_dir / f'{name}.safetensors', save(weights))
    model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False)
    path = write_json(out_dir / f'{name}.json', {
        'format': _FORMAT, 'name': name, 'weights': f'{name}.safetensors', 'dtype': 'float16' if half else 'float32',
        'hash': codec_hash(model), 'epochs': len(state.get('history') or []), 'architecture': architecture})
    if audiocraft_too:
        package = {'best_state': model.state_dict(), 'xp.cfg': OmegaConf.to_yaml(OmegaConf.create(
            {**architecture, 'device': 'cpu'})), 'version': '1.3.0', 'exported': True}
        temporary = out_dir / '.compression_state_dict.part'
        torch.save(package, temporary)
        write_atomic(out_dir / 'compression_state_dict.bin', temporary.read_bytes())
        temporary.unlink()
    return path


def export_compression_state(name_or_path: tp.Union[str, Path], out_file: tp.Union[str, Path]) -> Path:
    """Write a codec as audiocraft's `compression_state_dict.bin`, to lie beside an exported language model.

    Args:
        name_or_path (str or Path): As in `load_codec`. A codec from the hub is written as its name, as audiocraft does.
        out_file (str or Path): The file.
    Raises:
        LuminaError: as `load_codec`.
    """
    import io

    import torch
    from omegaconf import OmegaConf
    name = str(name_or_path)
    package: tp.Dict[str, tp.Any] = {'version': '1.3.0', 'exported': True}
    path = Path(WEIGHTS / f'{SHIPPED}.json' if name in _SHIPPED_NAMES else name).expanduser()
    exported = sorted(path.glob('*.json')) if path.is_dir() else [path.with_suffix('.json')]
    if len(exported) == 1 and exported[0].is_file():
        architecture = json.loads(exported[0].read_text())['architecture']
        package.update({'best_state': load_codec(name).state_dict(),
                        'xp.cfg': OmegaConf.to_yaml(OmegaConf.create({**architecture, 'device': 'cpu'}))})
    elif name.startswith('//sig/') or path.exists():
        state = _checkpoint(name)
        package.update({'best_state': state['best_state']['model'], 'xp.cfg': OmegaConf.to_yaml(state['xp.cfg'])})
    else:
        package['pretrained'] = name.removeprefix('//pretrained/')
    buffer = io.BytesIO()
    torch.save(package, buffer)
    write_atomic(Path(out_file), buffer.getvalue())
    return Path(out_file)


def _checkpoint(sig_or_checkpoint: tp.Union[str, Path]) -> dict:
    """The state of a dora run of a codec, as its solver saved it."""
    from audiocraft.utils import checkpoint
    path = checkpoint.resolve_checkpoint_path(str(sig_or_checkpoint), use_fsdp=False)
    if path is None:
        raise LuminaError(f"There is no checkpoint at {sig_or_checkpoint}: give //sig/<signature> of a codec's run, "
                          "its folder, or its checkpoint.th (LUMINA_DORA_DIR says where runs are).")
    try:
        state = checkpoint.load_checkpoint(path)
        if 'compression_model' in state['xp.cfg'] and state['best_state'].get('model'):
            return state
    except Exception as error:
        raise LuminaError(f"{path} cannot be read as a checkpoint ({_first_line(error)}): train it again.") from error
    raise LuminaError(f"{path} is not the checkpoint of a codec: give one of a solver=compression/... run.")


# --- loading ----------------------------------------------------------------------------------------------------------

def _build(architecture: tp.Mapping[str, tp.Any], device: tp.Union[str, 'torch.device']) -> 'CompressionModel':
    """An EncodecModel with fresh weights. Leaves torch's random state as it was."""
    import torch
    from audiocraft.models.builders import get_compression_model
    from omegaconf import OmegaConf
    with torch.random.fork_rng(devices=[]):
        return get_compression_model(OmegaConf.create({**architecture, 'device': str(device)})).eval()


def _load_exported(path: Path, device: tp.Union[str, 'torch.device']) -> 'CompressionModel':
    from safetensors.torch import load
    try:
        facts = json.loads(path.read_text())
        if facts['format'] != _FORMAT:
            raise LuminaError(f"{path} has format {facts['format']}; this version reads {_FORMAT}: export it again.")
        state = {key: value.float() for key, value in load((path.parent / facts['weights']).read_bytes()).items()}
        model = _build(facts['architecture'], device)
        missing, unexpected = model.load_state_dict(state, strict=False)
    except LuminaError:
        raise
    except Exception as error:
        raise LuminaError(f"The codec {path} is missing or damaged ({_first_line(error)}): "
                          "export it again, or reinstall the package.") from error
    if unexpected or [name for name in missing if name.rsplit('.', 1)[-1] not in _TRAINING_ONLY]:
        raise LuminaError(f"The codec {path} does not match its weights {facts['weights']}: export it again.")
    for layer in model.quantizer.vq.layers:  # type: ignore[union-attr]
        layer._codebook.inited.fill_(1)
    found = codec_hash(model)
    if found != facts['hash']:
        raise LuminaError(f"The codec {path} is damaged: its weights hash to {found[:12]}, "
                          f"not {facts['hash'][:12]}. Export it again, or reinstall the package.")
    return model


def _load_run(name: str, device: tp.Union[str, 'torch.device']) -> 'CompressionModel':
    from omegaconf import OmegaConf
    state = _checkpoint(name)
    cfg = OmegaConf.to_container(state['xp.cfg'], resolve=True)
    assert isinstance(cfg, dict)
    model = _build({key: cfg[key] for key in cfg if key in (*_ARCHITECTURE_KEYS, 'no_quant')}, device)
    model.load_state_dict(state['best_state']['model'])
    return model


def _load_path(path: Path, device: tp.Union[str, 'torch.device']) -> 'CompressionModel':
    if path.is_dir():
        exported = sorted(p for p in path.glob('*.json') if p.with_suffix('.safetensors').exists())
        if (path / 'compression_state_dict.bin').exists():
            path = path / 'compression_state_dict.bin'
        elif len(exported) == 1:
            path = exported[0]
        elif (path / 'checkpoint.th').exists():
            path = path / 'checkpoint.th'
        else:
            raise LuminaError(f"{path} holds no codec: expected compression_state_dict.bin, checkpoint.th, or one "
                              f"pair of .json and .safetensors (found {len(exported)}).")
    if path.suffix in ('.json', '.safetensors'):
        return _load_exported(path.with_suffix('.json'), device)
    if path.suffix == '.th':
        return _load_run(str(path.absolute()), device)
    from audiocraft.models import loaders
    try:
        return loaders.load_compression_model(str(path), device=str(device)).eval()
    except Exception as error:
        raise LuminaError(f"{path} cannot be read as an exported codec ({_first_line(error)}): "
                          "export it again with audiocraft's export_encodec.") from error


def _load_hub(name: str, device: tp.Union[str, 'torch.device']) -> 'CompressionModel':
    from audiocraft.models import CompressionModel, loaders
    try:
        if 'encodec' in name or name in ('dac_44khz', 'dac_24khz', 'debug_compression_model'):
            return CompressionModel.get_pretrained(name, device)
        return loaders.load_compression_model(name, device=str(device)).eval()
    except Exception as error:
        raise LuminaError(f"The codec {name} could not be fetched from the hub ({_first_line(error)}): "
                          f"check the name and the connection, or use {_SHIPPED_NAMES[0]}.") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f'{type(error).__name__}: {text[0][:200]}' if text else type(error).__name__
