"""Fingerprint outside songs at a store's checkpoints: alongside a pass, or for a store that is there already."""

import logging
import typing as tp
from pathlib import Path

import torch

from .attribution import fingerprinter_at
from .calibration import songs_needed
from .conditions import attributes_for
from .errors import LuminaError
from .fingerprint import Fingerprinter, Song
from .gradients import Example
from .models import load_musicgen, run_folder, run_key, run_stores
from .outside import COUNT, Outside, gather
from .prepared import progress_bar
from .recipe import recipe_from_dict
from .store import FingerprintStore, OutsideRecord, StoredNull
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
    records = [OutsideRecord(id=song.id, sha256=song.sha256, codes_hash=song.codes_hash) for song in outside.songs]
    if _kept(store, checkpoint) == (records, outside.origin):
        return False
    attributes = attributes_for(fingerprinter.lm)
    songs = [Song(song.id, [Example(song.chunk.codes, 0, song.chunk.frames, attributes)]) for song in outside.songs]
    found = list(progress_bar(fingerprinter.fingerprints(songs), f'outside songs {checkpoint}', len(songs)))
    vectors = {channel: torch.stack([one.vectors[channel] for one in found]) for channel in store.channels}
    store.save_null(checkpoint, StoredNull(records, vectors, outside.origin))
    return True


def _kept(store: FingerprintStore, checkpoint: str) -> tp.Optional[tp.Tuple[tp.List[OutsideRecord], str]]:
    """The outside songs that a checkpoint has, and their origin; None where it has none, or a damaged file."""
    try:
        null = store.null(checkpoint)
    except LuminaError as error:
        logger.warning("Making a null again: %s", error)
        return None
    return None if null is None else (null.songs, null.origin)


def calibrate(source: tp.Union[str, Path], songs: tp.Optional[tp.Union[str, Path]] = None, count: int = COUNT,
              model: tp.Optional[tp.Union[str, Path]] = None, device: tp.Optional[str] = None, batch_size: int = 8
              ) -> tp.Dict[FingerprintStore, tp.List[str]]:
    """Give stores that are there what they measure chance by: outside songs at every checkpoint.

    Args:
        source (str or path): A store, or a dora run, of which all stores are meant.
        songs (path, optional): Recordings that the model never saw; else as the run's `fingerprint.outside` says.
        count (int): How many songs to take.
        model (str or path, optional): What the store was made with, where that is not the run that it lies in.
    Returns:
        dict: By store, the checkpoints that were calibrated; those that had just these songs already are not among
            them.
    Raises:
        LuminaError: no such store or model, or songs that cannot measure chance.
    """
    stores, run = _stores(source)
    if model is None and run is None:
        raise LuminaError(f"{source} lies in no dora run, so name the model that it was made with by --model.")
    musicgen = load_musicgen(model if model is not None else tp.cast(Path, run), device)
    return {store: _calibrate(store, musicgen, run, songs, count, batch_size) for store in stores}


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
               songs: tp.Optional[tp.Union[str, Path]], count: int, batch_size: int) -> tp.List[str]:
    from .codec import codec_hash
    from .hashing import model_config_hash
    recipe, digest = recipe_from_dict(store.identity.recipe), codec_hash(musicgen.compression_model)
    store.expect(codec_hash=digest, model_config_hash=model_config_hash(musicgen.lm))
    tokenizer = Tokenizer(musicgen.compression_model, digest, recipe.chunk_seconds, recipe.silence_db,
                          cache=None if run is None else run / 'lumina' / 'codes')
    outside = outside_of_run(run, store, tokenizer, songs_needed(recipe.gate.rate), count, songs)
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


def outside_of_run(run: tp.Optional[Path], store: FingerprintStore, tokenizer: Tokenizer, needed: int,
                   count: int = COUNT, songs: tp.Optional[tp.Union[str, Path]] = None) -> tp.Optional[Outside]:
    """Outside songs as a run's configuration has them, wherever its paths lead by now, unless `songs` are named."""
    from .catalogue_pass import manifests_of
    where, valid, seen = songs, None, frozenset[str]()
    if run is not None:
        if where in (None, ''):
            named = run_key(run, 'fingerprint.outside')
            where = next(iter(manifests_of(run, 'fingerprint.outside')), named)
            valid = next(iter(manifests_of(run, 'datasource.valid')), None)
        seen = frozenset(recordings_of(next(iter(manifests_of(run, 'datasource.train')), None)))
    return gather(where, store, tokenizer, needed, count, valid, seen)


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
