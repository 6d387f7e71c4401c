"""What the command line and the demo do with a model and a store: generate and attribute; files come out."""

import contextlib
import dataclasses
import logging
import math
import typing as tp
from pathlib import Path

import torch
from tqdm import tqdm

from . import audio
from .atomic import writable_folder
from .attribution import Attributor
from .checkpoints import find_checkpoint
from .errors import LuminaError
from .hashing import model_config_hash
from .models import expect_model, load_musicgen, run_config, run_folder, run_stores
from .provenance import Signing, attribution_of, content_sha256, write_tags
from .recipe import Recipe
from .report.schema import AttributionReport
from .store import FingerprintStore

logger = logging.getLogger(__name__)

Progress = tp.Union[bool, tp.Callable[[int, int], None]]

JSON_NAME, HTML_NAME, CSV_NAME = 'report.json', 'report.html', 'report.csv'
SILENT_CLIP = ("The clip is silent: it never rises above {level:g} dBFS. The numbers compare its tokens and say "
               "nothing about music that could be heard.")
MADE_HERE = ("This recording is the generation '{name}', whose own tokens were attributed when it was made: see the "
             "report.json beside it. Encoded anew, as here, it has other codes; that report is the better evidence.")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One attributed piece of audio on disk, in a folder of its own: the audio, its sidecar, and `report.json`, `.html`
    and `.csv`."""
    folder: Path
    report: AttributionReport
    audio: Path


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
        checkpoint (str, optional): Have the weights of an earlier one, as `find_checkpoint` names it; the last, or
            those of `source`, unless said. Queries are then compared at the checkpoints up to it.
    Raises:
        LuminaError: when the model, its store or the checkpoint is missing or they do not belong together.
    """

    def __init__(self, source: tp.Union[str, Path], store: tp.Optional[tp.Union[str, Path]] = None,
                 recipe: tp.Optional[Recipe] = None, device: tp.Optional[str] = None,
                 checkpoint: tp.Optional[str] = None):
        from .musicgen import attach
        path = Path(store) if store is not None else default_store(source)
        opened = FingerprintStore.open(path)
        chosen = None if checkpoint is None else find_checkpoint(opened, checkpoint)
        self.musicgen = load_musicgen(source, device)
        self.checkpoint = None if chosen is None else chosen.name
        if chosen is not None:
            opened.expect(model_config_hash=model_config_hash(self.musicgen.lm))
            self.musicgen.lm.load_state_dict(opened.load_weights(chosen))
        self.attachment = attach(self.musicgen, opened, recipe=recipe, checkpoint=self.checkpoint)

    @property
    def attributor(self) -> Attributor:
        return self.attachment.attributor

    @property
    def store(self) -> FingerprintStore:
        return self.attributor.store

    def generate(self, out: tp.Union[str, Path], name: str = 'clip', text: tp.Optional[str] = None,
                 prompt: tp.Optional[Prompt] = None, seconds: float = 10., count: int = 1, seed: int = 0,
                 top_k: int = 250, temperature: float = 1., cfg_coef: float = 3., progress: Progress = True,
                 melody: tp.Optional[tp.Union[str, Path]] = None, kind: str = 'wav',
                 signing: tp.Optional[Signing] = None) -> tp.List[Clip]:
        """Generate `count` clips with attributions attached and write each into `<out>/<name>[-i]/`.

        Args:
            out (path): Folder. name (str): Of the clips. text (str, optional): Description.
            prompt (Prompt, optional): What to continue. seconds (float): Length, prompt included.
            count (int): Clips. seed (int): Of the sampling. top_k, temperature, cfg_coef: As in MusicGen.
            progress (bool or callable): Show a progress bar; or call this with (done, all) steps, and where it raises,
                stop.
            melody (path, optional): Recording whose melody to follow, for a model with a chroma condition.
            kind (str): wav, flac, mp3 or ogg. signing (Signing, optional): Who signs the clips, by C2PA.
        Raises:
            LuminaError: for a prompt or melody that cannot be read or used, a length, name or seed that cannot be, or
                a folder that cannot be written.
        """
        self._expect_possible(name, seconds, count, seed)
        if melody is not None and prompt is not None:
            raise LuminaError("A clip either continues a recording or follows a melody; leave one of the two out.")
        wav = self._prompt(prompt, seconds) if prompt is not None else None
        tune = self._melody(melody) if melody is not None else None
        folder = writable_folder(Path(out))
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
                                                            [text] * count, progress=bool(progress))
            elif tune is not None:
                waves = self.musicgen.generate_with_chroma([text] * count, [tune] * count, self.musicgen.sample_rate,
                                                           progress=bool(progress))
            elif text is not None:
                waves = self.musicgen.generate([text] * count, progress=bool(progress))
            else:
                waves = self.musicgen.generate_unconditional(count, progress=bool(progress))
        names = [name] if count == 1 else [f'{name}-{index + 1}' for index in range(count)]
        return [write_clip(folder / one, wave, self.musicgen.sample_rate, report, one, kind, signing)
                for one, wave, report in zip(names, waves, self.musicgen.last_attributions, strict=True)]

    def attribute(self, path: tp.Union[str, Path], out: tp.Optional[tp.Union[str, Path]] = None) -> AttributionReport:
        """Attribute a recording; with `out`, write `report.json`, `.html` and `.csv` there.

        Raises:
            LuminaError: for a folder that cannot be written (told first), or a recording that cannot be read or is
                silent.
        """
        folder = writable_folder(Path(out)) if out is not None else None
        report = self.attributor.attribute_file(path)
        made = _generation_of(Path(path), report.query.sha256)
        if made is not None:
            report = report.model_copy(update={'warnings': [MADE_HERE.format(name=made), *report.warnings]})
        if folder is not None:
            write_report(folder, report, Path(path))
        return report

    def _expect_possible(self, name: str, seconds: float, count: int, seed: int) -> None:
        if not 1 <= seconds * self.musicgen.frame_rate < math.inf:
            raise LuminaError(f"A clip of {seconds:g} s cannot be generated; ask for at least one frame of the codec, "
                              f"{1 / self.musicgen.frame_rate:g} s.")
        if count < 1:
            raise LuminaError(f"{count} clips cannot be generated; ask for at least 1.")
        if not -2 ** 63 <= seed < 2 ** 63:
            raise LuminaError(f"The seed {seed} has more than 64 bits; choose a smaller one.")
        if name in ('', '.', '..') or Path(name).name != name:
            raise LuminaError(f"'{name}' cannot be the name of a clip's folder; leave out slashes and say where by the "
                              "output folder.")

    def _melody(self, path: tp.Union[str, Path]) -> torch.Tensor:
        """The waveform whose melody is to be followed, [C, T]."""
        if 'self_wav' not in self.musicgen.lm.condition_provider.conditioners:
            raise LuminaError(f"{self.musicgen.name} has no melody condition (self_wav), so that it cannot follow "
                              f"{path}; use a melody model such as facebook/musicgen-melody, or continue the "
                              "recording instead.")
        wav = audio.load_audio(path, self.musicgen.sample_rate, self.musicgen.audio_channels)
        self._expect_sound(wav, f"The melody from {path}")
        return wav

    def _expect_sound(self, wav: torch.Tensor, what: str) -> None:
        level = self.attributor.recipe.silence_db
        if audio.silent(wav, level):
            raise LuminaError(f"{what} is silent (below {level:g} dBFS); choose a recording, or a part of it, with "
                              "sound.")

    def _prompt(self, prompt: Prompt, seconds: float) -> torch.Tensor:
        """The prompt's waveform, [1, C, T]."""
        rate = self.musicgen.sample_rate
        wav = audio.load_audio(prompt.path, rate, self.musicgen.audio_channels)
        first = int(prompt.offset * rate)
        if first >= wav.shape[-1]:
            raise LuminaError(f"{prompt.path} ends after {wav.shape[-1] / rate:.1f} s, so that no prompt begins at "
                              f"{prompt.offset:g} s; choose an earlier offset.")
        piece = wav[..., first:first + int(prompt.seconds * rate)]
        length = piece.shape[-1] / rate
        if length <= 0 or length >= min(seconds, self.musicgen.max_duration):
            raise LuminaError(f"The prompt from {prompt.path} is {length:.1f} s long, which must be more than 0 and "
                              f"less than the {min(seconds, self.musicgen.max_duration):g} s that are generated at "
                              "once; change its length or where it begins.")
        self._expect_sound(piece, f"The prompt from {prompt.path}")
        return piece[None]


