"""What the tiny codec's reconstructions are judged by while it learns: magnitudes at several resolutions, and chroma.

Nothing here compares phases or samples: two thousand bits a second buy the spectrum, not the waveform.
"""

import typing as tp

import torch
from torch import nn

from .errors import LuminaError


def chroma_filters(sample_rate: int, n_fft: int) -> torch.Tensor:
    """Weights from FFT bins to the 12 pitch classes, [12, n_fft // 2 + 1], concert pitch (librosa's design)."""
    import librosa
    return torch.from_numpy(librosa.filters.chroma(sr=sample_rate, n_fft=n_fft, tuning=0.0)).float()


class TonalSpectralLoss(nn.Module):
    """Distance between the magnitude spectra of two signals at several resolutions.

    Per resolution and frame t, with magnitudes X and Y [F] of estimate and reference:
        convergence = ||X_t - Y_t|| / max(||Y_t||, floor)      the strong partials decide, however loud the frame
        log         = mean_f |log(X_tf + eps) - log(Y_tf + eps)|    weak components count too
    and, at `chroma_n_fft`, 1 - cos(C X_t^2, C Y_t^2) with the pitch class weights C: energy in the wrong pitch class.

    Args:
        sample_rate (int): Hz.
        n_ffts (sequence of int): Windows (Hann), in samples; hops are a quarter.
        convergence, log, chroma (float): Weights of the three terms.
        chroma_n_fft (int): Window of the chroma term, one of `n_ffts`.
        floor (float): RMS below which a frame counts as silent: it is not divided by less, and gets no chroma term.
        eps (float): Magnitude (of a unit window sum) below which the log term stops distinguishing.
    """

    chroma_filters: torch.Tensor

    def __init__(self, sample_rate: int, n_ffts: tp.Sequence[int] = (4096, 2048, 1024, 512, 256),
                 convergence: float = 1.0, log: float = 0.2, chroma: float = 1.0, chroma_n_fft: int = 2048,
                 floor: float = 3e-3, eps: float = 1e-3):
        super().__init__()
        if chroma and chroma_n_fft not in n_ffts:
            raise LuminaError(f"spectral.chroma_n_fft {chroma_n_fft} must be one of spectral.n_ffts {list(n_ffts)}.")
        self.n_ffts = tuple(n_ffts)
        self.weights = {'convergence': convergence, 'log': log, 'chroma': chroma}
        self.chroma_n_fft, self.floor, self.eps = chroma_n_fft, floor, eps
        for n_fft in self.n_ffts:
            self.register_buffer(f'window_{n_fft}', torch.hann_window(n_fft), persistent=False)
        self.register_buffer('chroma_filters', chroma_filters(sample_rate, chroma_n_fft), persistent=False)

    def magnitudes(self, x: torch.Tensor, n_fft: int) -> torch.Tensor:
        """[B, 1, T] to [B, F, frames]; a full-scale sine peaks near 1/2, whatever the window."""
        window = getattr(self, f'window_{n_fft}')
        spec = torch.stft(x.flatten(0, 1), n_fft, n_fft // 4, window=window, return_complex=True)
        # The square root's slope is infinite at 0, so stay off it.
        return (spec.real.square() + spec.imag.square() + 1e-10).sqrt() / window.sum()

    def forward(self, estimate: torch.Tensor, reference: torch.Tensor) -> tp.Dict[str, torch.Tensor]:
        """estimate, reference: [B, 1, T]. Returns scalars: `loss`, and its unweighted terms by name."""
        terms = {'convergence': estimate.new_zeros(()), 'log': estimate.new_zeros(()),
                 'chroma': estimate.new_zeros(())}
        for n_fft in self.n_ffts:
            with torch.no_grad():
                y = self.magnitudes(reference, n_fft)
            x = self.magnitudes(estimate, n_fft)
            norm = y.norm(dim=1)  # [B, frames]
            convergence = (x - y).norm(dim=1) / norm.clamp(min=self.floor)
            terms['convergence'] = terms['convergence'] + convergence.mean() / len(self.n_ffts)
            distance = ((x + self.eps).log() - (y + self.eps).log()).abs().mean()
            terms['log'] = terms['log'] + distance / len(self.n_ffts)
            if n_fft == self.chroma_n_fft and self.weights['chroma']:
                terms['chroma'] = self.chroma_distance(x, y, audible=norm > self.floor)
        total = sum((self.weights[name] * term for name, term in terms.items()), estimate.new_zeros(()))
        return {'loss': total, **{name: term.detach() for name, term in terms.items()}}

    def chroma_distance(self, x: torch.Tensor, y: torch.Tensor, audible: torch.Tensor) -> torch.Tensor:
        """Mean over audible frames of 1 - cosine between chroma vectors. x, y: [B, F, frames]; audible: [B, frames]."""
        estimate, reference = (torch.matmul(self.chroma_filters, m.square()) for m in (x, y))  # [B, 12, frames]
        cosine = torch.cosine_similarity(estimate, reference, dim=1, eps=1e-12)
        return ((1 - cosine) * audible).sum() / audible.sum().clamp(min=1)
