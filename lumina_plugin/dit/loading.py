"""Where a latent diffusion model comes from: a diffusers pipeline, a dora run, or a configuration; and saving one."""

import contextlib
import typing as tp
from pathlib import Path

import torch

from .. import compat
from ..errors import LuminaError
from ..hashing import seed_of
from ..models import run_config, run_folder
from .model import Denoiser, LatentDiT
from .oobleck import load_oobleck
from .text import TextEncoder, small_text_encoder

STABLE_AUDIO_OPEN = 'stabilityai/stable-audio-open-1.0'


def load_dit(source: tp.Union[str, Path], device: tp.Union[str, torch.device] = 'cpu') -> LatentDiT:
    """A model from wherever it lies.

    Args:
        source (str or Path): A dora run's folder or signature; or what diffusers' `StableAudioPipeline` loads: a folder
            that it saved, or a hub's name such as `stabilityai/stable-audio-open-1.0` (which asks for its licence to be
            accepted on the hub first).
        device (str or torch.device): Where it goes.
    Raises:
        LuminaError: nothing of that name, or what is there is no such model.
    """
    folder = run_folder(source)
    return from_run(folder, device) if folder is not None else from_pretrained(source, device)


def from_pretrained(name: tp.Union[str, Path], device: tp.Union[str, torch.device] = 'cpu', **options: tp.Any
                    ) -> LatentDiT:
    """The parts of a `StableAudioPipeline`, in fp32.

    Args:
        name (str or Path): A folder or a hub's name. options: Of diffusers' `from_pretrained` (`revision`, `token`,
            `cache_dir`, `dtype`, ...).
    Raises:
        LuminaError: when it cannot be fetched or read.
    """
    compat.install()
    from diffusers import EDMDPMSolverMultistepScheduler, StableAudioPipeline
    try:
        # A scheduler of our own in place of the stored one: that needs torchsde, and sampling here needs neither.
        pipeline: tp.Any = StableAudioPipeline.from_pretrained(
            str(name), **{'dtype': torch.float32, 'scheduler': EDMDPMSolverMultistepScheduler(), **options})
    except Exception as error:  # of a hub, a connection or a file
        raise LuminaError(f"{name} cannot be loaded as a Stable Audio pipeline ({_first_line(error)}): check the name, "
                          "the connection, and whether its licence was accepted on the hub.") from error
    text = None
    if pipeline.text_encoder is not None and pipeline.tokenizer is not None:
        text = TextEncoder(pipeline.tokenizer, pipeline.text_encoder)
    dit = LatentDiT(Denoiser(pipeline.transformer, pipeline.projection_model), pipeline.vae, text, str(name))
    dit.denoiser.eval()
    return dit.to(device)


def save_pretrained(dit: LatentDiT, folder: tp.Union[str, Path]) -> Path:
    """Write a model as the folder of a `StableAudioPipeline`, which diffusers and `load_dit` read.

    The scheduler in it is diffusers' `EDMDPMSolverMultistepScheduler` with the angles' range of Stable Audio Open; give
    the pipeline another where its samples matter.

    Raises:
        LuminaError: for a model without a text encoder, which such a pipeline needs, or a folder that cannot be
            written.
    """
    from diffusers import EDMDPMSolverMultistepScheduler, StableAudioPipeline
    if dit.text is None:
        raise LuminaError(f"{dit.name} hears no text, and a Stable Audio pipeline needs a text encoder; keep it as a "
                          "dora run.")
    pipeline: tp.Any = StableAudioPipeline(
        vae=dit.vae, text_encoder=dit.text.encoder, tokenizer=dit.text.tokenizer,
        projection_model=dit.projection, transformer=dit.transformer,
        scheduler=EDMDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500, sigma_data=1.0,
                                                 prediction_type='v_prediction'))
    try:
        pipeline.save_pretrained(str(folder))
    except OSError as error:
        raise LuminaError(f"{folder} cannot be written ({error.strerror}); choose another folder.") from error
    return Path(folder)


def build_dit(cfg: tp.Any, device: tp.Union[str, torch.device] = 'cpu') -> LatentDiT:
    """A model with fresh weights, from a configuration's section `dit`; the same for the same `seed` in it.

    Leaves torch's random state alone.
    """
    compat.install()
    from diffusers import StableAudioDiTModel
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel
    vae = load_oobleck(cfg.autoencoder)
    text = None if cfg.text is None else small_text_encoder(int(cfg.text.dim), int(cfg.text.length), int(cfg.text.seed))
    channels, width = int(vae.config.decoder_input_channels), int(cfg.condition_dim)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(int(cfg.seed), 'weights'))
            transformer = StableAudioDiTModel(
                **{key: int(value) for key, value in cfg.transformer.items()}, in_channels=channels,
                out_channels=channels, cross_attention_input_dim=width, global_states_input_dim=2 * width)
            projection = StableAudioProjectionModel(
                text_encoder_dim=text.dim if text is not None else width, conditioning_dim=width, min_value=0,
                max_value=float(cfg.max_seconds))
    except (TypeError, ValueError) as error:
        raise LuminaError(f"dit.transformer does not make a StableAudioDiTModel ({_first_line(error)}): correct its "
                          "keys.") from error
    _tame(transformer)
    return LatentDiT(Denoiser(transformer, projection), vae, text).to(device)


@torch.no_grad()
def _tame(transformer: tp.Any) -> None:
    """Start from predicting nothing, whose loss is that of latents without any structure, rather than from noise."""
    transformer.proj_out.weight.zero_()
    transformer.preprocess_conv.weight.zero_()
    transformer.postprocess_conv.weight.zero_()


def from_run(folder: Path, device: tp.Union[str, torch.device] = 'cpu',
             weights: tp.Optional[tp.Mapping[str, torch.Tensor]] = None) -> LatentDiT:
    """The model of a dora run `solver=lumina/dit_quickstart`, with its last weights (the EMA's where there is one).

    Args:
        folder (Path): The run's. weights (mapping, optional): The denoiser's, in place of the run's last.
    Raises:
        LuminaError: when that is no such run, or it was never trained.
    """
    cfg = run_config(folder)
    if cfg.get('solver') != 'lumina_dit':
        raise LuminaError(f"Run {folder.name} trained a solver={cfg.get('solver')}, not a lumina_dit; name a run of "
                          "solver=lumina/dit_quickstart.")
    dit = build_dit(cfg.dit)
    dit.name = f'dora:{folder.name}'
    state: tp.Mapping[str, tp.Any] = {} if weights is not None else _checkpoint(folder / 'checkpoint.th')
    if weights is None:
        weights = state['ema']['state']['model'] if state.get('ema') else state['model']
    with _fitting(folder):
        dit.denoiser.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        if dit.text is not None and state.get('text_encoder'):
            dit.text.encoder.load_state_dict(state['text_encoder'])
    dit.denoiser.eval()
    return dit.to(device)


def _checkpoint(path: Path) -> tp.Mapping[str, tp.Any]:
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        assert 'model' in state
    except Exception as error:  # whatever unpickling runs into
        raise LuminaError(f"{path} cannot be read as a checkpoint ({_first_line(error)}): train the run first, or "
                          "again.") from error
    return tp.cast(tp.Mapping[str, tp.Any], state)


@contextlib.contextmanager
def _fitting(folder: Path) -> tp.Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LuminaError(f"The weights of run {folder.name} do not fit its configuration ({_first_line(error)}): "
                          "restore both, or train it again.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip('.')