def write_clip(folder: Path, wave: torch.Tensor, sample_rate: int, report: AttributionReport, name: str,
               kind: str = 'wav', signing: tp.Optional[Signing] = None) -> Clip:
    """Write a generated waveform [C, T] with its attribution: in its tags, in a sidecar, and as a report in all forms.

    Attributions are of tokens, and tokens of silence have gradients, too: that a clip cannot be heard is only seen here
    and becomes a warning. The report is written last, so that where it is, all is.

    Args:
        kind (str): wav, flac, mp3 or ogg. signing (Signing, optional): Who signs it, by C2PA.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'audio.{kind}'
    peak = wave.abs().max().clamp(min=1.)  # a codec may overshoot full scale
    wave = (wave / peak).cpu()
    audio.save_audio(path, wave, sample_rate)
    level = float(tp.cast(float, report.recipe.keys['silence_db']))
    warnings = [SILENT_CLIP.format(level=level)] if audio.silent(wave, level) else []
    query = report.query.model_copy(update={'id': name, 'sha256': None, 'audio_file': path.name})
    report = report.model_copy(update={'query': query, 'warnings': [*warnings, *report.warnings]})
    report = carry(path, report, signing)
    write_report(folder, report, path)
    return Clip(folder, report, path)


def carry(path: Path, report: AttributionReport, signing: tp.Optional[Signing] = None) -> AttributionReport:
    """Put a report's attribution into an audio file's tags, and a signed manifest, and beside it; the report with the
    hash that the file has then. The report's own hash, which the tags hold, leaves that one out."""
    attribution = attribution_of(report, content_sha256(path))
    write_tags(path, attribution)
    if signing is not None:
        signing.sign(path, attribution)
    attribution.save_beside(path)
    query = report.query.model_copy(update={'sha256': audio.file_sha256(path)})
    return report.model_copy(update={'query': query})


