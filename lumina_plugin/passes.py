"""The fingerprinting pass: every chunk of every song once, in a fixed order, into a store."""

import dataclasses
import logging
import time
import typing as tp
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from . import statistics
from .catalogue import Catalogue, Track
from .conditions import attributes_for
from .errors import LuminaError
from .fingerprint import Example, Fingerprinter, Projections, Song, spread
from .hashing import model_config_hash
from .projection import ChannelProjection
from .recipe import Recipe
from .store import CheckpointInfo, FingerprintStore, Identity, StoreWriter, TrackRecord
from .tokens import TokenizedAudio, Tokenizer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreparedCatalogue:
    """A catalogue as codes, with what could not be used.

    Args:
        songs (list of Song): Songs with at least one chunk of sound, in the catalogue's order.
        tokens (dict): Codes of every readable song by its id.
        silent (list of str): Ids of songs without sound.
        skipped (dict): Why a song could not be read, by id.
        tokenizer (Tokenizer): What made the codes.
    """
    catalogue: Catalogue
    songs: tp.List[Song]
    tokens: tp.Dict[str, TokenizedAudio]
    silent: tp.List[str]
    skipped: tp.Dict[str, str]
    tokenizer: Tokenizer

    @property
    def hours(self) -> float:
        return sum(track.duration for track in self.catalogue) / 3600


def progress_bar(items: tp.Iterable, label: str, total: tp.Optional[int] = None) -> tp.Iterable:
    """A progress bar on standard error for stages that may take longer than two seconds."""
    return tqdm(items, desc=label, total=total, dynamic_ncols=True, mininterval=0.5, delay=1)


def prepare(catalogue: Catalogue, tokenizer: Tokenizer, lm: nn.Module, strict: bool = False,
            phases: int = 1) -> PreparedCatalogue:
    """Encode every song of a catalogue, once: the tokenizer's cache remembers.

    Args:
        catalogue (Catalogue): Songs to read.
        tokenizer (Tokenizer): Codec and chunking. lm (nn.Module): Its conditions tell what a song's text is for.
        strict (bool): Stop at the first song that cannot be read instead of naming and skipping it.
        phases (int): Starts within one frame from which each song is encoded (recipe key `song_phases`).
    Raises:
        LuminaError: with `strict`, or when no song is left.
    """
    songs: tp.List[Song] = []
    tokens: tp.Dict[str, TokenizedAudio] = {}
    silent: tp.List[str] = []
    skipped: tp.Dict[str, str] = {}
    for track in progress_bar(catalogue, 'encoding', len(catalogue)):
        try:
            tokenized = tokenizer.phases(track.path, phases, track.sha256)
        except LuminaError as error:
            if strict:
                raise
            logger.warning("Skipping %s: %s", track.id, error)
            skipped[track.id] = str(error)
            continue
        tokens[track.id] = tokenized[0]
        if tokenized[0].silent:
            silent.append(track.id)
        else:
            songs.append(song_of(track, tokenized, lm))
    if not songs:
        raise LuminaError(f"None of the {len(catalogue)} songs can be fingerprinted ({len(skipped)} unreadable, "
                          f"{len(silent)} silent); check them with `lumina catalogue check`.")
    return PreparedCatalogue(catalogue, songs, tokens, silent, skipped, tokenizer)


def song_of(track: Track, tokenized: tp.Sequence[TokenizedAudio], lm: nn.Module) -> Song:
    """A track's chunks of sound, however often it was encoded, as examples under its own text.

    Silent chunks carry no evidence and are left out.
    """
    attributes = attributes_for(lm, track.description)
    return Song(track.id, [Example(chunk.codes, 0, chunk.frames, attributes)
                           for phase in tokenized for chunk in phase.chunks if not chunk.silent])


def estimate(prepared: PreparedCatalogue, fingerprinter: Fingerprinter) -> str:
    """One line before a long pass: songs, hours, time (from one timed batch), disk and memory."""
    chunks = [example for song in prepared.songs for example in song.examples]
    batch = spread(chunks, fingerprinter.batch_size)
    ignored = {name: lambda a, d: torch.zeros(1) for name in fingerprinter.blocks}
    fingerprinter.gradients(batch[:1], ignored)  # the first pass of a process is slower than all others
    begun = time.perf_counter()
    fingerprinter.gradients(batch, ignored)
    seconds = (time.perf_counter() - begun) / len(batch) * len(chunks)
    recipe = fingerprinter.recipe
    passes = 1.3 if recipe.projection.kind == 'fitted' else 1.0  # the fit looks at some chunks twice
    weights = sum(p.numel() for p in fingerprinter.lm.parameters()) * 4
    vectors = len(prepared.songs) * len(recipe.channels) * recipe.projection.dim * 4
    projections, rows = fingerprinter.fit_bytes(len(prepared.songs))
    return (f"{len(prepared.songs)} songs, {prepared.hours:.2f} h, {len(chunks)} chunks: about "
            f"{seconds * passes:.0f} s per checkpoint, {(vectors + weights + projections) / 2 ** 20:.0f} MiB on disk, "
            f"{(weights + rows + projections) / 2 ** 20:.0f} MiB of memory beyond the model's own")


