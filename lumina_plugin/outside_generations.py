"""Generations that owe the catalogue nothing: what a model makes that was trained on other songs alone.

A generation is judged by generations. What models make lies closer to any catalogue than recordings do: measured
against recordings, most generations of a model that never heard a song of the catalogue would pay somebody
(docs/validation.md, False payments). The model that a training went on from (`continue_from`) has what is needed: the
same codec, the same way to generate, and other songs.

They are of every sort that is asked about: free, under texts of the catalogue, and going on from the first seconds of
outside recordings, each at MusicGen's own temperature and at a lower one. What is drawn at one temperature alone would
not do for generations of the other.
"""

import bisect
import hashlib
import itertools
import json
import logging
import typing as tp
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from .atomic import write_atomic
from .catalogue import Catalogue
from .codec import codec_hash
from .errors import LuminaError
from .hashing import codes_hash, state_hash
from .models import load_musicgen, run_folder
from .origins import Origin
from .outside import OutsideSong
from .prepared import progress_bar
from .sampling import TOGETHER, Sampling, generate_codes
from .store import GENERATION, FingerprintStore
from .tokens import CodeChunk, Tokenizer

logger = logging.getLogger(__name__)

SEED = 64_003
SAMPLINGS = (Sampling(temperature=.6, top_k=50, seed=SEED), Sampling(temperature=1., top_k=250, seed=SEED))
PROMPT = .3  # of a chunk
COUNT = 144  # generations unless said: 24 of each sort
_SAME = 0.02  # seconds by which the lengths of one recording may differ between two manifests


def made_by(origins: tp.Sequence[Origin], recordings: tp.Sequence[OutsideSong], texts: tp.Sequence[str],
            store: FingerprintStore, tokenizer: Tokenizer, count: int, device: tp.Optional[str] = None
            ) -> tp.Tuple[tp.List[OutsideSong], str]:
    """Generations of the first of some models, and in words whose they are.

    Args:
        origins: the model, and those that it was itself trained on from: all that may have shaped what it makes.
        recordings: outside songs, whose beginnings some go on from. texts: of the catalogue, for others.
        store (FingerprintStore): Whose songs none of the models may have heard. tokenizer: Of its codec and recipe.
        count (int): Generations. device (str, optional): To generate on.
    Raises:
        LuminaError: when there is no such model, it has another codec, or it was trained on a song of the store.
    """
    expect_other_songs(origins, store)
    musicgen = load_musicgen(origins[0].source, device)
    digest = codec_hash(musicgen.compression_model)
    if digest != tokenizer.codec_hash:
        raise LuminaError(f"{origins[0].name} has another codec ({digest[:12]}) than the store "
                          f"({tokenizer.codec_hash[:12]}), so that its generations cannot be compared; name a model "
                          "with the same one.")
    seconds = min(tokenizer.chunk_seconds, musicgen.max_duration)
    frames = round(seconds * tokenizer.frame_rate)
    prompts = [song.chunk.codes[:, :round(PROMPT * frames)] for song in recordings
               if song.chunk.frames > round(PROMPT * frames)]
    tasks = list(_tasks(prompts, texts, count))
    codes = _remembered(musicgen.lm, tasks, frames, tokenizer.cache)
    songs = [OutsideSong(f'generation-{number:04d}', hashlib.sha256(one.short().numpy().tobytes()).hexdigest(),
                         CodeChunk(one, frames, 0.), GENERATION, 0 if task.prompt is None else task.prompt.shape[-1],
                         task.text)
             for number, (one, task) in enumerate(zip(codes, tasks, strict=True), 1)]
    unique = {song.sha256: song for song in songs}
    known = any(origin.trained_on for origin in origins) or _run_folder(origins[-1]) is not None
    doubt = '' if known else ', of whose training songs nothing is known here'
    return list(unique.values()), f'generations of {origins[0].name}{doubt}'


def expect_other_songs(origins: tp.Iterable[Origin], store: FingerprintStore) -> None:
    """LuminaError where one of these models was trained on a song of the store."""
    for origin in origins:
        _expect_others(origin, store)


def _expect_others(origin: Origin, store: FingerprintStore) -> None:
    """LuminaError where a model was trained on a song of the store, as far as its songs are still there."""
    if origin.trained_on is not None and origin.trained_on == store.identity.catalogue_hash:
        raise LuminaError(f"{origin.name} was trained on the catalogue itself, so that its generations owe it; name a "
                          "model of other songs.")
    folder = _run_folder(origin)
    if folder is None:
        return
    by_hash = {track.sha256: track for track in store.tracks if track.sha256}
    lengths = sorted(track.duration or 0. for track in by_hash.values())
    for track in _trained_on(folder):
        if _near(lengths, track.duration) and _hash_of(track) in by_hash:
            raise LuminaError(f"{origin.name} was trained on {by_hash[track.sha256].id}, a song of the store, so that "
                              "its generations may owe it; name a model of other songs.")


