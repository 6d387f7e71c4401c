"""Fingerprint outside songs at a store's checkpoints: alongside a pass, or for a store that is there already."""

import dataclasses
import logging
import typing as tp
from pathlib import Path

import torch

from .attribution import fingerprinter_at
from .calibration import songs_needed
from .catalogue import Track
from .conditions import attributes_for
from .errors import LuminaError
from .fingerprint import Fingerprinter, Song
from .gradients import Example
from .inputs import GENERATED, NONE
from .models import load_musicgen, run_folder, run_key, run_stores
from .origins import Origin, origin_named, origins_of
from .outside import COUNT, Outside, OutsideSong, expect_enough, gather
from .outside_generations import COUNT as GENERATIONS
from .outside_generations import expect_other_songs, made_by
from .prepared import progress_bar
from .recipe import Recipe, recipe_from_dict
from .store import FingerprintStore, Kind, OutsideRecord, StoredNull
from .tokens import Tokenizer

logger = logging.getLogger(__name__)


def run_null(fingerprinter: Fingerprinter, outside: Outside, store: FingerprintStore, checkpoint: str) -> bool:
    """Keep the fingerprints of outside songs beside a checkpoint's own. By one process alone.

    Args:
        fingerprinter (Fingerprinter): With the checkpoint's weights and projections.
        outside (Outside): The songs. store (FingerprintStore): Where they go. checkpoint (str): Its name.
    Returns:
        bool: False where just these songs were there already.
    """
    everything = [*outside.songs, *outside.generations]
    records = [OutsideRecord(id=song.id, sha256=song.sha256, codes_hash=song.evidence_hash,
                             kind=tp.cast(Kind, song.kind)) for song in everything]
    if _kept(store, checkpoint) == (records, outside.origin, outside.generator):
        return False
    songs = [_queried(song, attributes_for(fingerprinter.lm, song.text)) for song in everything]
    found = list(progress_bar(fingerprinter.fingerprints(songs), f'outside songs {checkpoint}', len(songs)))
    vectors = {channel: torch.stack([one.vectors[channel] for one in found]) for channel in store.channels}
    store.save_null(checkpoint, StoredNull(records, vectors, outside.origin, outside.generator))
    return True


def _queried(song: OutsideSong, attributes: tp.Any) -> Song:
    """An outside song as the query that it is: all its encodings, without the frames that were given."""
    return Song(song.id, [Example(chunk.codes, song.prompt_frames, chunk.frames, attributes)
                          for chunk in (song.chunk, *song.again)])


def _kept(store: FingerprintStore, checkpoint: str) -> tp.Optional[tp.Tuple[tp.List[OutsideRecord], str, str]]:
    """The outside songs that a checkpoint has, and where they come from; None where it has none, or a damaged file."""
    try:
        null = store.null(checkpoint)
    except LuminaError as error:
        logger.warning("Making a null again: %s", error)
        return None
    return None if null is None else (null.songs, null.origin, null.generator)


def calibrate(source: tp.Union[str, Path], songs: tp.Optional[tp.Union[str, Path]] = None, count: int = COUNT,
              model: tp.Optional[tp.Union[str, Path]] = None, device: tp.Optional[str] = None, batch_size: int = 8,
              generations_of: tp.Optional[str] = None) -> tp.Dict[FingerprintStore, tp.List[str]]:
    """Give stores that are there what they measure chance by: outside songs at every checkpoint.

    Args:
        source (str or path): A store, or a dora run, of which all stores are meant.
        songs (path, optional): Recordings that the model never saw; else as the run's `fingerprint.outside` says.
        count (int): How many songs to take.
        model (str or path, optional): What the store was made with, where that is not the run that it lies in.
        generations_of (str, optional): Model of other songs, by which generations are judged; 'none'; else as the
            run's `fingerprint.generations_of` says.
    Returns:
        dict: By store, the checkpoints that were calibrated; those that had just these songs already are not among
            them.
    Raises:
        LuminaError: no such store or model, or songs that cannot measure chance.
    """
    stores, run = _stores(source)
    if model is None and run is None:
        raise LuminaError(f"{source} lies in no dora run, so name the model that it was made with by --model.")
    if songs not in (None, '', GENERATED, NONE):  # told before a model is loaded
        for store in stores:
            expect_enough(tp.cast(str, songs), songs_needed(recipe_from_dict(store.identity.recipe).gate.rate))
    musicgen = load_musicgen(model if model is not None else tp.cast(Path, run), device)
    return {store: _calibrate(store, musicgen, run, songs, count, batch_size, generations_of) for store in stores}


def _stores(source: tp.Union[str, Path]) -> tp.Tuple[tp.List[FingerprintStore], tp.Optional[Path]]:
    """The stores that are meant, and the dora run that they lie in."""
    if FingerprintStore.exists(source):
        above = Path(source).resolve().parents
        return [FingerprintStore.open(source)], run_folder(above[1]) if len(above) > 1 else None
    run = run_folder(source)
    if run is None:
        raise LuminaError(f"{source} is neither a fingerprint store nor a dora run; name one, such as "
                          "outputs/xps/SIGNATURE.")
    paths = run_stores(run)
    if not paths:
        raise LuminaError(f"Run {run.name} has no fingerprints yet; make them with `lumina fingerprint {source}`.")
    return [FingerprintStore.open(path) for path in paths], run


