"""CLAP (Wu et al. 2023, arXiv 2211.06687): audio embeddings that were learnt beside descriptions of sounds."""

import typing as tp
from pathlib import Path

import torch

from .. import compat
from ..errors import LuminaError
from ..hashing import state_hash
from .embedding import Embedder, Windows

HUB = 'laion/clap-htsat-unfused'
PUBLISHED = {'depths': [2, 2, 6, 2], 'patch_embeds_hidden_size': 96, 'projection_dim': 512}  # HTSAT-tiny, as released
TOGETHER = 8  # windows at once


class Clap(Embedder):
    """transformers' `ClapModel` on windows as long as its feature extractor takes, one after the other.

    Args:
        model: transformers `ClapModel`, in evaluation mode. extractor: `ClapFeatureExtractor`.
        weights (str): Whose weights they are, for tables.
    """

    def __init__(self, model: tp.Any, extractor: tp.Any, weights: str):
        seconds = extractor.nb_max_samples / max(1, extractor.sampling_rate)
        own = {key: getattr(model.config.audio_config, key) for key in PUBLISHED}
        small = '' if own == PUBLISHED else ', not the published network'
        settings = {key: value for key, value in extractor.to_dict().items() if not hasattr(value, 'shape')}
        super().__init__(f'CLAP ({weights}{small})', Windows(extractor.sampling_rate, seconds, seconds),
                         ['clap', state_hash(model.state_dict()), repr(sorted(settings.items()))])
        self.model, self.extractor = model, extractor

    def embed(self, pieces: tp.Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([self._embed(pieces[first:first + TOGETHER]) for first in range(0, len(pieces), TOGETHER)])

    @torch.no_grad()
    def _embed(self, pieces: tp.Sequence[torch.Tensor]) -> torch.Tensor:
        inputs = self.extractor([piece.numpy() for piece in pieces], sampling_rate=self.windows.sample_rate,
                                return_tensors='pt')
        # none is longer than a window; for fusing models the extractor would draw one by chance and say that it is
        inputs['is_longer'] = torch.zeros_like(inputs['is_longer'])
        found = self.model.get_audio_features(**inputs.to(self.model.device))
        return tp.cast(torch.Tensor, getattr(found, 'pooler_output', found))


def load_clap(source: tp.Union[str, Path] = HUB, device: tp.Optional[str] = None) -> Clap:
    """A CLAP from a folder as `save_pretrained` leaves it, or from a hub.

    Raises:
        LuminaError: when there is none, or its weights are incomplete or damaged.
    """
    compat.install()
    from transformers import ClapFeatureExtractor, ClapModel
    try:
        loaded, info = tp.cast(tp.Any, ClapModel).from_pretrained(str(source), output_loading_info=True)
        extractor = ClapFeatureExtractor.from_pretrained(str(source))
    except Exception as error:  # transformers, safetensors and the hub's client each have errors of their own
        raise LuminaError(f"There is no CLAP at {source} ({_first_line(error)}); name a folder that holds one as "
                          f"transformers' `save_pretrained` leaves it (`clap=FOLDER`), or fetch {HUB} from its hub "
                          "where that can be reached.") from error
    expected = {name for name, _ in loaded.named_parameters()}
    missing = sorted(name for name in info['missing_keys'] if name in expected and name.startswith('audio_'))
    if missing:
        raise LuminaError(f"The CLAP at {source} lacks {missing[0]} and {len(missing) - 1} other weights, which "
                          f"would be drawn by chance; fetch it again, whole, e.g. {HUB}.")
    path = Path(source)
    weights = path.resolve().name if path.is_dir() else str(source)
    return Clap(loaded.eval().to(device or 'cpu'), extractor, weights)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120].rstrip('.')
