"""The tiny Oobleck autoencoder: exported from a training, shipped in the package, loaded from there.

Two files, `weights/oobleck_tiny.safetensors` (fp16) and `weights/oobleck_tiny.json` (architecture, hash): no pickle, no
download. What is exported has latents of mean 0 and spread 1 in every channel over the music that it was exported
with, as a diffusion model expects them: the affine map is part of the encoder's last and the decoder's first layer.
"""

import hashlib
import json
import typing as tp
from pathlib import Path

import torch

from .. import compat
from ..atomic import write_atomic, write_json
from ..errors import LuminaError

WEIGHTS = Path(__file__).parents[1] / 'weights'
SHIPPED = 'oobleck_tiny'
SHIPPED_NAME = 'lumina//oobleck'
_FORMAT = 1


def build_oobleck(architecture: tp.Mapping[str, tp.Any]) -> tp.Any:
    """An `AutoencoderOobleck` with fresh weights, from its configuration's keys.

    Raises:
        LuminaError: a stride is odd; such a decoder gives back fewer samples than its encoder took.
    """
    compat.install()
    from diffusers import AutoencoderOobleck
    ratios = architecture['downsampling_ratios']
    if any(ratio % 2 for ratio in ratios):
        raise LuminaError(f"oobleck.downsampling_ratios {ratios} holds an odd number, with which an Oobleck does not "
                          "give back as many samples as it takes; use even ones.")
    return AutoencoderOobleck(**dict(architecture))


def oobleck_hash(vae: tp.Any) -> str:
    """SHA-256 over what decides an autoencoder's latents and sound: its configuration and its weights."""
    config = {key: value for key, value in dict(vae.config).items() if not key.startswith('_')}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        tensor = tensor.detach().cpu().float().contiguous()
        digest.update(f'{name} {list(tensor.shape)}\0'.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def standardise_latents(vae: tp.Any, mean: torch.Tensor, spread: torch.Tensor) -> None:
    """Fold z → (z − mean) / spread into the encoder's last layer, and its inverse into the decoder's first. In place.

    The posterior's own spread passes a softplus, which is close to exp where it is small: there it is divided, too.

    Args:
        mean, spread (torch.Tensor): Per latent channel, [D].
    """
    last, first = vae.encoder.conv2, vae.decoder.conv1
    channels = len(mean)
    last.weight_g[:channels] /= spread[:, None, None]  # a weight norm's length, per output channel
    last.bias[:channels] = (last.bias[:channels] - mean) / spread
    last.bias[channels:] -= spread.log()
    weight = torch._weight_norm(first.weight_v, first.weight_g, 0)  # [o, D, k]
    first.bias += torch.einsum('oik,i->o', weight, mean)
    weight = weight * spread[None, :, None]
    first.weight_v.copy_(weight)
    first.weight_g.copy_(weight.flatten(1).norm(dim=1)[:, None, None])


def export_oobleck(checkpoint: tp.Union[str, Path], out_dir: tp.Union[str, Path], songs: tp.Sequence[torch.Tensor],
                   name: str = SHIPPED) -> Path:
    """Write a dora run's autoencoder, its latents standardised, as fp16 safetensors and JSON.

    Args:
        checkpoint (str or Path): A run's `checkpoint.th`; its best state, the running mean of the weights, is taken.
        out_dir (str or Path): Folder of `<name>.safetensors` and `<name>.json`.
        songs (sequence of torch.Tensor): Music [C, T] over which latents shall have mean 0 and spread 1.
    Returns:
        Path: the JSON file, which `load_oobleck` takes.
    Raises:
        LuminaError: that is no checkpoint of an autoencoder, or the folder cannot be written.
    """
    compat.install()
    from omegaconf import OmegaConf
    from safetensors.torch import save
    try:
        state = torch.load(checkpoint, map_location='cpu', weights_only=True)
        architecture = tp.cast(dict, OmegaConf.to_container(state['xp.cfg'].oobleck, resolve=True))
        weights = {key.removeprefix('vae.'): value for key, value in state['best_state']['model'].items()}
    except Exception as error:
        raise LuminaError(f"{checkpoint} is no checkpoint of a solver=compression/lumina_oobleck run "
                          f"({type(error).__name__}): name one.") from error
    vae = build_oobleck(architecture).eval()
    vae.load_state_dict(weights)
    with torch.no_grad():
        latents = torch.cat([vae.encode(song[None]).latent_dist.mode()[0] for song in songs], dim=1)  # [D, frames]
    standardise_latents(vae, latents.mean(1), latents.std(1))
    halved = {key: value.half().contiguous() for key, value in vae.state_dict().items()}
    vae.load_state_dict({key: value.float() for key, value in halved.items()})
    write_atomic(Path(out_dir) / f'{name}.safetensors', save(halved))
    return write_json(Path(out_dir) / f'{name}.json', {
        'format': _FORMAT, 'name': name, 'weights': f'{name}.safetensors', 'dtype': 'float16',
        'hash': oobleck_hash(vae), 'epochs': len(state.get('history') or []), 'architecture': architecture})


def load_oobleck(source: tp.Union[str, Path] = SHIPPED_NAME, device: tp.Union[str, torch.device] = 'cpu') -> tp.Any:
    """An `AutoencoderOobleck` in eval mode, in fp32 and frozen.

    Args:
        source (str or Path): `lumina//oobleck`, the one in the package; a JSON file that `export_oobleck` wrote; or
            whatever diffusers' `AutoencoderOobleck.from_pretrained` takes: a folder, or a hub's name. Of a pipeline's
            folder or name, its `vae`.
        device (str or torch.device): Where its weights go.
    Raises:
        LuminaError: nothing of that name, or what is there is damaged.
    """
    compat.install()
    name = str(source)
    if name == SHIPPED_NAME or name.endswith('.json'):
        vae = _load_exported(WEIGHTS / f'{SHIPPED}.json' if name == SHIPPED_NAME else Path(name))
    else:
        from diffusers import AutoencoderOobleck
        try:
            sub = 'vae' if not Path(name).is_dir() or (Path(name) / 'vae').is_dir() else None
            vae = AutoencoderOobleck.from_pretrained(name, subfolder=sub, dtype=torch.float32)
        except Exception as error:  # of a hub, a connection or a file
            raise LuminaError(f"The autoencoder {name} cannot be loaded ({_first_line(error)}): check the name and "
                              f"the connection, or use {SHIPPED_NAME}.") from error
    return vae.to(device).eval().requires_grad_(False)


def _load_exported(path: Path) -> tp.Any:
    from safetensors.torch import load
    try:
        facts = json.loads(path.read_text())
        if facts['format'] != _FORMAT:
            raise LuminaError(f"{path} has format {facts['format']}; this version reads {_FORMAT}: export it again.")
        with torch.random.fork_rng(devices=[]):
            vae = build_oobleck(facts['architecture'])
        state = load((path.parent / facts['weights']).read_bytes())
        vae.load_state_dict({key: value.float() for key, value in state.items()})
    except LuminaError:
        raise
    except Exception as error:
        raise LuminaError(f"The autoencoder {path} is missing or damaged ({_first_line(error)}): export it again, or "
                          "reinstall the package.") from error
    found = oobleck_hash(vae)
    if found != facts['hash']:
        raise LuminaError(f"The autoencoder {path} is damaged: its weights hash to {found[:12]}, not "
                          f"{facts['hash'][:12]}. Export it again, or reinstall the package.")
    return vae


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip('.')
