"""The fingerprinting pass: every chunk of every song once, in a fixed order, into a store."""

import contextlib
import logging
import time
import typing as tp
from pathlib import Path

import torch
from tqdm import tqdm

from . import statistics
from .catalogue import Catalogue
from .errors import LuminaError
from .fingerprint import Fingerprinter, Projections, Song, Window
from .hashing import model_config_hash
from .pairs import changed_songs, fit_separations
from .prepared import PreparedCatalogue, progress_bar
from .projection import BlockReducers, ChannelProjection
from .recipe import ProjectionConfig, Recipe
from .scoring import StackedRows
from .store import CheckpointInfo, FingerprintStore, Identity, StorePart, StoreWriter, TrackRecord
from .workers import Workers

logger = logging.getLogger(__name__)
Writer = tp.Union[StoreWriter, StorePart]


def run_pass(fingerprinter: Fingerprinter, prepared: PreparedCatalogue, store: FingerprintStore,
             checkpoint: CheckpointInfo, weights: tp.Optional[tp.Mapping[str, torch.Tensor]] = None,
             workers: tp.Optional[Workers] = None) -> tp.Dict[str, float]:
    """Fingerprint every song at one checkpoint; an interrupted pass goes on where its last shards ended.

    Args:
        fingerprinter (Fingerprinter): Model, recipe and weights of this checkpoint.
        prepared (PreparedCatalogue): Songs as codes.
        store (FingerprintStore): Where the fingerprints go.
        checkpoint (CheckpointInfo): Name, epoch and hash of the weights.
        weights (mapping, optional): State dict, saved beside the fingerprints for later queries; without it the
            checkpoint stands for the live model.
        workers (Workers, optional): The processes that share the work, each of which calls this with the same songs;
            the shards are dealt out among them. The store ends as one process would have made it.
    Returns:
        dict: songs, seconds, and per channel the rank of a fitted projection.
    """
    begun = time.perf_counter()
    workers = workers or Workers()
    if weights is not None and workers.first:
        checkpoint = checkpoint.model_copy(update={'weights': store.save_weights(checkpoint, weights)})
    checkpoint = workers.broadcast(checkpoint)
    songs = [song for song in prepared.songs if song.id not in store.withdrawn]
    with _writing(store, checkpoint, workers) as writer:
        mine = set(writer.mine) - writer.done_ids
        remaining = {song.id: song for song in songs if song.id in mine}
        if workers.count == 1 and len(remaining) < len(songs):
            there = len(songs) - len(remaining)
            logger.info("%s: %d of %d songs are there already.", checkpoint.name, there, len(songs))
        windows: tp.List[Window] = []
        if not workers.broadcast(isinstance(writer, StoreWriter) and _has_projections(writer, store)):
            windows = _fit(fingerprinter, prepared, songs, store, writer, mine, workers)
        # those just fitted too: read back, they are pages of a file rather than memory
        fingerprinter.projections = _projections(fingerprinter, store, checkpoint)
        _mark(prepared, writer, mine)  # not before: it may fill a shard, which names the projections
        for window in windows or _windows(fingerprinter, store, remaining, f'fingerprints {checkpoint.name}'):
            for found in fingerprinter.project(window):
                writer.add(found.song, found.vectors, found.norms, found.chunk_norms)
        workers.barrier()
        if isinstance(writer, StoreWriter):
            writer.adopt()
            writer.finish(noise=measured_noise(store, checkpoint.name))
        workers.barrier()
    ranks = {f'rank_{channel}': float(p.facts().get('rank', p.projection.dim))
             for channel, p in fingerprinter.projections.items()}
    return {'songs': float(len(songs)), 'seconds': time.perf_counter() - begun, **ranks}


@contextlib.contextmanager
def _writing(store: FingerprintStore, checkpoint: CheckpointInfo, workers: Workers) -> tp.Iterator[Writer]:
    """The store's writer in process zero, and a part of it in each of the others."""
    if workers.first:
        with store.writer(checkpoint, workers.count) as writer:
            workers.barrier()
            yield writer
        return
    workers.barrier()  # until process zero has registered the checkpoint
    store.reload()
    with store.part(checkpoint, workers.rank, workers.count) as part:
        yield part


