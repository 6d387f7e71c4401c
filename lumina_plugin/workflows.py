"""What the command line and the demo do with a model and a store: generate, attribute, fingerprint; files come out."""

import contextlib
import dataclasses
import logging
import typing as tp
from pathlib import Path

import torch
from tqdm import tqdm

from . import audio, compat
from .attribution import Attributor
from .errors import LuminaError
from .models import licence_note, load_musicgen, run_config, run_folder, run_stores
from .recipe import Recipe, get_recipe
from .report.schema import AttributionReport
from .store import CheckpointInfo, FingerprintStore

logger = logging.getLogger(__name__)

AUDIO_NAME, JSON_NAME, HTML_NAME = 'audio.wav', 'report.json', 'report.html'


@dataclasses.dataclass(frozen=True)
class Clip:
    """One attributed piece of audio on disk: `audio.wav`, `report.json` and `report.html` in a folder of its own."""
    folder: Path
    report: AttributionReport

    @property
    def audio(self) -> Path:
        return self.folder / AUDIO_NAME


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The beginning of a recording that a generation continues.

    Args:
        path (Path): The recording. seconds (float): How much of it.
        song_id (str, optional): Its id where it is a song of the store.
        offset (float): Seconds into the recording where the prompt begins.
    """
    path: Path
    seconds: float = 3.
    song_id: tp.Optional[str] = None
    offset: float = 0.


class Studio:
    """A model with its store, loaded once.

    Args:
        source (str or path): What `load_musicgen` takes.
        store (path, optional): Fingerprint store; the run's own unless said.
        recipe (Recipe, optional): Other scoring than the store's own.
        device (str, optional): cpu or cuda.
    Raises:
        LuminaError: when the model or its store is missing or they do not belong together.
    """

    def __init__(self, source: tp.Union[str, Path], store: tp.Optional[tp.Union[str, Path]] = None,
                 recipe: tp.Optional[Recipe] = None, device: tp.Optional[str] = None):
        from .musicgen import attach
        path = Path(store) if store is not None else default_store(source)
        opened = FingerprintStore.open(path)
        self.musicgen = load_musicgen(source, device)
        self.attachment = attach(self.musicgen, opened, recipe=recipe)

    @property
    def attributor(self) -> Attributor:
        return self.attachment.attributor

    @property
    def store(self) -> FingerprintStore:
        return self.attributor.store

    def generate(self, out: tp.Union[str, Path], name: str = 'clip', text: tp.Optional[str] = None,
                 prompt: tp.Optional[Prompt] = None, seconds: float = 10., count: int = 1, seed: int = 0,
                 top_k: int = 250, temperature: float = 1., cfg_coef: float = 3., progress: bool = True
                 ) -> tp.List[Clip]:
        """Generate `count` clips with attributions attached and write each into `<out>/<name>[-i]/`.

        Args:
            out (path): Folder. name (str): Of the clips. text (str, optional): Description.
            prompt (Prompt, optional): What to continue. seconds (float): Length, prompt included.
            count (int): Clips. seed (int): Of the sampling. top_k, temperature, cfg_coef: As in MusicGen.
            progress (bool): Show a progress bar.
        Raises:
            LuminaError: for a prompt that cannot be read or is not shorter than the clip, or a folder that cannot be
                written.
        """
        if not seconds > 0:
            raise LuminaError(f"A clip of {seconds:g} s cannot be generated; ask for more than 0 seconds.")
        wav = self._prompt(prompt, seconds) if prompt is not None else None
        folder = _writable(Path(out))
        # half a frame more: audiocraft rounds down in places, and would stitch windows of no length for some durations
        frames = max(1, round(seconds * self.musicgen.frame_rate))
        self.musicgen.set_generation_params(
            duration=(frames + 0.5) / self.musicgen.frame_rate if seconds > self.musicgen.max_duration else seconds,
            top_k=min(top_k, self.musicgen.lm.card), temperature=temperature, cfg_coef=cfg_coef,
            extend_stride=self.musicgen.extend_stride)
        self.attachment.seed = seed
        self.attachment.prompt_song_id = prompt.song_id if prompt is not None else None
        torch.manual_seed(seed)
        with _generation_bar(self.musicgen, name, progress):
            if wav is not None:
                waves = self.musicgen.generate_continuation(wav.expand(count, -1, -1), self.musicgen.sample_rate,
                                                            [text] * count, progress=progress)
            elif text is not None:
                waves = self.musicgen.generate([text] * count, progress=progress)
            else:
                waves = self.musicgen.generate_unconditional(count, progress=progress)
        names = [name] if count == 1 else [f'{name}-{index + 1}' for index in range(count)]
        return [write_clip(folder / one, wave, self.musicgen.sample_rate, report, one)
                for one, wave, report in zip(names, waves, self.musicgen.last_attributions, strict=True)]

    def attribute(self, path: tp.Union[str, Path], out: tp.Optional[tp.Union[str, Path]] = None) -> AttributionReport:
        """Attribute a recording; with `out`, write `report.json` and `report.html` there."""
        report = self.attributor.attribute_file(path)
        if out is not None:
            from .report.render import render_html
            folder = _writable(Path(out))
            report.save(folder / JSON_NAME)
            render_html(report, audio_path=Path(path), out_path=folder / HTML_NAME)
        return report

    def _prompt(self, prompt: Prompt, seconds: float) -> torch.Tensor:
        """The prompt's waveform, [1, C, T]."""
        rate = self.musicgen.sample_rate
        wav = audio.load_audio(prompt.path, rate, self.musicgen.audio_channels)
        first = int(prompt.offset * rate)
        piece = wav[..., first:first + int(prompt.seconds * rate)]
        length = piece.shape[-1] / rate
        if length <= 0 or length >= min(seconds, self.musicgen.max_duration):
            raise LuminaError(f"The prompt from {prompt.path} is {length:.1f} s long, which must be more than 0 and "
                              f"less than the {min(seconds, self.musicgen.max_duration):g} s that are generated at "
                              "once; change its length.")
        return piece[None]


