"""From a query's codes to an attribution report: score against the store, then statistics, per channel."""

import dataclasses
import functools
import logging
import time
import typing as tp
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import __version__, audio, statistics
from .chance import Chance, OutsideSongs
from .channel_verdict import known_verdict
from .checkpoints import later_than, live_checkpoint, servable
from .conditions import attributes_at, attributes_for
from .errors import LuminaError
from .fingerprint import Fingerprinter, Projections
from .gradients import Example
from .hashing import codes_hash, model_config_hash, state_hash
from .intervals import Parts, share_intervals
from .projection import ChannelProjection
from .prompts import Halves, cut_at_prompt
from .recipe import Recipe, recipe_from_dict
from .report import schema
from .scoring import (
    Scorer,
    StackedRows,
    checkpoint_scores,
    fit_scorers,
    mean_scores,
    multi_checkpoint,
)
from .store import GENERATION, RECORDING, CheckpointInfo, FingerprintStore, Kind
from .tokens import CodeChunk, TokenizedAudio, Tokenizer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class QueryFacts:
    """What a report says about its query besides the numbers.

    Args:
        id (str): Short name. kind (str): 'generation', 'continuation' or 'file'.
        prompt (str, optional): Text. seed (int, optional): Of the generation.
        prompt_song_id (str, optional): Catalogue song that a continuation began with.
        prompt_seconds (float): Length of the audio prompt.
        sha256 (str, optional): Of the audio file's bytes; its codes' hash stands in until a file exists.
        audio_file (str, optional): Name of the audio file beside the report.
    """
    id: str = 'query'
    kind: tp.Literal['generation', 'continuation', 'file'] = 'generation'
    prompt: tp.Optional[str] = None
    seed: tp.Optional[int] = None
    prompt_song_id: tp.Optional[str] = None
    prompt_seconds: float = 0.
    sha256: tp.Optional[str] = None
    audio_file: tp.Optional[str] = None


@dataclasses.dataclass(frozen=True)
class _Channel:
    """Songs of one channel: ids in order and, per checkpoint, the scores that are needed, ready for queries."""
    ids: tp.List[str]
    scorers: tp.List[tp.Dict[str, Scorer]]
    noise_mean: float
    noise_floor: float
    how: str
    chances: tp.Mapping[Kind, Chance]