def _has_projections(writer: StoreWriter, store: FingerprintStore) -> bool:
    """Whether an earlier pass has come so far that its projections stand, for the shards that it has written."""
    complete = all(channel in writer.checkpoint.projections for channel in store.channels)
    return writer.begun or (complete and bool(writer.checkpoint.shards))


def _mark(prepared: PreparedCatalogue, writer: Writer, mine: tp.Collection[str]) -> None:
    """Record the songs that get no fingerprint, and why."""
    for track_id in prepared.silent:
        if track_id in mine:
            writer.mark(track_id, 'silent', 'never rises above the silence level')
    for track_id, reason in prepared.skipped.items():
        if track_id in mine:
            writer.mark(track_id, 'skipped', reason)


def _windows(fingerprinter: Fingerprinter, store: FingerprintStore, songs: tp.Mapping[str, Song], label: str,
             reducers: tp.Optional[tp.Mapping[str, BlockReducers]] = None) -> tp.Iterator[Window]:
    """Gradients of songs by their ids. Windows never span shards: a rerun, which does whole shards again, gives the
    same bytes."""
    reducers = reducers or {channel: p.reducers for channel, p in (fingerprinter.projections or {}).items()}
    with tqdm(desc=label, total=len(songs), dynamic_ncols=True, mininterval=0.5, delay=1) as bar:
        for ids in store.by_shard(list(songs)):
            for window in fingerprinter.windows([songs[track_id] for track_id in ids], reducers):
                bar.update(len(window.songs))
                yield window


def _fit(fingerprinter: Fingerprinter, prepared: PreparedCatalogue, songs: tp.Sequence[Song], store: FingerprintStore,
         writer: Writer, mine: tp.Collection[str], workers: Workers) -> tp.List[Window]:
    """Fit the projections and put them into the store, whoever computes the gradients that they are fitted on.

    Returns:
        list of Window: What this process has computed, if that is all it has to fingerprint; else none.
    """
    factors: tp.Dict[str, tp.Dict[str, torch.Tensor]] = {}
    if workers.first:
        factors = {channel: {name: factor.cpu() for name, factor in reducer.factors.items()}
                   for channel, reducer in fingerprinter.fit_reducers(songs, progress_bar).items()}
    reducers = {channel: BlockReducers(fingerprinter.channels[channel],
                                       {name: factor.to(fingerprinter.device) for name, factor in found.items()},
                                       fingerprinter.recipe.block_norm)
                for channel, found in workers.broadcast(factors).items()}
    separated = {channel: reducers[channel] for channel in fingerprinter.separated}
    changed = changed_songs(fingerprinter, separated, prepared, songs, workers)
    projections = fit_separations(fingerprinter, separated, changed, workers)
    sample = fingerprinter.fit_sample(songs, reducers)
    own = {song.id: song for song in sample if song.id in mine}
    windows = list(_windows(fingerprinter, store, own, 'song gradients', reducers))
    parts = windows
    if workers.count > 1:  # they may lie on as many GPUs
        parts = [window for part in workers.collect([window.cpu() for window in windows]) for window in part]
    if isinstance(writer, StoreWriter):
        place = {track_id: index for index, track_id in enumerate(
            track_id for ids in store.by_shard([song.id for song in sample]) for track_id in ids)}
        parts.sort(key=lambda window: place[window.songs[0]])
        others = {channel: reducer for channel, reducer in reducers.items() if channel not in separated}
        projections.update(fingerprinter.fit_projections(others, parts))
        for channel, projection in projections.items():
            writer.put_projection(channel, projection.tensors(), projection.facts())
    workers.barrier()
    return windows if len(sample) == len(songs) else []


def _projections(fingerprinter: Fingerprinter, store: FingerprintStore, checkpoint: CheckpointInfo) -> Projections:
    """The checkpoint's projections as the store has them, mapped from its files."""
    store.reload()
    return {channel: ChannelProjection.load(blocks, *store.projection(checkpoint.name, channel),
                                            block_norm=fingerprinter.recipe.block_norm, device=fingerprinter.device)
            for channel, blocks in fingerprinter.channels.items()}


