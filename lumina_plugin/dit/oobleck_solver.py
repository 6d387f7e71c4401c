"""Trains the tiny Oobleck autoencoder: audiocraft's compression solver around diffusers' `AutoencoderOobleck`.

The loss is the tiny codec's (`lumina_plugin.codec_losses`) and a small Kullback-Leibler term, which keeps the latents
near a unit Gaussian and makes the decoder bear a little noise in them, as a diffusion model will hand it.
"""

import typing as tp

import flashy
import omegaconf
import torch
from audiocraft.solvers import builders
from audiocraft.solvers.compression import CompressionSolver
from torch import nn

from ..codec_losses import TonalSpectralLoss
from .oobleck import build_oobleck

_INITIAL_SCALE = -3.0  # before softplus: latents start with a spread of 0.05 around their means
_RESIDUAL_GAIN = 0.1  # of what a residual unit adds at first
_SNAKE = -2.0  # before exp: x + sin²(0.14 x), nearly a straight line; at diffusers' own x + sin²(x) it settles on a hum


@torch.no_grad()
def init_oobleck(model: tp.Any, input_gain: float = 5.0, output_gain: float = 0.1) -> None:
    """Give every convolution about unit gain and no bias, so that latents vary with the input from the first update on.

    torch's own initialisation shrinks a signal at every layer while the biases stay, and the decoder settles on one hum
    for all music (docs/codec.md).

    Args:
        model (AutoencoderOobleck): Initialised in place.
        input_gain (float): Lifts music (RMS near 0.1 to 0.2) to about unit size.
        output_gain (float): Takes it back.
    """
    for name, parameter in model.named_parameters():
        if name.endswith('.alpha'):
            parameter.fill_(_SNAKE)
    for name, conv in model.named_modules():
        if not isinstance(conv, (nn.Conv1d, nn.ConvTranspose1d)):
            continue
        weight = tp.cast(torch.Tensor, conv.weight_v)
        first, second, width = weight.shape
        # Each output sample of a transposed convolution sees kernel / stride taps of every input channel.
        taps = first * width / conv.stride[0] if isinstance(conv, nn.ConvTranspose1d) else second * width
        gain = {'encoder.conv1': input_gain, 'decoder.conv2': output_gain}.get(name, 1.)
        if '.res_unit' in name and name.endswith('.conv2'):
            gain = _RESIDUAL_GAIN
        weight.normal_(std=gain * taps ** -0.5)
        if name == 'encoder.conv2':  # its second half says how sure the first is
            weight[first // 2:] *= 0.1
        tp.cast(torch.Tensor, conv.weight_g).copy_(weight.flatten(1).norm(dim=1)[:, None, None])
        if conv.bias is not None:
            conv.bias.zero_()
            if name == 'encoder.conv2':
                conv.bias[first // 2:] = _INITIAL_SCALE


class _Autoencoder(nn.Module):
    """An Oobleck whose forward pass is what a training step needs."""

    def __init__(self, vae: tp.Any):
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> tp.Tuple[torch.Tensor, torch.Tensor]:
        """x: [B, C, T]. Returns the reconstruction of a latent drawn (in training), [B, C, T], and the KL term."""
        posterior = self.vae.encode(x).latent_dist
        latent = posterior.sample() if self.training else posterior.mode()  # [B, D, frames]
        return self.vae.decode(latent).sample[..., :x.shape[-1]], posterior.kl()


class LuminaOobleckSolver(CompressionSolver):
    """See the module. Reads `oobleck.*` (the architecture), `kl`, `spectral.*` and `schedule.*`."""

    def __init__(self, cfg: omegaconf.DictConfig):
        cfg.losses = {}  # the base class would build and compute every one, whatever its weight
        super().__init__(cfg)
        self.spectral = TonalSpectralLoss(cfg.sample_rate, **cfg.spectral).to(self.device)

    def build_model(self) -> None:
        vae = build_oobleck(tp.cast(dict, omegaconf.OmegaConf.to_container(self.cfg.oobleck, resolve=True)))
        init_oobleck(vae)
        self.model = tp.cast(tp.Any, _Autoencoder(vae).to(self.device))
        self.optimizer = builders.get_optimizer(self.model.parameters(), self.cfg.optim)
        self.lr_scheduler = builders.get_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        self.register_stateful('model', 'optimizer', 'lr_scheduler')
        self.register_best_state('model')
        self.register_ema('model')

    def show(self) -> None:
        self.log_model_summary(self.model)

    def should_run_stage(self, stage_name: str) -> bool:
        """Whether a stage is due; one whose `every` is empty never is."""
        return self.cfg[stage_name].get('every') not in (None, '') and super().should_run_stage(stage_name)

    def run_step(self, idx: int, batch: torch.Tensor, metrics: dict) -> dict:
        """One training or validation step. batch: [B, C, T]."""
        x = batch.to(self.device)
        estimate, kl = tp.cast(tp.Any, self.model)(x)
        terms = self.spectral(estimate, x)
        loss = terms.pop('loss')
        metrics.update(terms, loss=loss.detach(), kl=kl.detach())
        if not self.is_training:
            return metrics
        (loss + self.cfg.kl * kl).backward()
        flashy.distrib.sync_model(self.model)
        metrics['grad_norm'] = nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optim.max_norm or 1e9)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        metrics['lr'] = torch.tensor(self.optimizer.param_groups[0]['lr'])
        return metrics

    def get_formatter(self, stage_name: str) -> flashy.Formatter:
        return flashy.Formatter({'lr': '.1E', 'grad_norm': '.1E'}, default_format='.3f')
