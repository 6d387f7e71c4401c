"""The queries of a ground truth: what a model generates freely, what it continues, and songs it never heard."""

import dataclasses
import typing as tp

import torch
from torch import nn

from ..catalogue import Track
from ..conditions import attributes_for
from ..fingerprint import spread
from ..gradients import Example
from ..sampling import DEFAULT, TOGETHER, Sampling, generate_codes
from ..tokens import Tokenizer

__all__ = ['FAMILIES', 'Query', 'Sampling', 'continuations', 'free_generations', 'recordings', 'standard_queries']

FAMILIES = ('free', 'continued', 'heldout', 'songs')
Progress = tp.Callable[[range], tp.Iterable[int]]


@dataclasses.dataclass(frozen=True)
class Query:
    """One query as codes.

    Args:
        id (str): Unique. family (str): One of `FAMILIES`.
        codes (torch.Tensor): Shape [K, T], music alone, int64.
        prompt_frames (int): How many of the T frames were given.
        source (str, optional): Id of the catalogue song that the prompt, or the query, comes from.
        text (str, optional): Description that it was generated, or is trained, with.
    """
    id: str
    family: str
    codes: torch.Tensor
    prompt_frames: int = 0
    source: tp.Optional[str] = None
    text: tp.Optional[str] = None

    def example(self, lm: nn.Module, masked: bool) -> Example:
        """As the objective sees it, with the prompt's frames left out or not."""
        return Example(self.codes, self.prompt_frames if masked else 0, self.codes.shape[-1],
                       attributes_for(lm, self.text))


def free_generations(lm: nn.Module, count: int, frames: int, sampling: Sampling = DEFAULT,
                     progress: Progress = iter) -> tp.List[Query]:
    """Unconditional generations."""
    queries = []
    for first in progress(range(0, count, TOGETHER)):
        n = min(TOGETHER, count - first)
        codes = generate_codes(lm, None, [None] * n, frames, sampling, first)
        queries += [Query(f'free-{first + i:03d}', 'free', one) for i, one in enumerate(codes)]
    return queries


def continuations(lm: nn.Module, songs: tp.Sequence[Query], prompt_frames: int, frames: int, with_text: bool = False,
                  sampling: Sampling = DEFAULT, progress: Progress = iter) -> tp.List[Query]:
    """A continuation of the beginning of each song that is longer than the prompt.

    Args:
        songs (sequence of Query): Of the family 'songs'. prompt_frames (int): Length of the prompt.
        frames (int): Of prompt and continuation together. with_text (bool): Under the song's own description.
    """
    usable = [song for song in songs if song.codes.shape[-1] > prompt_frames]
    queries = []
    for first in progress(range(0, len(usable), TOGETHER)):
        group = usable[first:first + TOGETHER]
        prompts = torch.stack([song.codes[:, :prompt_frames] for song in group])
        texts = [song.text if with_text else None for song in group]
        codes = generate_codes(lm, prompts, texts, frames, sampling, first)
        queries += [Query(f'continued-{song.source}', 'continued', one, prompt_frames, song.source, text)
                    for song, one, text in zip(group, codes, texts, strict=True)]
    return queries


def recordings(catalogue: tp.Iterable[Track], tokenizer: Tokenizer, family: str, frames: int) -> tp.List[Query]:
    """The beginnings of recordings; those of `songs` with the text that they are trained with, others without.

    Raises:
        LuminaError: when one cannot be read.
    """
    own = family == 'songs'
    return [Query(track.id, family, tokenizer.file(track.path, track.sha256).codes[:, :frames], 0,
                  track.id if own else None, track.description if own else None) for track in catalogue]


def standard_queries(lm: nn.Module, songs: tp.Sequence[Query], heldout: tp.Sequence[Query], frames: int,
                     prompt_frames: int, each: int, sampling: Sampling = DEFAULT) -> tp.List[Query]:
    """`each` of every family: free generations, continuations of songs spread over the catalogue, songs held out."""
    long_enough = [song for song in songs if song.codes.shape[-1] >= frames]
    return [*free_generations(lm, each, frames, sampling),
            *continuations(lm, spread(long_enough, each), prompt_frames, frames, sampling=sampling),
            *heldout[:each]]
