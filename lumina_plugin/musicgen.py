"""Attributions attached to MusicGen's own generate methods, and how to let go again."""

import copy
import dataclasses
import functools
import typing as tp
from pathlib import Path

import torch

from .attribution import Attributor, QueryFacts
from .errors import LuminaError
from .recipe import Recipe
from .report.schema import AttributionReport
from .store import FingerprintStore

Callback = tp.Callable[[tp.List[AttributionReport]], None]

_SLOTS = ('_generate_tokens', 'last_attributions', 'detach')


@dataclasses.dataclass
class Attachment:
    """What `attach` returns: the live connection between a model and a store.

    Args:
        musicgen: audiocraft `MusicGen` (or `AudioGen`).
        attributor (Attributor): Scores its generations.
        callback (callable, optional): Called with the reports of every generation, after it.
        enabled (bool): False lets generations pass without attribution.
        prompt_song_id (str, optional): Catalogue song that the next continuations begin with, for the reports.
        seed (int, optional): Seed of the next generations, for the reports.
    """
    musicgen: tp.Any
    attributor: Attributor
    callback: tp.Optional[Callback] = None
    enabled: bool = True
    prompt_song_id: tp.Optional[str] = None
    seed: tp.Optional[int] = None
    _wrapper: tp.Optional[tp.Callable] = dataclasses.field(default=None, init=False, repr=False)

    def detach(self) -> None:
        """Put the model back exactly as it was; calling it twice does nothing more, nor does it after a later attach.

        A wrapper that somebody else has put around this one stays, and generations pass through without attribution.
        """
        self.enabled = False
        if self._wrapper is None or self.musicgen.__dict__.get('_generate_tokens') is not self._wrapper:
            return
        for name in _SLOTS:
            self.musicgen.__dict__.pop(name, None)

    def _generated(self, tokens: torch.Tensor, attributes: tp.List[tp.Any], prompt_frames: int) -> None:
        seconds = prompt_frames / self.musicgen.frame_rate
        reports = []
        for index, (codes, one) in enumerate(zip(tokens, attributes, strict=True)):
            facts = QueryFacts(
                id=f'generation-{index + 1}', kind='continuation' if prompt_frames else 'generation',
                prompt=one.text.get('description'), seed=self.seed, prompt_seconds=seconds,
                prompt_song_id=self.prompt_song_id if prompt_frames else None)
            reports.append(self.attributor.attribute_codes(codes, one, facts))
        self.musicgen.__dict__['last_attributions'] = reports
        if self.callback is not None:
            self.callback(reports)


def attach(musicgen: tp.Any, store: tp.Union[FingerprintStore, str, Path], recipe: tp.Optional[Recipe] = None,
           callback: tp.Optional[Callback] = None, codec_id: tp.Optional[str] = None,
           batch_size: int = 8) -> Attachment:
    """Make every `musicgen.generate*()` carry attributions in `musicgen.last_attributions`, one report per sample.

    Unconditional, text, continuation and melody generation all pass through `_generate_tokens`; it is wrapped on this
    instance alone. The finished tokens are scored as they are, without a second encode. The attributes are copied
    beforehand, because generation beyond `max_duration` overwrites the melody in them.

    Args:
        musicgen: audiocraft `MusicGen`. store (FingerprintStore or path): Made with this model and codec.
        recipe (Recipe, optional): Other scoring than the store's own.
        callback (callable, optional): Called with the list of reports after each generation.
        codec_id (str, optional): Name of the codec in reports. batch_size (int): Chunks per pass.
    Returns:
        Attachment: with `detach()`, which `musicgen.detach()` calls too.
    Raises:
        LuminaError: when model, codec or recipe do not belong to the store, or another attachment is active.
    """
    if '_generate_tokens' in musicgen.__dict__:
        raise LuminaError("This MusicGen already has attributions attached; call its detach() first.")
    attributor = Attributor(musicgen.lm, musicgen.compression_model, store, recipe=recipe, batch_size=batch_size,
                            codec_id=codec_id or musicgen.name)
    attachment = Attachment(musicgen, attributor, callback)
    original = musicgen._generate_tokens

    @functools.wraps(original)
    def generate_and_attribute(attributes: tp.List[tp.Any], prompt_tokens: tp.Optional[torch.Tensor],
                               *args: tp.Any, **kwargs: tp.Any) -> torch.Tensor:
        kept = copy.deepcopy(attributes)
        tokens = original(attributes, prompt_tokens, *args, **kwargs)
        if attachment.enabled:
            attachment._generated(tokens, kept, 0 if prompt_tokens is None else prompt_tokens.shape[-1])
        return tokens

    attachment._wrapper = musicgen._generate_tokens = generate_and_attribute
    musicgen.last_attributions = []
    musicgen.detach = attachment.detach
    return attachment
