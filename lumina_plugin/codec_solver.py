"""Trains the tiny codec: audiocraft's compression solver with another loss, a schedule and living codebooks.

What differs from `audiocraft.solvers.CompressionSolver`, and why:
- No discriminators and no balancer: one spectral loss, one backward pass. A CPU trains this in an hour.
- A learning rate schedule (audiocraft's compression solver has none).
- The quantiser joins after `codec.warmup` updates, so that k-means meets an encoder that says something.
- An initialisation under which the latents say something from the start.
- The encoder learns more slowly than the decoder, so that the entries can follow it.
- Entries that nobody uses are moved onto current residuals. audiocraft's own expiry writes the new entry and, in the
  same step, overwrites it from the running mean, so `threshold_ema_dead_code` stays 0 here.
"""

import typing as tp

import flashy
import omegaconf
import torch
from audiocraft.models import EncodecModel
from audiocraft.quantization import QuantizedResult
from audiocraft.solvers import builders
from audiocraft.solvers.compression import CompressionSolver

from .codec_losses import TonalSpectralLoss


@torch.no_grad()
def revive_codes(layers: tp.Iterable, latent: torch.Tensor, threshold: float) -> int:
    """Move every entry that is used less than `threshold` times per batch onto a random residual of this batch.

    Args:
        layers (iterable of VectorQuantization): The residual quantiser's stages, in order.
        latent (torch.Tensor): What is quantised, [B, D, T].
        threshold (float): Least running mean of uses per batch.
    Returns:
        int: entries moved.
    """
    residual = latent.detach().transpose(1, 2).flatten(0, 1)  # [B x T, D]
    moved = 0
    for layer in layers:
        book = layer._codebook
        dead = book.cluster_size < threshold
        count = int(dead.sum())
        if count:
            picked = residual[torch.randint(len(residual), (count,), device=residual.device)]
            book.embed[dead], book.embed_avg[dead], book.cluster_size[dead] = picked, picked, 1.0
        moved += count
        residual = residual - book.dequantize(book.quantize(residual))
    return moved


def init_autoencoder(model: EncodecModel, input_gain: float = 5.0, output_gain: float = 0.1) -> None:
    """Give every convolution unit gain and no bias, so that the latents vary with the input from the first update on.

    torch's own initialisation shrinks a signal at every layer while the biases stay: the latents then hardly differ
    from one another, and the decoder settles on one hum for all music and stays there.

    Args:
        model (EncodecModel): Its encoder and decoder are initialised, in place.
        input_gain (float): Lifts music (RMS near 0.1 to 0.2) to about unit size.
        output_gain (float): Takes it back.
    """
    for half in (model.encoder, model.decoder):
        convs = [m for m in half.modules() if isinstance(m, (torch.nn.Conv1d, torch.nn.ConvTranspose1d))]
        for conv in convs:
            first, second, width = conv.weight.shape
            # Each output sample of a transposed convolution sees kernel / stride taps of every input channel.
            taps = first * width / conv.stride[0] if isinstance(conv, torch.nn.ConvTranspose1d) else second * width
            torch.nn.init.normal_(conv.weight, std=taps ** -0.5)
            if conv.bias is not None:
                torch.nn.init.zeros_(conv.bias)
        with torch.no_grad():
            if half is model.encoder:
                convs[0].weight.mul_(input_gain)
            else:
                convs[-1].weight.mul_(output_gain)


class LuminaCompressionSolver(CompressionSolver):
    """See the module. Reads, beside the compression solver's keys, `codec.*`, `spectral.*` and `schedule.*`."""
    model: EncodecModel

    def __init__(self, cfg: omegaconf.DictConfig):
        cfg.losses = {}  # the base class would build and compute every one, whatever its weight
        super().__init__(cfg)
        self.spectral = TonalSpectralLoss(cfg.sample_rate, **cfg.spectral).to(self.device)

    def build_model(self) -> None:
        super().build_model()
        init_autoencoder(self.model)  # before the weights' running mean is set up; a checkpoint replaces it
        # Adam moves every weight by about the rate at each update, whatever the gradient. At the decoder's rate the
        # latents would drift further per update than they are spread, and leave most entries behind.
        factor = self.cfg.codec.encoder_lr
        self.optimizer = builders.get_optimizer(
            [{'params': list(self.model.decoder.parameters())},  # type: ignore[list-item]
             {'params': list(self.model.encoder.parameters()),  # type: ignore[list-item]
              'lr': self.cfg.optim.lr * factor}], self.cfg.optim)
        self.lr_scheduler = builders.get_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        if self.lr_scheduler is not None:
            self.register_stateful('lr_scheduler')

    def _forward(self, x: torch.Tensor, update: int) -> tp.Tuple[torch.Tensor, QuantizedResult]:
        """x: [B, 1, T]. Returns the latent [B, D, frames] and the reconstruction with its quantiser's penalty."""
        latent = self.model.encoder(x)
        if self.is_training and update < self.cfg.codec.warmup:
            result = QuantizedResult(latent, codes=latent.new_zeros(0), bandwidth=latent.new_zeros(()))
        else:
            result = self.model.quantizer(latent, self.model.frame_rate)
        result.x = self.model.decoder(result.x)[..., :x.shape[-1]]
        return latent, result

    def run_step(self, idx: int, batch: torch.Tensor, metrics: dict) -> dict:
        """One training or validation step. batch: [B, 1, T]."""
        x = batch.to(self.device)
        update = (self.epoch - 1) * self.train_updates_per_epoch + idx
        latent, result = self._forward(x, update)
        terms = self.spectral(result.x, x)
        loss = terms.pop('loss')
        metrics.update(terms, loss=loss.detach())
        if result.penalty is not None:
            metrics['penalty'] = result.penalty.detach()
        if not self.is_training:
            return metrics
        if result.penalty is not None:
            loss = loss + self.cfg.codec.commitment * result.penalty
        loss.backward()
        flashy.distrib.sync_model(self.model)
        metrics['grad_norm'] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optim.max_norm or 1e9)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        metrics['lr'] = torch.tensor(self.optimizer.param_groups[0]['lr'])
        if result.penalty is not None and update % self.cfg.codec.revive_every == 0:
            layers = self.model.quantizer.vq.layers  # type: ignore[union-attr]
            moved = revive_codes(layers, latent, self.cfg.codec.revive_below)  # type: ignore[arg-type]
            metrics['revived'] = torch.tensor(float(moved))
        return metrics

    def get_formatter(self, stage_name: str) -> flashy.Formatter:
        return flashy.Formatter({'lr': '.1E', 'grad_norm': '.1E', 'penalty': '.1E'}, default_format='.3f')