class Attributor:
    """Attribute codes or recordings to the songs of a store.

    Args:
        lm (nn.Module): audiocraft `LMModel` of the architecture that the store was made with.
        codec: audiocraft `CompressionModel` that made the store's codes.
        store (FingerprintStore or path): Fingerprints of the catalogue.
        codec_id (str): What to call the codec in reports. codec_hash (str, optional): Known hash, else computed.
        recipe (Recipe, optional): Other scoring, gate or checkpoints than the store's own recipe; what changes a
            fingerprint must agree with the store.
        batch_size (int): Chunks per pass.
        checkpoint (str, optional): That of the store whose weights the model must have. Known by its weights anyway:
            where it is not the last, the later ones had no part in this model and are left out.
    Attributes:
        watch (callable): Called with (done, all) checkpoints of a pass while a query is compared; what it raises ends
            the work.
        live (CheckpointInfo): The checkpoint whose weights the model has. checkpoints (list): Those that queries are
            compared at.
    Raises:
        LuminaError: when store and model, codec or recipe do not belong together, with both hashes.
    """
    watch: tp.Callable[[int, int], None] = staticmethod(lambda done, total: None)

    def __init__(self, lm: nn.Module, codec: tp.Any, store: tp.Union[FingerprintStore, str, Path],
                 codec_id: str = 'codec', codec_hash: tp.Optional[str] = None, recipe: tp.Optional[Recipe] = None,
                 batch_size: int = 8, autocast: tp.Optional[tp.Callable[[], tp.ContextManager]] = None,
                 checkpoint: tp.Optional[str] = None):
        from .codec import codec_hash as hash_of
        self.store = store if isinstance(store, FingerprintStore) else FingerprintStore.open(store)
        self.lm, self.codec, self.codec_id = lm, codec, codec_id
        self.recipe = recipe or recipe_from_dict(self.store.identity.recipe)
        self.codec_hash = codec_hash or hash_of(codec)
        self.batch_size, self.autocast = batch_size, autocast
        self.store.expect(codec_hash=self.codec_hash, model_config_hash=model_config_hash(lm),
                          recipe_hash=self.recipe.fingerprint_hash)
        served = servable(self.store, checkpoint)
        self.live = live_checkpoint(self.store, lm, checkpoint)
        self._later = len(later_than(self.store, self.live.name))
        if self._later:  # known by its weights, whether or not it was named
            served = servable(self.store, self.live.name)
        self._waiting = served.waiting
        self.checkpoints = served.checkpoints[-1:] if self.recipe.checkpoints == 'last' else served.checkpoints
        self.tokenizer = Tokenizer(codec, self.codec_hash, self.recipe.chunk_seconds, self.recipe.silence_db)
        self._fingerprinters = functools.lru_cache(maxsize=self._copies_that_fit())(self._fingerprinter)
        self._outside = OutsideSongs(self.store, self.checkpoints, self.recipe.gate.rate)
        self._channels = {channel: self._load_channel(channel) for channel in self.store.channels}

    # -- entry points ---------------------------------------------------------------------------------------------

    def attribute_file(self, path: tp.Union[str, Path], facts: tp.Optional[QueryFacts] = None
                       ) -> schema.AttributionReport:
        """Attribute a recording on disk; it is encoded as the catalogue was, without any condition.

        Raises:
            LuminaError: when it cannot be read or holds nothing but silence.
        """
        begun = time.perf_counter()
        phases = self.tokenizer.phases(path, self.recipe.query_phases)
        facts = facts or QueryFacts(id=Path(path).stem, kind='file', audio_file=Path(path).name)
        facts = dataclasses.replace(facts, sha256=facts.sha256 or audio.file_sha256(path))
        if phases[0].silent:
            raise LuminaError(f"{path} is silent throughout (below {self.recipe.silence_db:g} dBFS): there is nothing "
                              "to attribute; pass a recording with sound.")
        return self._report(phases, attributes_for(self.lm), facts, {'encode': time.perf_counter() - begun})

    def attribute_codes(self, codes: torch.Tensor, attributes: tp.Any = None,
                        facts: QueryFacts = QueryFacts()) -> schema.AttributionReport:
        """Attribute codes [K, T] that a model has just generated, under the conditions it had.

        Args:
            codes (torch.Tensor): Finished codes of one clip, prompt included.
            attributes: Its `ConditioningAttributes`; none stands for no condition.
            facts (QueryFacts): Whence it came; `prompt_seconds` are left out where the recipe says so.
        """
        attributes = attributes_for(self.lm) if attributes is None else attributes
        return self._report([self.tokenizer.finished(codes)], attributes, facts, {})

    @property
    def song_ids(self) -> tp.List[str]:
        """Ids of the N songs that queries are compared with, in the order of `scores`."""
        return next(iter(self._channels.values())).ids

    def chance(self, channel: str, kind: Kind = RECORDING) -> tp.Optional[Chance]:
        """What outside songs score in a channel, by which queries of a kind are judged; None where there are none."""
        by = self._outside.kind_for(kind)
        return None if by is None else self._channels[channel].chances[by]

    def scores(self, examples: tp.Sequence[Example], prompt_frames: int = 0) -> tp.Dict[str, np.ndarray]:
        """Scores [N] of one query, given as examples, against every song, by channel; no statistics, no report.

        Args:
            prompt_frames (int): So many frames of each example were given, and are counted as the recipe says.
        """
        apart = self._apart([(example, prompt_frames) for example in examples], [0] * len(examples))
        whole = self._fingerprints(list(examples), [0] * len(examples))[0] if apart is None else apart.whole
        return {channel: self._scores(loaded, [vector[None] for vector in whole[channel]])[1][0]
                for channel, loaded in self._channels.items()}

    def fingerprint_parts(self, examples: tp.Sequence[Example]) -> tp.Dict[str, tp.List[np.ndarray]]:
        """Fingerprints of examples, each on its own: by channel and checkpoint, [n, D]."""
        return self._fingerprints(list(examples), list(range(len(examples))))[1]

    # -- the route ------------------------------------------------------------------------------------------------

    def _report(self, phases: tp.List[TokenizedAudio], attributes: tp.Any, facts: QueryFacts,
                timings: tp.Dict[str, float]) -> schema.AttributionReport:
        """Score chunks that one or several encodings stand for; the first says how the query is cut."""
        seconds = facts.prompt_seconds
        kind: Kind = RECORDING if facts.kind == 'file' else GENERATION
        by = self._outside.kind_for(kind)
        def read(masked: bool) -> tp.Tuple[tp.Dict[str, schema.ChannelReport], tp.Dict[str, float]]:
            return self._compare(phases, attributes, seconds if masked else 0., timings, 0. if masked else seconds,
                                 by)
        channels, timings = read(self.recipe.mask_prompt)
        warnings, other = self.warnings(kind), None
        if not channels and seconds:  # a generation that has been made is not lost over this
            warnings.insert(0, f"The prompt of {seconds:g} s covers all of the clip, so that its frames are counted.")
            channels, timings = read(False)
        elif seconds:  # what the prompt changes is for the reader to see, whichever way the recipe reads it
            reading, timings = read(not self.recipe.mask_prompt)
            if reading:
                bare = {name: channel.model_copy(update={'segments': []}) for name, channel in reading.items()}
                other = schema.OtherReading(prompt_counted=self.recipe.mask_prompt, channels=bare)
        return schema.AttributionReport(
            lumina_version=__version__, query=self._query(phases[0], facts), channels=channels, other_reading=other,
            channel_meaning=None if self._later else known_verdict(self.store), timings=timings, warnings=warnings,
            **self._provenance())

    def _compare(self, phases: tp.List[TokenizedAudio], attributes: tp.Any, masked: float,
                 timings: tp.Dict[str, float], prompt: float = 0., by: tp.Optional[Kind] = None
                 ) -> tp.Tuple[tp.Dict[str, schema.ChannelReport], tp.Dict[str, float]]:
        """Every channel's report, with the first `masked` seconds left out, or the first `prompt` seconds counted as a
        prompt's; none where nothing is left. Chance is that of outside songs of the kind `by`.

        The seconds that it takes are added to `timings`.
        """
        chunks = [(chunk, self._example(chunk, masked, attributes)) for chunk in phases[0].chunks]
        heard = [index for index, (_, example) in enumerate(chunks) if example is not None]
        if not heard:
            return {}, timings
        again = [(part, phase.chunks[index]) for phase in phases for part, index in enumerate(heard)
                 if index < len(phase.chunks)]
        encoded = [(part, chunk, example) for part, chunk in again
                   if (example := self._example(chunk, masked, attributes)) is not None]
        begun = time.perf_counter()
        whole, parts = self._fingerprints([example for _, _, example in encoded], [part for part, _, _ in encoded])
        apart = self._apart([(example, round((prompt - chunk.start) * self.tokenizer.frame_rate))
                             for _, chunk, example in encoded], [part for part, _, _ in encoded])
        whole = whole if apart is None else apart.whole
        fingerprinted = time.perf_counter()
        frames = [example.weight for _, example in (chunks[index] for index in heard) if example is not None]
        seed = int(codes_hash(phases[0].codes)[:16], 16)
        channels = {}
        for channel, loaded in self._channels.items():
            chance = None if by is None else loaded.chances[by]
            values = self._statistics(loaded, whole[channel], chance)
            cosines, scores = checkpoint_scores(loaded.scorers, parts[channel], self.recipe.scoring.method)
            mean = multi_checkpoint(cosines)
            segments = self._segments(loaded, chunks, heard, mean,
                                      mean if scores is cosines else multi_checkpoint(scores), masked)
            unit = tp.cast(tp.Tuple[bool, bool], tuple(
                loaded.scorers[0][name].unit for name in ('cosine', self.recipe.scoring.method)))
            drawn = Parts(parts[channel], whole[channel], frames, cosines, scores, unit)
            if apart is not None:
                drawn = apart.parts(channel, *checkpoint_scores(loaded.scorers, apart.pieces[channel],
                                                                self.recipe.scoring.method), unit)
            intervals = share_intervals(values, None if chance is None else chance.null, drawn, seed)
            tracks = [self.store.track(track_id) for track_id in loaded.ids]
            channels[channel] = schema.ChannelReport.from_statistics(
                values, tracks, self.recipe.scoring.method, loaded.how, segments, intervals, drawn.counts,
                '' if chance is None else chance.origin, None if chance is None else chance.diagnosis)
        spent = {'fingerprint': fingerprinted - begun, 'score': time.perf_counter() - fingerprinted}
        return channels, {**timings, **{stage: timings.get(stage, 0.) + took for stage, took in spent.items()}}

    def _example(self, chunk: CodeChunk, masked: float, attributes: tp.Any) -> tp.Optional[Example]:
        first = min(max(round((masked - chunk.start) * self.tokenizer.frame_rate), 0), chunk.frames)
        if chunk.silent or first >= chunk.frames:
            return None
        return Example(chunk.codes, first, chunk.frames, attributes_at(attributes, chunk.start))

    def _fingerprints(self, examples: tp.List[Example], of_part: tp.List[int],
                      of_group: tp.Optional[tp.List[int]] = None
                      ) -> tp.Tuple[tp.Dict[str, tp.List[np.ndarray]], tp.Dict[str, tp.List[np.ndarray]]]:
        """Per channel and checkpoint, the query's fingerprint [D], or its groups' [G, D], and its parts' [n, D]."""
        whole: tp.Dict[str, tp.List[np.ndarray]] = {channel: [] for channel in self._channels}
        parts: tp.Dict[str, tp.List[np.ndarray]] = {channel: [] for channel in self._channels}
        for done, checkpoint in enumerate(self.checkpoints):
            self.watch(done, len(self.checkpoints))
            vectors, rows = self._fingerprinters(checkpoint.name).query(examples, of_part, of_group)
            for channel in self._channels:
                whole[channel].append(vectors[channel].numpy())
                parts[channel].append(rows[channel].numpy())
        return whole, parts

    def _apart(self, examples: tp.Sequence[tp.Tuple[Example, int]], of_part: tp.Sequence[int]) -> tp.Optional[Halves]:
        """The fingerprints of a query whose prompt counts as much as what follows it. None where the recipe does not
        ask for it, or there is only one of them.

        Args:
            examples: each with the frame before which it was given. of_part: the chunk that each belongs to.
        """
        cut = cut_at_prompt(examples, of_part) if self.recipe.prompt_apart else None
        return None if cut is None else Halves(cut, *self._fingerprints(cut.examples, cut.of_piece, cut.of_half))

    def _scores(self, loaded: _Channel, queries: tp.List[np.ndarray]) -> tp.Tuple[np.ndarray, np.ndarray]:
        """Mean cosine and mean score over the checkpoints, [Q, N] each, of queries [Q, D] per checkpoint."""
        return mean_scores(loaded.scorers, queries, self.recipe.scoring.method)

    def _statistics(self, loaded: _Channel, query: tp.List[np.ndarray], chance: tp.Optional[Chance]
                    ) -> statistics.ChannelStatistics:
        cosine, scores = self._scores(loaded, [vector[None] for vector in query])
        gate = statistics.Gate(self.recipe.gate.level, self.recipe.gate.tail)
        return statistics.channel_statistics(cosine[0], scores[0], loaded.noise_floor, gate, loaded.noise_mean,
                                             null=None if chance is None else chance.null, rate=self.recipe.gate.rate,
                                             calibrated=self.recipe.gate.decides == 'calibrated')

    def _segments(self, loaded: _Channel, chunks: tp.List[tp.Tuple[CodeChunk, tp.Optional[Example]]],
                  heard: tp.List[int], cosine: np.ndarray, scores: np.ndarray, masked: float
                  ) -> tp.List[schema.Segment]:
        """The closest songs of each chunk, from the chunks' mean cosines and scores [n, N]."""
        rows = {index: row for row, index in enumerate(heard)}
        segments = []
        for index, (chunk, _) in enumerate(chunks):
            end = chunk.start + chunk.frames / self.tokenizer.frame_rate
            top: tp.List[schema.SegmentHit] = []
            if index in rows:
                row = rows[index]
                best = np.argsort(-scores[row], kind='stable')[:schema.TOP_PER_SEGMENT]
                top = [schema.SegmentHit(track_id=loaded.ids[i], cosine=float(cosine[row, i]),
                                         score=float(scores[row, i])) for i in best]
            left_out = min(max(masked - chunk.start, 0.), end - chunk.start)
            segments.append(schema.Segment(index=index, start=chunk.start, end=end, masked_seconds=left_out,
                                           silent=chunk.silent, top=top))
        return segments

    # -- what a report says about its making ----------------------------------------------------------------------

    def _query(self, tokenized: TokenizedAudio, facts: QueryFacts) -> schema.Query:
        codes = tokenized.codes
        known = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
        return schema.Query(**known, duration=codes.shape[-1] / self.tokenizer.frame_rate,
                            sample_rate=self.codec.sample_rate, codes_hash=codes_hash(codes), silent=tokenized.silent)

    def _provenance(self) -> tp.Dict[str, tp.Any]:
        identity = self.store.identity
        return dict(
            model=schema.Model(id=identity.model_id, config_hash=identity.model_config_hash,
                               licence_note=identity.licence,
                               checkpoint=_recorded(self.live)),
            codec=schema.Codec(id=self.codec_id, hash=self.codec_hash),
            store=schema.Store(name=self.store.path.name, hash=self.store.hash, catalogue_hash=identity.catalogue_hash,
                               songs=len(next(iter(self._channels.values())).ids),
                               trained_on_hash=identity.trained_on_hash),
            checkpoints=[_recorded(one) for one in self.checkpoints],
            recipe=schema.RecipeRecord(name=self.recipe.name, hash=self.recipe.hash, keys=self.recipe.describe()))

    def warnings(self, kind: Kind = RECORDING) -> tp.List[str]:
        """What a reader must know before trusting the numbers of a query of this kind."""
        identity, by = self.store.identity, self._outside.kind_for(kind)
        found = []
        if self._later:
            found.append(f"The model has the weights of {self.live.name}: what its training came to later "
                         f"({self._later} of the store's checkpoints) had no part in it and was not compared.")
        if by is None and self.recipe.gate.decides == 'calibrated':
            found.append(f"Chance was not measured ({self._outside.missing[RECORDING]}): the printed gate decides, "
                         "which lets music that owes nobody pay somebody; mend it by `lumina calibrate` "
                         f"with the store's folder, {self.store.path}.")
        elif by not in (kind, None) and self.recipe.gate.decides == 'calibrated':
            found.append("Chance is measured by recordings alone: what a model makes lies closer to a catalogue than "
                         "recordings do, so that a generation that owes nobody may pay somebody. Where there is a "
                         "model of other songs with this codec, `lumina calibrate … --generations-of MODEL` mends it.")
        if identity.trained_on_hash is None:
            found.append("It is not known what this checkpoint was trained on: the shares compare likeness in the "
                         "model, not proven training influence.")
        elif identity.trained_on_hash != identity.catalogue_hash:
            found.append(f"The catalogue of this store ({identity.catalogue_hash[:12]}) is not what the checkpoint "
                         f"was trained on ({identity.trained_on_hash[:12]}).")
        if identity.licence:
            found.append(identity.licence)
        withdrawn = self.store.withdrawn
        if withdrawn:
            found.append(f"{len(withdrawn)} songs were withdrawn from this store and were not compared: what they "
                         "shaped may show as another song's, or as unattributed.")
        if self._waiting:
            found.append(f"{self._waiting} songs were added to the store and are not fingerprinted at every checkpoint "
                         "yet: they can earn nothing until `lumina fingerprint … --update` has finished.")
        unusable = [track for track in self.store.tracks if track.status != 'ok']
        if unusable:
            found.append(f"{len(unusable)} of {len(self.store.tracks)} songs have no fingerprint (silent or "
                         f"unreadable) and can earn nothing: {', '.join(track.id for track in unusable[:5])}"
                         f"{' …' if len(unusable) > 5 else ''}.")
        return found

    # -- loading --------------------------------------------------------------------------------------------------

    def _load_channel(self, channel: str) -> _Channel:
        """Songs are left in the store's mapped files; only what the scores keep of them is in memory."""
        ids: tp.List[str] = []
        matrices = []
        for checkpoint in self.checkpoints:
            shards = list(self.store.iter_vectors(checkpoint.name, channel, partial=True))
            ids = [track_id for names, _ in shards for track_id in names]
            matrices.append(StackedRows([rows for _, rows in shards], self.store.identity.dim))
        names = list(dict.fromkeys(['cosine', self.recipe.scoring.method]))
        unit = not self.recipe.projection.keeps_lengths(channel)
        scorers = [fit_scorers(names, songs, self.recipe.scoring.ridge, unit=unit) for songs in matrices]
        chances = self._outside.chances(channel, scorers, self.recipe.scoring.method, ids)
        if self.recipe.gate.noise_floor == 'theory':
            return _Channel(ids, scorers, 0., statistics.noise_floor(self.store.identity.dim), '1/sqrt(D)', chances)
        alone = self.recipe.projection.kind_of(channel) == 'separated'  # nothing is kept of what lies outside
        rank = min(int(self.store.projection(each, channel)[1]['rank']) for each in self.checkpoints) if alone else None
        return _Channel(ids, scorers, *statistics.measured_noise(matrices, rank, unit=unit), 'measured', chances)

    def _copies_that_fit(self) -> int:
        """Checkpoints to keep ready: all of them on a CPU, where they stay mapped files; on a GPU, what has room."""
        device = next(self.lm.parameters()).device
        if device.type != 'cuda':
            return len(self.checkpoints)
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, int(free / 2 / (4 * sum(p.numel() for p in self.lm.parameters()))))

    def _fingerprinter(self, name: str) -> Fingerprinter:
        """The model with the weights and projections of one checkpoint."""
        checkpoint = next(c for c in self.checkpoints if c.name == name)
        return fingerprinter_at(self.store, checkpoint, self.lm, self.recipe, self.batch_size, self.autocast)


