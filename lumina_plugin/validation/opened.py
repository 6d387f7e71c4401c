"""A run with all that the suite's commands ask of it: its model, stores, songs as queries, continuations."""

import dataclasses
import logging
import typing as tp
from pathlib import Path

import torch
from tqdm import tqdm

from ..catalogue import Catalogue
from ..errors import LuminaError
from ..fingerprint import spread
from ..hashing import codes_hash, state_hash
from ..store import FingerprintStore
from ..tokens import Tokenizer
from .methods import Fingerprints, Method
from .queries import Query, Sampling, continuations, free_generations, recordings
from .results import digest, kept_parts
from .truth import FloatArray, GroundTruth

logger = logging.getLogger(__name__)

SECONDS = 10.  # of every query; a continuation's prompt included
KEPT = 'kept'  # folder of what a command has finished


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run, opened.

    Args:
        title (str): As tables print it. run (Path): Its folder. musicgen: Its audiocraft `MusicGen`.
        catalogue (Catalogue): Its training songs. stores (list of FingerprintStore): Beside its checkpoints.
        tokenizer (Tokenizer): Of its codec, remembering codes.
        songs (list of Query): The beginnings of the songs that every store has a fingerprint of, in the catalogue's
            order, with the text that they are trained with.
        out (Path): Folder of the suite.
    """
    title: str
    run: Path
    musicgen: tp.Any
    catalogue: Catalogue
    stores: tp.List[FingerprintStore]
    tokenizer: Tokenizer
    songs: tp.List[Query]
    out: Path

    @property
    def ids(self) -> tp.List[str]:
        """Of the songs, in order."""
        return [song.id for song in self.songs]

    def frames(self, seconds: float) -> int:
        """So much music in frames."""
        return round(seconds * self.tokenizer.frame_rate)

    def methods(self) -> tp.List[Fingerprints]:
        """One per store, by its own recipe."""
        return [Fingerprints(self.musicgen, store.path, self.ids) for store in self.stores]

    def continued(self, prompt: 'Continued') -> tp.List[Query]:
        """A continuation of each song's beginning: made once.

        Raises:
            LuminaError: when the prompt is as long as a query, or longer than every song.
        """
        if not 0 < prompt.seconds < SECONDS:
            raise LuminaError(f"A prompt of {prompt.seconds:g} s leaves nothing to continue in queries of {SECONDS:g} "
                              "s; choose --seconds between them.")
        usable = [song for song in self.songs if song.codes.shape[-1] > self.frames(prompt.seconds)]
        songs = usable if prompt.count is None else spread(usable, prompt.count)
        facts = [dataclasses.asdict(prompt), [codes_hash(song.codes) for song in songs]]
        return self._generated('continuing', facts, lambda bar: continuations(
            self.musicgen.lm, songs, self.frames(prompt.seconds), self.frames(SECONDS), prompt.with_text,
            prompt.sampling, bar))

    def free(self, count: int, sampling: tp.Optional[Sampling] = None) -> tp.List[Query]:
        """Free generations: made once."""
        sampling = sampling or Sampling()
        return self._generated('generating', [dataclasses.asdict(sampling), count], lambda bar: free_generations(
            self.musicgen.lm, count, self.frames(SECONDS), sampling, bar))

    def _generated(self, label: str, facts: tp.Any, make: tp.Callable[[tp.Any], tp.List[Query]]) -> tp.List[Query]:
        """Queries of the model, from the file where they are kept, else made with a progress bar."""
        name = digest([label, state_hash(self.musicgen.lm.state_dict()), self.tokenizer.codec_hash, facts])
        path = self.out / KEPT / f'queries-{name}.safetensors'
        if path.is_file():
            return GroundTruth.load(path).queries
        queries = make(lambda batches: tqdm(batches, desc=f'{label}, {self.title}', unit='batch', dynamic_ncols=True))
        if queries:
            empty = torch.zeros(0, len(queries), 2, queries[0].codes.shape[0])
            GroundTruth(self.ids, queries, [], empty, empty.sum(0).long()).save(path)
        return queries


@dataclasses.dataclass(frozen=True)
class Continued:
    """How songs are continued: after so many seconds, with their own text or none, so many of them (all: None)."""
    seconds: float = 3.
    with_text: bool = True
    count: tp.Optional[int] = None
    sampling: Sampling = Sampling()


def open_run(source: tp.Union[str, Path], out: Path, title: tp.Optional[str] = None,
             device: tp.Optional[str] = None, songs: tp.Optional[int] = None) -> Opened:
    """Open a dora run and the stores beside it.

    Args:
        source (str or path): Its folder, or its signature below `out` or dora's folder. out (Path): Of the suite.
        title (str, optional): For tables. device (str, optional): cpu or cuda.
        songs (int, optional): Read no more of its songs than these, spread over the catalogue.
    Raises:
        LuminaError: when it is no run, has no store, or its songs cannot be found.
    """
    from ..catalogue_pass import run_songs
    from ..codec import codec_hash
    from ..models import load_musicgen, run_folder, run_stores
    run = run_folder(Path(out) / 'xps' / source) or run_folder(source)
    if run is None:
        raise LuminaError(f"{source} is no dora run; name the folder or the signature of a training.")
    stores = [FingerprintStore.open(path) for path in run_stores(run)]
    catalogue, musicgen = run_songs(run), load_musicgen(run, device)
    codec = musicgen.compression_model
    tokenizer = Tokenizer(codec, codec_hash(codec), SECONDS, cache=run / 'lumina' / 'codes')
    sounding = {track.id for track in catalogue}
    for store in stores:
        sounding &= {track.id for track in store.tracks if track.status == 'ok'}
    tracks = [track for track in catalogue if track.id in sounding]
    read = tracks if songs is None else spread(tracks, songs)
    return Opened(title or run.name, run, musicgen, catalogue, stores, tokenizer,
                  recordings(read, tokenizer, 'songs', round(SECONDS * tokenizer.frame_rate)), Path(out))


def open_stored(models: tp.Sequence[str], out: Path, device: tp.Optional[str] = None, by_heart: bool = False
                ) -> tp.Iterator[Opened]:
    """The runs to be measured, one after the other: those named, else those of the suite that are finished below `out`.

    Args:
        by_heart (bool): Without a name, train the suite's model that knows its songs by heart first if need be.
    Raises:
        LuminaError: when one has no store, or too few songs.
    """
    named: tp.List[tp.Tuple[tp.Optional[str], tp.Union[str, Path]]] = [(None, model) for model in models]
    for title, source in named or [(f'{name} ({run.name})', run) for name, run in suite_runs(out, by_heart).items()]:
        opened = open_run(source, out, title, device)
        if not opened.stores:
            raise LuminaError(f"Run {opened.run.name} has no fingerprints yet; make them with `lumina fingerprint "
                              f"{source}`.")
        if len(opened.songs) < 2:
            raise LuminaError(f"The stores of run {opened.run.name} have {len(opened.songs)} of its songs in common; "
                              "rankings need two: fingerprint the whole catalogue with `lumina fingerprint`.")
        yield opened


def suite_runs(out: Path, by_heart: bool = False) -> tp.Dict[str, Path]:
    """The suite's runs with fingerprints that are finished below a folder, by name.

    The one that knows its songs by heart is trained where that is asked for, or where there is none at all.
    """
    from .suite import build_songs, finished_run, memorised_run
    work = Path(out).absolute()
    runs = {'fine-tuned': finished_run(work), 'by heart': finished_run(work, 'validation_memorised')}
    if runs['by heart'] is None and (by_heart or runs['fine-tuned'] is None):
        logger.info("Training the suite's model that knows its songs by heart; name a run of your own by --model.")
        runs['by heart'] = memorised_run(work, build_songs(work))
    return {name: run for name, run in runs.items() if run is not None}


def open_others(sources: tp.Sequence[str], out: Path, songs: int, device: tp.Optional[str] = None) -> tp.List[Opened]:
    """Runs that were trained on other songs, with so many of them each: those named, else the suite's two.

    These are the pretrained one, by whose generations gates are set, where it is finished, and one that sets no gate,
    which is trained where the suite's songs are there and it is not.
    """
    if sources:
        return [open_run(source, out, None, device, songs) for source in sources]
    from .suite import finished_run, other_run
    work = Path(out).absolute()
    runs = {'pretrained': finished_run(work, 'validation_pretraining')}
    if runs['pretrained'] is None:
        logger.warning("There is no pretrained run below %s and none is named by --other: recordings alone are asked.",
                       out)
        return []
    runs['another'] = other_run(work, work / 'songs')
    return [open_run(run, out, f'{name} ({run.name})', device, songs) for name, run in runs.items() if run is not None]


def suite_strangers(out: Path) -> Path:
    """Manifest of the suite's recordings that owe nobody.

    Raises:
        LuminaError: when it is not there.
    """
    path = Path(out) / 'songs' / 'egs' / 'strangers' / 'data.jsonl'
    if not path.is_file():
        raise LuminaError(f"{path} is not there; make the suite's songs with `lumina validate ground-truth`, or name "
                          "recordings that owe nobody by --strangers.")
    return path


def open_truth(out: Path, model: tp.Optional[str] = None, truth: tp.Optional[Path] = None,
               device: tp.Optional[str] = None) -> tp.Tuple[GroundTruth, Opened]:
    """A ground truth and the run that it was made of.

    Args:
        out (Path): Of the suite. model (str, optional): The run, else the one that the truth names.
        truth (Path, optional): File of the truth, else the one below `out`.
    Raises:
        LuminaError: when one of them is missing, or they do not belong together.
    """
    found = GroundTruth.load(truth or Path(out) / 'truth' / 'ground_truth.safetensors')
    name = found.facts['run']
    if model is None and not (Path(out) / 'xps' / name).is_dir():
        raise LuminaError(f"The run {name} of this ground truth is not below {out}; make it with `lumina validate "
                          "ground-truth`, or name it by --model.")
    opened = open_run(model or name, out, None, device, songs=0)  # the truth has them already
    if opened.catalogue.hash != found.facts['catalogue']:
        raise LuminaError(f"Run {opened.run.name} was trained on other songs than those of the ground truth; name the "
                          "run that it was made of by --model.")
    if not opened.stores:
        raise LuminaError(f"Run {opened.run.name} has no fingerprints yet; make them with `lumina fingerprint "
                          f"{opened.run}`.")
    return found, opened


def kept_scores(method: Method, queries: tp.Sequence[Query], masked: bool, opened: Opened) -> tp.Dict[str, FloatArray]:
    """A method's scores [Q, N] by channel; those of fingerprints are kept as they are made."""
    if not isinstance(method, Fingerprints):
        return method.scores(queries, masked)
    attributor = method.attributor
    facts = ['scores', attributor.store.hash, attributor.recipe.hash, method.songs, masked, query_facts(queries)]
    return kept_parts(opened.out / KEPT, facts, queries, lambda some: method.scores(some, masked),
                      f"{method.name}, {opened.title}{', prompt masked' if masked else ''}")


def query_facts(queries: tp.Sequence[Query]) -> tp.List[tp.Any]:
    """All that a score depends on."""
    return [[query.id, codes_hash(query.codes), query.prompt_frames, query.text] for query in queries]