def run_pass(fingerprinter: Fingerprinter, prepared: PreparedCatalogue, store: FingerprintStore,
             checkpoint: CheckpointInfo, weights: tp.Optional[tp.Mapping[str, torch.Tensor]] = None
             ) -> tp.Dict[str, float]:
    """Fingerprint every song at one checkpoint; an interrupted pass goes on where its last shard ended.

    Args:
        fingerprinter (Fingerprinter): Model, recipe and weights of this checkpoint.
        prepared (PreparedCatalogue): Songs as codes.
        store (FingerprintStore): Where the fingerprints go.
        checkpoint (CheckpointInfo): Name, epoch and hash of the weights.
        weights (mapping, optional): State dict, saved beside the fingerprints for later queries; without it the
            checkpoint stands for the live model.
    Returns:
        dict: songs, seconds, and per channel the rank of a fitted projection.
    """
    begun = time.perf_counter()
    if weights is not None:
        checkpoint = checkpoint.model_copy(update={'weights': store.save_weights(checkpoint, weights)})
    with store.writer(checkpoint) as writer:
        done, gone = writer.done_ids, store.withdrawn
        songs = [song for song in prepared.songs if song.id not in gone]
        remaining = [song for song in songs if song.id not in done]
        if len(remaining) < len(songs):
            there = len(songs) - len(remaining)
            logger.info("%s: %d of %d songs are there already.", checkpoint.name, there, len(songs))
        projections = _load_projections(fingerprinter, writer) if writer.begun else None
        rows: tp.Dict[str, tp.Tuple[torch.Tensor, torch.Tensor]] = {}
        if projections is None:
            projections, rows = fingerprinter.fit(songs, progress_bar)
            for channel, projection in projections.items():
                writer.put_projection(channel, projection.tensors(), projection.facts())
        fingerprinter.projections = projections
        _mark(prepared, writer, done)
        if rows and len(songs) <= store.shard_size:
            _write_rows(songs, rows, projections, writer, done)
        else:
            by_id = {song.id: song for song in remaining}
            for ids in store.by_shard(list(by_id)):  # batches never span shards: a rerun gives the same bytes
                passes = fingerprinter.fingerprints([by_id[track_id] for track_id in ids])
                for song, vectors, norms in progress_bar(passes, f'fingerprints {checkpoint.name}', len(ids)):
                    writer.add(song.id, vectors, norms)
        writer.flush()
        writer.finish(noise=_noise(store, checkpoint, projections))
    ranks = {f'rank_{channel}': float(p.facts().get('rank', p.projection.dim)) for channel, p in projections.items()}
    return {'songs': float(len(songs)), 'seconds': time.perf_counter() - begun, **ranks}


def _mark(prepared: PreparedCatalogue, writer: StoreWriter, done: tp.Collection[str]) -> None:
    """Record the songs that get no fingerprint, and why."""
    for track_id in prepared.silent:
        if track_id not in done:
            writer.mark(track_id, 'silent', 'never rises above the silence level')
    for track_id, reason in prepared.skipped.items():
        if track_id not in done:
            writer.mark(track_id, 'skipped', reason)


def _load_projections(fingerprinter: Fingerprinter, writer: StoreWriter) -> tp.Optional[Projections]:
    projections: Projections = {}
    for channel, blocks in fingerprinter.channels.items():
        stored = writer.projection_if_any(channel)
        if stored is None:
            return None
        projections[channel] = ChannelProjection.load(
            blocks, *stored, block_norm=fingerprinter.recipe.block_norm, device=fingerprinter.device)
    return projections


def _write_rows(songs: tp.Sequence[Song], rows: tp.Dict[str, tp.Tuple[torch.Tensor, torch.Tensor]],
                projections: Projections, writer: StoreWriter, done: tp.Collection[str]) -> None:
    """Project what the fit has already computed for every song."""
    vectors = {channel: projections[channel].projection(joined).cpu() for channel, (joined, _) in rows.items()}
    for index, song in enumerate(songs):
        if song.id in done:
            continue
        writer.add(song.id, {channel: v[index] for channel, v in vectors.items()},
                   {channel: float(norms[index]) for channel, (_, norms) in rows.items()})


def _noise(store: FingerprintStore, checkpoint: CheckpointInfo, projections: Projections) -> tp.Dict[str, float]:
    """Per channel, the spread of the cosines between this checkpoint's songs."""
    return {channel: statistics.measured_noise(
                store.vectors(checkpoint.name, channel, partial=True)[1].float().numpy())[1]
            for channel in projections}


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