def _calibrate(store: FingerprintStore, musicgen: tp.Any, run: tp.Optional[Path],
               songs: tp.Optional[tp.Union[str, Path]], count: int, batch_size: int,
               generations_of: tp.Optional[str]) -> tp.List[str]:
    from .codec import codec_hash
    from .hashing import model_config_hash
    recipe, digest = recipe_from_dict(store.identity.recipe), codec_hash(musicgen.compression_model)
    store.expect(codec_hash=digest, model_config_hash=model_config_hash(musicgen.lm))
    tokenizer = Tokenizer(musicgen.compression_model, digest, recipe.chunk_seconds, recipe.silence_db,
                          cache=None if run is None else run / 'lumina' / 'codes')
    outside = outside_of_run(run, store, tokenizer, recipe, count, songs, generations_of)
    if outside is None:
        raise LuminaError(f"fingerprint.outside of run {run.name if run else ''} is none; name outside songs by "
                          "--songs FOLDER, or --songs generated.")
    done = []
    for info in store.checkpoints:
        if not info.shards or set(info.projections) != set(store.channels):
            logger.warning("%s of %s is not finished, and is left out.", info.name, store.path)
        elif run_null(fingerprinter_at(store, info, musicgen.lm, recipe, batch_size), outside, store, info.name):
            done.append(info.name)
    return done


def outside_of_run(run: tp.Optional[Path], store: FingerprintStore, tokenizer: Tokenizer, recipe: Recipe,
                   count: int = COUNT, songs: tp.Optional[tp.Union[str, Path]] = None,
                   generations_of: tp.Optional[str] = None) -> tp.Optional[Outside]:
    """Outside songs as a run's configuration has them, wherever its paths lead by now, unless `songs` and
    `generations_of` are named."""
    from .catalogue_pass import manifests_of
    where, valid, seen, needed = songs, None, frozenset[str](), songs_needed(recipe.gate.rate)
    if generations_of not in (None, '', NONE):  # told before a hundred songs are encoded, not after
        expect_other_songs(origin_named(generations_of), store)
    if run is not None:
        if where in (None, ''):
            named = run_key(run, 'fingerprint.outside')
            where = next(iter(manifests_of(run, 'fingerprint.outside')), named)
            valid = next(iter(manifests_of(run, 'datasource.valid')), None)
        seen = frozenset(recordings_of(next(iter(manifests_of(run, 'datasource.train')), None)))
    outside = gather(where, store, tokenizer, needed, count, valid, seen, recipe.query_phases)
    if run is None:
        return with_generations(outside, store, tokenizer, needed, generations_of, [])
    named = generations_of or run_key(run, 'fingerprint.generations_of')
    return with_generations(outside, store, tokenizer, needed, named, _before(run, store), _songs_of(run))


def _songs_of(run: Path) -> tp.Iterable[Track]:
    """The songs that a run fingerprints; none where they have moved."""
    from .catalogue_pass import run_songs
    try:
        return run_songs(run)
    except LuminaError:
        return ()


def _before(run: Path, store: FingerprintStore) -> tp.List[Origin]:
    """The models that the one of a run's store was trained on from, nearest first."""
    origins = origins_of(str(run.resolve()), run.resolve().parent)  # the run itself is the first
    borrowed = bool(store.checkpoints) and not any(info.epoch for info in store.checkpoints)
    return origins[2:] if borrowed else origins[1:]


def with_generations(outside: tp.Optional[Outside], store: FingerprintStore, tokenizer: Tokenizer, needed: int,
                     named: tp.Optional[str], origins: tp.Sequence[Origin], catalogue: tp.Iterable[Track] = (),
                     device: tp.Optional[str] = None) -> tp.Optional[Outside]:
    """Outside songs, and generations of a model of other songs, by which generations are judged.

    Args:
        named (str, optional): The model (run, exported folder or hub's name), or 'none'; else the first of `origins`.
        origins: those that the store's own model was trained on from, nearest first.
        catalogue: songs under whose texts some are made.
    Raises:
        LuminaError: when the model that is named cannot be used; one that is not named is done without.
    """
    if outside is None or named == NONE or not (named or origins):
        return outside
    chain = origin_named(named) if named else list(origins)
    try:
        texts = [track.description for track in catalogue if track.description]
        songs, words = made_by(chain, outside.songs, texts, store, tokenizer, max(needed, GENERATIONS), device)
    except LuminaError as reason:
        if named:
            raise
        logger.warning("Generations will be judged by recordings alone: %s", reason)
        return outside
    return dataclasses.replace(outside, generations=songs, generator=words)


def recordings_of(manifest: tp.Optional[tp.Union[str, Path]]) -> tp.Iterator[str]:
    """SHA-256 of the recordings that a manifest names, as far as they are there."""
    from .catalogue import Catalogue
    try:
        tracks = Catalogue.from_manifest(manifest) if manifest is not None else ()
    except LuminaError:
        return
    for track in tracks:
        try:
            yield track.sha256
        except LuminaError:
            continue