def write_clip(folder: Path, wave: torch.Tensor, sample_rate: int, report: AttributionReport, name: str) -> Clip:
    """Write a generated waveform [C, T] and its report side by side; the report gets the audio's hash."""
    from .report.render import render_html
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / AUDIO_NAME
    peak = wave.abs().max().clamp(min=1.)  # a codec may overshoot full scale
    audio.save_audio(path, (wave / peak).cpu(), sample_rate)
    query = report.query.model_copy(update={'id': name, 'sha256': audio.file_sha256(path), 'audio_file': AUDIO_NAME})
    report = report.model_copy(update={'query': query})
    report.save(folder / JSON_NAME)
    render_html(report, audio_path=path, out_path=folder / HTML_NAME)
    return Clip(folder, report)


def default_store(source: tp.Union[str, Path]) -> Path:
    """The store beside a run's checkpoints.

    Raises:
        LuminaError: when there is none, or the model is no dora run.
    """
    folder = run_folder(source)
    if folder is None:
        raise LuminaError(f"{source} is not a dora run, so its store must be named; make one with `lumina "
                          f"fingerprint {source} --catalogue … --out STORE` and pass --store STORE.")
    stores = run_stores(folder)
    if not stores:
        raise LuminaError(f"Run {folder.name} has no fingerprints yet; make them with `lumina fingerprint {source}`.")
    return stores[0]