def write_report(folder: Path, report: AttributionReport, audio_path: tp.Optional[Path]) -> None:
    """`report.html`, `report.csv` and, last, `report.json`."""
    from .report.render import render_html, to_csv
    render_html(report, audio_path=audio_path, out_path=folder / HTML_NAME)
    to_csv(report, folder / CSV_NAME)
    report.save(folder / JSON_NAME)


def _generation_of(path: Path, sha256: tp.Optional[str]) -> tp.Optional[str]:
    """Name of the generation whose audio this very file is, by the report beside it; None for any other file."""
    beside = path.parent / JSON_NAME
    if not beside.is_file():
        return None
    try:
        query = AttributionReport.load(beside).query
    except LuminaError:
        return None
    return query.id if query.kind != 'file' and query.sha256 == sha256 else None


def default_store(source: tp.Union[str, Path]) -> Path:
    """The store beside a run's checkpoints.

    Raises:
        LuminaError: when there is none, or the model is no dora run.
    """
    folder = run_folder(source)
    if folder is None:
        expect_model(source)
        raise LuminaError(f"{source} is not a dora run, so its store must be named; make one with `lumina "
                          f"fingerprint {source} --catalogue … --out STORE` and pass --store STORE.")
    stores = run_stores(folder)
    if not stores:
        raise LuminaError(f"Run {folder.name} has no fingerprints yet; make them with `lumina fingerprint {source}`.")
    return stores[0]


@contextlib.contextmanager
def _generation_bar(musicgen: tp.Any, name: str, shown: Progress) -> tp.Iterator[None]:
    """A progress bar in place of the counter that MusicGen prints."""
    if not shown:
        yield
        return
    before = musicgen._progress_callback
    if callable(shown):
        musicgen.set_custom_progress_callback(shown)
        try:
            yield
        finally:
            musicgen.set_custom_progress_callback(before)
        return
    with tqdm(desc=f'generating {name}', unit='step', dynamic_ncols=True, delay=1) as bar:
        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
        musicgen.set_custom_progress_callback(update)
        try:
            yield
        finally:
            musicgen.set_custom_progress_callback(before)


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
