"""Attributions attached to MusicGen's own generate methods, and how to let go again."""

import copy
import dataclasses
import functools
import time
import typing as tp
from pathlib import Path

import torch

from .attribution import Attributor, QueryFacts
from .errors import LuminaError
from .recipe import Recipe
from .report.schema import AttributionReport
from .store import FingerprintStore

AnyStore = tp.Union[FingerprintStore, str, Path]
Reports = tp.Union[tp.List[AttributionReport], tp.List[tp.List[AttributionReport]]]
Callback = tp.Callable[[tp.Any], None]
_Fact = tp.TypeVar('_Fact', str, int)
PerSample = tp.Union[None, _Fact, tp.Sequence[tp.Optional[_Fact]]]

_SLOTS = ('_generate_tokens', 'last_attributions', 'detach')


@dataclasses.dataclass
class Attachment:
    """What `attach` returns: the live connection between a model and one store or several.

    Args:
        musicgen: audiocraft `MusicGen` (or `AudioGen`).
        attributors (list of Attributor): Score its generations, one per store.
        several (bool): Whether a list of stores was given, so that each sample has a list of reports.
        callback (callable, optional): Called with `last_attributions` after every generation.
        enabled (bool): False lets generations pass without attribution.
        prompt_song_id (str or list, optional): Catalogue song that the next continuations begin with, for the reports;
            a list names one per sample.
        seed (int or list, optional): Seed of the next generations, for the reports; as above.
    """
    musicgen: tp.Any
    attributors: tp.List[Attributor]
    several: bool = False
    callback: tp.Optional[Callback] = None
    enabled: bool = True
    prompt_song_id: PerSample[str] = None
    seed: PerSample[int] = None
    _wrapper: tp.Optional[tp.Callable] = dataclasses.field(default=None, init=False, repr=False)

    @property
    def attributor(self) -> Attributor:
        """That of the store, or of the first one."""
        return self.attributors[0]

    def detach(self) -> None:
        """Put the model back exactly as it was; calling it twice does nothing more, nor does it after a later attach.

        A wrapper that somebody else has put around this one stays, and generations pass through without attribution.
        """
        self.enabled = False
        if self._wrapper is None or self.musicgen.__dict__.get('_generate_tokens') is not self._wrapper:
            return
        for name in _SLOTS:
            self.musicgen.__dict__.pop(name, None)

    def _generated(self, tokens: torch.Tensor, attributes: tp.List[tp.Any], prompt_frames: int, took: float) -> None:
        """Attribute finished tokens [B, K, T] that took so many seconds to generate, all samples together."""
        seconds = prompt_frames / self.musicgen.frame_rate
        found: tp.List[tp.List[AttributionReport]] = []
        for index, (codes, one) in enumerate(zip(tokens, attributes, strict=True)):
            facts = QueryFacts(
                id=f'generation-{index + 1}', kind='continuation' if prompt_frames else 'generation',
                prompt=one.text.get('description'), seed=_of(self.seed, index, len(tokens), 'seed'),
                prompt_seconds=seconds, prompt_song_id=_of(
                    self.prompt_song_id, index, len(tokens), 'prompt_song_id') if prompt_frames else None)
            reports = [attributor.attribute_codes(codes, one, facts) for attributor in self.attributors]
            found.append([report.model_copy(update={'timings': {'generate': took / len(tokens), **report.timings}})
                          for report in reports])
        self.musicgen.__dict__['last_attributions'] = found if self.several else [reports[0] for reports in found]
        if self.callback is not None:
            self.callback(self.musicgen.last_attributions)


def _of(value: tp.Any, index: int, count: int, name: str) -> tp.Any:
    """What is said of one sample: the same for all, or one each."""
    if isinstance(value, (str, int)) or value is None:
        return value
    if len(value) != count:
        raise LuminaError(f"The attachment's {name} names {len(value)} samples, but {count} are to be generated; give "
                          "one for all of them, or one each.")
    return value[index]


def attach(musicgen: tp.Any, store: tp.Union[AnyStore, tp.Sequence[AnyStore]], recipe: tp.Optional[Recipe] = None,
           callback: tp.Optional[Callback] = None, codec_id: tp.Optional[str] = None,
           batch_size: int = 8, checkpoint: tp.Optional[str] = None) -> Attachment:
    """Make every `musicgen.generate*()` carry attributions in `musicgen.last_attributions`, one report per sample.

    Unconditional, text, continuation and melody generation all pass through `_generate_tokens`; it is wrapped on this
    instance alone. The finished tokens are scored as they are, without a second encode: of a generation beyond
    `max_duration`, those of all windows as the model has stitched them. The attributes are copied beforehand, because
    such a generation overwrites the melody in them. A report's timings say what both took: `generate` is this sample's
    part of the generation, the others are the attribution's.

    Args:
        musicgen: audiocraft `MusicGen`.
        store (FingerprintStore or path, or a list of them): Made with this model and codec. With a list, each sample
            has a list of reports, one per store in this order.
        recipe (Recipe, optional): Other scoring than each store's own.
        callback (callable, optional): Called with `last_attributions` after each generation.
        codec_id (str, optional): Name of the codec in reports. batch_size (int): Chunks per pass.
        checkpoint (str, optional): As in `Attributor`.
    Returns:
        Attachment: with `detach()`, which `musicgen.detach()` calls too.
    Raises:
        LuminaError: when model, codec or recipe do not belong to a store, or another attachment is active.
    """
    if '_generate_tokens' in musicgen.__dict__:
        raise LuminaError("This MusicGen already has attributions attached; call its detach() first.")
    several = not isinstance(store, (FingerprintStore, str, Path))
    stores = list(tp.cast(tp.Sequence[AnyStore], store)) if several else [tp.cast(AnyStore, store)]
    if not stores:
        raise LuminaError("No store was given to attach; name at least one.")
    attributors: tp.List[Attributor] = []
    for one in stores:
        known = attributors[0].codec_hash if attributors else None
        attributors.append(Attributor(musicgen.lm, musicgen.compression_model, one, recipe=recipe, codec_hash=known,
                                      codec_id=codec_id or musicgen.name, batch_size=batch_size,
                                      checkpoint=checkpoint))
    attachment = Attachment(musicgen, attributors, several, callback)
    original = musicgen._generate_tokens

    @functools.wraps(original)
    def generate_and_attribute(attributes: tp.List[tp.Any], prompt_tokens: tp.Optional[torch.Tensor],
                               *args: tp.Any, **kwargs: tp.Any) -> torch.Tensor:
        musicgen.__dict__['last_attributions'] = []  # where a generation fails, those of the one before are not its own
        kept = copy.deepcopy(attributes)
        for name in ('seed', 'prompt_song_id'):
            _of(getattr(attachment, name), 0, len(attributes), name)  # told before anything is generated
        begun = time.perf_counter()
        tokens = original(attributes, prompt_tokens, *args, **kwargs)
        took = time.perf_counter() - begun
        if attachment.enabled:
            attachment._generated(tokens, kept, 0 if prompt_tokens is None else prompt_tokens.shape[-1], took)
        return tokens

    attachment._wrapper = musicgen._generate_tokens = generate_and_attribute
    musicgen.last_attributions = []
    musicgen.detach = attachment.detach
    return attachment