def _run_folder(origin: Origin) -> tp.Optional[Path]:
    """The folder of a dora run, None for an exported folder or a hub's model."""
    return run_folder(origin.source) if isinstance(origin.source, Path) else None


def _trained_on(folder: Path) -> tp.Iterable[tp.Any]:
    from .catalogue_pass import manifests_of
    for path in manifests_of(folder, 'datasource.train')[:1]:
        try:
            return Catalogue.from_manifest(path)
        except LuminaError:  # the songs have gone: nothing can be compared
            break
    return ()


def _near(lengths: tp.Sequence[float], seconds: float) -> bool:
    """Whether any song is as long as this, or of unknown length (0): only then is a file read, of which there may be
    many."""
    place = bisect.bisect_left(lengths, seconds - _SAME)
    return bool(lengths) and lengths[0] == 0 or place < len(lengths) and lengths[place] <= seconds + _SAME


def _hash_of(track: tp.Any) -> tp.Optional[str]:
    try:
        return tp.cast(str, track.sha256)
    except LuminaError:
        return None


class _Task(tp.NamedTuple):
    """One generation: its text, the codes that it goes on from [K, t], and how it is drawn."""
    text: tp.Optional[str]
    prompt: tp.Optional[torch.Tensor]
    sampling: Sampling

    @property
    def facts(self) -> tp.Tuple[tp.Any, ...]:
        return self.text, None if self.prompt is None else codes_hash(self.prompt), str(self.sampling)


def _tasks(prompts: tp.Sequence[torch.Tensor], texts: tp.Sequence[str], count: int) -> tp.Iterator[_Task]:
    """So many generations, of every sort as many as of the others, those of a sort one after the other."""
    sorts = [sort for sort, there in (('free', True), ('text', texts), ('prompt', prompts)) if there]
    strata = [(sort, sampling) for sort in sorts for sampling in SAMPLINGS]
    for number, (sort, sampling) in enumerate(strata):
        first, stop = (count * edge // len(strata) for edge in (number, number + 1))
        for index in range(first, stop):
            yield _Task(texts[index % len(texts)] if sort == 'text' else None,
                        prompts[index % len(prompts)] if sort == 'prompt' else None, sampling)


def _remembered(lm: tp.Any, tasks: tp.Sequence[_Task], frames: int, cache: tp.Optional[Path]
                ) -> tp.List[torch.Tensor]:
    """Codes [K, T] of generations; made once for the same of all."""
    facts = [state_hash(lm.state_dict()), [task.facts for task in tasks], frames]
    name = f'generations-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.safetensors'
    path = None if cache is None else Path(cache) / name
    if path is not None and path.is_file():
        try:
            return list(safetensors.torch.load_file(path)['codes'].long())
        except (safetensors.SafetensorError, KeyError, OSError) as error:
            logger.warning("Generating again, as %s cannot be read: %s", path, error)
    codes = _generated(lm, tasks, frames)
    if path is not None:
        write_atomic(path, safetensors.torch.save({'codes': codes.short()}))
    return list(codes)


def _generated(lm: tp.Any, tasks: tp.Sequence[_Task], frames: int) -> torch.Tensor:
    """Codes [n, K, T]; those that are drawn alike are drawn together."""
    batches = [(first + start, alike[start:start + TOGETHER])
               for first, alike in _alike(tasks) for start in range(0, len(alike), TOGETHER)]
    codes = []
    for first, batch in progress_bar(batches, 'outside generations', len(batches)):
        prompts = [task.prompt for task in batch if task.prompt is not None]
        codes.append(generate_codes(lm, torch.stack(prompts) if prompts else None, [task.text for task in batch],
                                    frames, batch[0].sampling, first))
    return torch.cat(codes)


def _alike(tasks: tp.Sequence[_Task]) -> tp.Iterator[tp.Tuple[int, tp.List[_Task]]]:
    """Runs of tasks that can share a batch, each with the number of its first."""
    first = 0
    for _, run in itertools.groupby(tasks, lambda task: (task.text is None, task.prompt is None, task.sampling)):
        alike = list(run)
        yield first, alike
        first += len(alike)