def fingerprint_model(source: tp.Union[str, Path], catalogue: tp.Optional[tp.Union[str, Path]] = None,
                      out: tp.Optional[tp.Union[str, Path]] = None, recipe: tp.Optional[Recipe] = None,
                      strict: bool = False, device: tp.Optional[str] = None, batch_size: int = 8) -> FingerprintStore:
    """Fingerprint a catalogue with a trained model, outside of any training.

    For a dora run, every checkpoint whose weights an earlier pass kept is used (the last alone where the recipe says
    so); catalogue and output folder default to the run's own. Any other model has one checkpoint, its live weights.

    Raises:
        LuminaError: when something needed is missing or does not fit an existing store.
    """
    compat.install()
    from .catalogue import Catalogue
    from .codec import codec_hash
    from .fingerprint import Fingerprinter
    from .passes import estimate, make_identity, open_or_create, prepare, run_pass, store_path
    from .tokens import Tokenizer
    recipe = recipe or get_recipe('default')
    folder = run_folder(source)
    if folder is None and (catalogue is None or out is None):
        raise LuminaError(f"{source} is not a dora run, so name both the songs (--catalogue) and the folder of "
                          "the new store (--out).")
    trained = run_config(folder).datasource.train if folder is not None else None
    songs = Catalogue.from_manifest(catalogue or tp.cast(str, trained))
    path = Path(out) if out is not None else store_path(tp.cast(Path, folder), recipe.name)
    musicgen = load_musicgen(source, device)
    digest = codec_hash(musicgen.compression_model)
    cache = (folder / 'lumina' if folder is not None else path) / 'codes'
    tokenizer = Tokenizer(musicgen.compression_model, digest, recipe.chunk_seconds, recipe.silence_db, cache=cache)
    prepared = prepare(songs, tokenizer, musicgen.lm, strict=strict)
    known = Catalogue.from_manifest(trained).hash if trained is not None and Path(trained).exists() else None
    identity = make_identity(musicgen.name, musicgen.lm, digest, recipe, songs, known, licence_note(str(source)))
    store = open_or_create(path, identity, prepared)
    for info, weights in _checkpoints(folder, recipe, musicgen):
        fingerprinter = Fingerprinter(musicgen.lm, recipe, weights, batch_size=batch_size)
        logger.info("%s: %s", info.name, estimate(prepared, fingerprinter))
        run_pass(fingerprinter, prepared, store, info, weights)
    return FingerprintStore.open(path)


def _checkpoints(folder: tp.Optional[Path], recipe: Recipe, musicgen: tp.Any
                 ) -> tp.List[tp.Tuple[CheckpointInfo, tp.Optional[tp.Mapping[str, torch.Tensor]]]]:
    """Checkpoints of a model with their weights; those of a run that an earlier pass kept, else the live one."""
    from .hashing import state_hash
    for path in run_stores(folder) if folder is not None else []:
        store = FingerprintStore.open(path)
        kept = [info for info in store.checkpoints if info.complete and info.weights is not None]
        if kept:
            return [(CheckpointInfo(name=info.name, epoch=info.epoch, model_hash=info.model_hash),
                     store.load_weights(info))
                    for info in (kept[-1:] if recipe.checkpoints == 'last' else kept)]
    live = dict(musicgen.lm.state_dict())
    return [(CheckpointInfo(name='last', model_hash=state_hash(live)), live if folder is not None else None)]


@contextlib.contextmanager
def _generation_bar(musicgen: tp.Any, name: str, shown: bool) -> tp.Iterator[None]:
    """A progress bar in place of the counter that MusicGen prints."""
    if not shown:
        yield
        return
    before = musicgen._progress_callback
    with tqdm(desc=f'generating {name}', unit='step', dynamic_ncols=True, delay=1) as bar:
        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
        musicgen.set_custom_progress_callback(update)
        try:
            yield
        finally:
            musicgen.set_custom_progress_callback(before)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / '.lumina-write-test'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LuminaError(f"Cannot write into {folder} ({error.strerror}); choose another output folder.") from None
    return folder


def quickstart_run(out: tp.Union[str, Path] = 'outputs') -> Path:
    """The run that `lumina quickstart` left below a folder, the latest if there are several.

    Raises:
        LuminaError: when there is none.
    """
    found = [path.parents[2] for path in Path(out).glob('xps/*/lumina/default/manifest.json')]
    runs = [run for run in found if run_config(run).get('continue_from') is None]  # not what was trained on from it
    if not runs:
        raise LuminaError(f"There is no fingerprinted run below {Path(out).resolve()}: name one with --model, or make "
                          "one with `lumina quickstart`.")
    return max(runs, key=lambda run: (run / 'lumina' / 'default' / 'manifest.json').stat().st_mtime)