def fingerprinter_at(store: FingerprintStore, checkpoint: CheckpointInfo, lm: nn.Module, recipe: Recipe,
                     batch_size: int = 8, autocast: tp.Optional[tp.Callable[[], tp.ContextManager]] = None
                     ) -> Fingerprinter:
    """A model with the weights and projections of a store's checkpoint.

    Raises:
        LuminaError: where the store keeps no weights, and the live ones are others.
    """
    weights = _weights(store, checkpoint, lm)
    fingerprinter = Fingerprinter(lm, recipe, weights, batch_size=batch_size, autocast=autocast)
    projections: Projections = {}
    for channel, blocks in fingerprinter.channels.items():
        tensors, stored = store.projection(checkpoint, channel)
        projections[channel] = ChannelProjection.load(blocks, tensors, stored, recipe.block_norm,
                                                     fingerprinter.device)
    fingerprinter.projections = projections
    return fingerprinter


def _recorded(checkpoint: CheckpointInfo) -> schema.Checkpoint:
    return schema.Checkpoint(name=checkpoint.name, epoch=checkpoint.epoch, model_hash=checkpoint.model_hash)


def _weights(store: FingerprintStore, checkpoint: CheckpointInfo, lm: nn.Module
             ) -> tp.Optional[tp.Mapping[str, torch.Tensor]]:
    """A checkpoint's weights, or None where they are the live model's own."""
    if checkpoint.weights is not None:
        return store.load_weights(checkpoint)
    live = state_hash(lm.state_dict())
    if live != checkpoint.model_hash:
        raise LuminaError(f"Store {store.path} keeps no weights for {checkpoint.name} and was made with model "
                          f"{checkpoint.model_hash[:12]}, but the loaded model is {live[:12]}; load that model.")
    return None