def measured_noise(store: FingerprintStore, checkpoint: str) -> tp.Dict[str, float]:
    """Per channel, the spread of the cosines between a checkpoint's songs."""
    projection = ProjectionConfig.model_validate(store.identity.recipe.get('projection', {}))
    found = {}
    for channel in store.channels:
        rows = StackedRows([rows for _, rows in store.iter_vectors(checkpoint, channel, partial=True)],
                           store.identity.dim)
        alone = projection.kind_of(channel) == 'separated'  # directions, and nothing of what lies outside of them
        rank = int(store.projection(checkpoint, channel)[1]['rank']) if alone else None
        found[channel] = statistics.measured_noise([rows], rank, unit=not projection.keeps_lengths(channel))[1]
    return found


def make_identity(model_id: str, lm: torch.nn.Module, codec_hash: str, recipe: Recipe, catalogue: Catalogue,
                  trained_on_hash: tp.Optional[str], licence: tp.Optional[str] = None) -> Identity:
    """What a store is made with; compared before anything is added to it or scored against it."""
    return Identity(model_id=model_id, model_config_hash=model_config_hash(lm), codec_hash=codec_hash,
                    recipe_hash=recipe.fingerprint_hash, recipe=recipe.model_dump(mode='json'),
                    catalogue_hash=catalogue.hash, trained_on_hash=trained_on_hash, dim=recipe.projection.dim,
                    channels=list(recipe.channels), licence=licence)


def open_or_create(path: Path, identity: Identity, prepared: PreparedCatalogue, update: bool = False
                   ) -> FingerprintStore:
    """The store of an earlier checkpoint of this training, or a new one.

    Args:
        path (Path): Its folder.
        identity (Identity): What it is made with.
        prepared (PreparedCatalogue): Its songs.
        update (bool): Take a catalogue that has changed: new songs and songs with another recording are fingerprinted
            at the next pass of each checkpoint, the others stay as they are.
    Raises:
        LuminaError: when a store is there already that was made with another model, codec or recipe, or holds other
            songs and `update` is not asked for, or songs that the catalogue lacks.
    """
    tracks = [TrackRecord(id=t.id, title=t.title or '', artist=t.artist or '', isrc=t.isrc, iswc=t.iswc,
                          duration=t.duration, sha256=t.sha256, path=str(t.path), extra=t.extra)
              for t in prepared.catalogue]
    if not FingerprintStore.exists(path):
        return FingerprintStore.create(path, identity, tracks)
    store = FingerprintStore.open(path)
    store.expect(codec_hash=identity.codec_hash, model_config_hash=identity.model_config_hash,
                 recipe_hash=identity.recipe_hash)
    found = store.compare(tracks)
    if (found.new or found.changed) and not update:
        raise LuminaError(
            f"The store {path} was made with another catalogue (store: {store.identity.catalogue_hash}, yours: "
            f"{identity.catalogue_hash}): {len(found.new)} songs are new and {len(found.changed)} have another "
            "recording; add them by `lumina fingerprint … --update`, or fingerprint into a fresh store.")
    if found.missing:
        raise LuminaError(f"{len(found.missing)} songs of {path} are not in this catalogue (the first: "
                          f"{found.missing[0]}); withdraw them by `lumina store withdraw {path} ID …`, or add them to "
                          "the catalogue.")
    told = store.describe(tracks)
    if told:
        logger.info("Titles or other particulars of %d songs are new and were taken over.", len(told))
    if update:
        store.add_tracks(found.new, identity.catalogue_hash)
        store.replace(found.changed, identity.catalogue_hash)
        logger.info("%d songs are new and %d have another recording.", len(found.new), len(found.changed))
    return store


def store_path(xp_folder: tp.Union[str, Path], recipe_name: str) -> Path:
    """Where a training's fingerprints are kept: beside its checkpoints, one folder per recipe."""
    return Path(xp_folder) / 'lumina' / recipe_name
