"""What the command line and the demo do with a model and a store: generate, attribute, fingerprint; files come out."""

import contextlib
import dataclasses
import logging
import math
import re
import typing as tp
from pathlib import Path

import torch
from tqdm import tqdm

from . import audio, compat
from .attribution import Attributor
from .errors import LuminaError
from .models import expect_model, licence_note, load_musicgen, run_config, run_folder, run_key, run_paths, run_stores
from .recipe import Recipe, get_recipe, recipe_from_dict
from .report.schema import AttributionReport
from .store import CheckpointInfo, FingerprintStore

if tp.TYPE_CHECKING:
    from .catalogue import Catalogue

logger = logging.getLogger(__name__)

AUDIO_NAME, JSON_NAME, HTML_NAME = 'audio.wav', 'report.json', 'report.html'
SILENT_CLIP = ("The clip is silent: it never rises above {level:g} dBFS. The numbers compare its tokens and say "
               "nothing about music that could be heard.")
MADE_HERE = ("This recording is the generation '{name}', whose own tokens were attributed when it was made: see the "
             "report.json beside it. Encoded anew, as here, it has other codes; that report is the better evidence.")


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
                 top_k: int = 250, temperature: float = 1., cfg_coef: float = 3., progress: bool = True,
                 melody: tp.Optional[tp.Union[str, Path]] = None) -> tp.List[Clip]:
        """Generate `count` clips with attributions attached and write each into `<out>/<name>[-i]/`.

        Args:
            out (path): Folder. name (str): Of the clips. text (str, optional): Description.
            prompt (Prompt, optional): What to continue. seconds (float): Length, prompt included.
            count (int): Clips. seed (int): Of the sampling. top_k, temperature, cfg_coef: As in MusicGen.
            progress (bool): Show a progress bar.
            melody (path, optional): Recording whose melody to follow, for a model with a chroma condition.
        Raises:
            LuminaError: for a prompt or melody that cannot be read or used, a length, name or seed that cannot be, or
                a folder that cannot be written.
        """
        self._expect_possible(name, seconds, count, seed)
        if melody is not None and prompt is not None:
            raise LuminaError("A clip either continues a recording or follows a melody; leave one of the two out.")
        wav = self._prompt(prompt, seconds) if prompt is not None else None
        tune = self._melody(melody) if melody is not None else None
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
            elif tune is not None:
                waves = self.musicgen.generate_with_chroma([text] * count, [tune] * count, self.musicgen.sample_rate,
                                                           progress=progress)
            elif text is not None:
                waves = self.musicgen.generate([text] * count, progress=progress)
            else:
                waves = self.musicgen.generate_unconditional(count, progress=progress)
        names = [name] if count == 1 else [f'{name}-{index + 1}' for index in range(count)]
        return [write_clip(folder / one, wave, self.musicgen.sample_rate, report, one)
                for one, wave, report in zip(names, waves, self.musicgen.last_attributions, strict=True)]

    def attribute(self, path: tp.Union[str, Path], out: tp.Optional[tp.Union[str, Path]] = None) -> AttributionReport:
        """Attribute a recording; with `out`, write `report.json` and `report.html` there.

        Raises:
            LuminaError: for a folder that cannot be written (told first), or a recording that cannot be read or is
                silent.
        """
        folder = _writable(Path(out)) if out is not None else None
        report = self.attributor.attribute_file(path)
        made = _generation_of(Path(path), report.query.sha256)
        if made is not None:
            report = report.model_copy(update={'warnings': [MADE_HERE.format(name=made), *report.warnings]})
        if folder is not None:
            from .report.render import render_html
            report.save(folder / JSON_NAME)
            render_html(report, audio_path=Path(path), out_path=folder / HTML_NAME)
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


def write_clip(folder: Path, wave: torch.Tensor, sample_rate: int, report: AttributionReport, name: str) -> Clip:
    """Write a generated waveform [C, T] and its report side by side; the report gets the audio's hash.

    Attributions are of tokens, and tokens of silence have gradients, too: that a clip cannot be heard is only seen here
    and becomes a warning.
    """
    from .report.render import render_html
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / AUDIO_NAME
    peak = wave.abs().max().clamp(min=1.)  # a codec may overshoot full scale
    wave = (wave / peak).cpu()
    audio.save_audio(path, wave, sample_rate)
    level = float(tp.cast(float, report.recipe.keys['silence_db']))
    warnings = [SILENT_CLIP.format(level=level)] if audio.silent(wave, level) else []
    query = report.query.model_copy(update={'id': name, 'sha256': audio.file_sha256(path), 'audio_file': AUDIO_NAME})
    report = report.model_copy(update={'query': query, 'warnings': [*warnings, *report.warnings]})
    report.save(folder / JSON_NAME)
    render_html(report, audio_path=path, out_path=folder / HTML_NAME)
    return Clip(folder, report)


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


def recipe_for(source: tp.Union[str, Path], name: str = 'default', settings: tp.Sequence[str] = ()) -> Recipe:
    """The recipe that a model is fingerprinted with.

    Args:
        source (str or path): As in `load_musicgen`. A dora run's own `fingerprint.recipe.*` apply to the presets that
            it trained with (`fingerprint.recipes`), and to no other.
        name (str): Preset.
        settings (sequence of str): `KEY=VALUE` with dotted keys and YAML values, e.g. `projection.dim=256`; they
            come after the run's own keys. An empty value is null.
    Raises:
        LuminaError: for an unknown preset or key, or a value out of range.
    """
    folder, recipe = run_folder(source), get_recipe(name)
    if folder is not None and run_key(folder, 'fingerprint.recipe') and name in run_config(folder).fingerprint.recipes:
        from .train import recipes_of
        cfg = run_config(folder)
        cfg.fingerprint.recipes = [name]
        recipe = recipes_of(cfg)[0]
    keys = recipe.model_dump(mode='json')
    for setting in settings:
        _set(keys, setting)
    recipe = recipe_from_dict(keys)
    if not re.fullmatch(r'\w[\w.-]*', recipe.name) or recipe.name == 'codes':  # codes lie in a folder beside the stores
        raise LuminaError(f"'{recipe.name}' cannot be a recipe's name, which becomes a folder's; choose another of "
                          "letters, digits, '.', '_' and '-'.")
    return recipe


def _set(keys: tp.Dict[str, tp.Any], setting: str) -> None:
    """Put one `KEY=VALUE` into a recipe's keys. In place."""
    import yaml
    dotted, equals, text = setting.partition('=')
    *sections, last = dotted.strip().split('.')
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value, equals = None, ''
    if not equals or not last:
        raise LuminaError(f"'{setting}' is not KEY=VALUE with a dotted key and a YAML value, such as "
                          "projection.dim=256; correct it.")
    for section in sections:
        inner = keys.setdefault(section, {})
        if not isinstance(inner, dict):
            raise LuminaError(f"Recipe key '{section}' of '{setting}' has no keys below it; see "
                              "config/solver/lumina/default.yaml for all keys.")
        keys = inner
    joined = isinstance(value, dict) and isinstance(keys.get(last), dict) and last != 'channels'
    keys[last] = {**keys[last], **value} if joined else value


def fingerprint_model(source: tp.Union[str, Path], catalogue: tp.Optional[tp.Union[str, Path]] = None,
                      out: tp.Optional[tp.Union[str, Path]] = None, recipe: tp.Optional[Recipe] = None,
                      strict: bool = False, device: tp.Optional[str] = None, batch_size: int = 8,
                      update: bool = False) -> FingerprintStore:
    """Fingerprint a catalogue with a trained model, outside of any training.

    For a dora run, every checkpoint whose weights an earlier pass kept is used (the last alone where the recipe says
    so); catalogue, recipe and output folder default to the run's own. Any other model has one checkpoint, its live
    weights.

    Raises:
        LuminaError: when something needed is missing or does not fit an existing store.
    """
    compat.install()
    from .catalogue import Catalogue
    from .codec import codec_hash
    from .fingerprint import Fingerprinter
    from .passes import estimate, make_identity, open_or_create, prepare, run_pass, store_path
    from .tokens import Tokenizer
    expect_model(source)
    folder = run_folder(source)
    if folder is None and (catalogue is None or out is None):
        raise LuminaError(f"{source} is not a dora run, so name both the songs (--catalogue) and the folder of "
                          "the new store (--out).")
    recipe = recipe or recipe_for(source)
    path = Path(out) if out is not None else store_path(tp.cast(Path, folder), recipe.name)
    _expect_recipe(path, recipe)
    songs = Catalogue.from_manifest(catalogue) if catalogue is not None else _run_songs(tp.cast(Path, folder))
    musicgen = load_musicgen(source, device)
    digest = codec_hash(musicgen.compression_model)
    known = _trained_on(folder) if folder is not None else None
    identity = make_identity(musicgen.name, musicgen.lm, digest, recipe, songs, known, licence_note(str(source)))
    if FingerprintStore.exists(path):  # told before every song is encoded, not after
        FingerprintStore.open(path).expect(codec_hash=digest, model_config_hash=identity.model_config_hash)
    cache = (folder / 'lumina' if folder is not None else _writable(path)) / 'codes'
    tokenizer = Tokenizer(musicgen.compression_model, digest, recipe.chunk_seconds, recipe.silence_db, cache=cache)
    _writable(path)
    prepared = prepare(songs, tokenizer, musicgen.lm, strict, recipe.song_phases)
    store = open_or_create(path, identity, prepared, update)
    for info, weights in _checkpoints(folder, recipe, musicgen):
        fingerprinter = Fingerprinter(musicgen.lm, recipe, weights, batch_size=batch_size)
        logger.info("%s: %s", info.name, estimate(prepared, fingerprinter))
        run_pass(fingerprinter, prepared, store, info, weights)
    return FingerprintStore.open(path)


def _expect_recipe(path: Path, recipe: Recipe) -> None:
    """A store keeps the recipe that it was made with: refuse another's fingerprints, tell of another's scoring."""
    if not FingerprintStore.exists(path):
        return
    identity = FingerprintStore.open(path).identity
    before, now = recipe_from_dict(identity.recipe).describe(), recipe.describe()
    differing = [key for key in now if key != 'name' and now[key] != before.get(key)]
    if identity.recipe_hash != recipe.fingerprint_hash:
        made = ', '.join(f"{key} {now[key]} instead of {before.get(key)}" for key in differing
                         if key.partition('.')[0] in recipe.fingerprint_keys)
        raise LuminaError(f"The store {path} was made with another recipe ({made}); give this one a name of its own "
                          "(--set name=…) or another folder (--out).")
    if differing:
        logger.warning("The store %s keeps the %s that it was made with; to have others, make another store by "
                       "--set name=… or --out.", path, ', '.join(differing))


def _run_songs(folder: Path) -> 'Catalogue':
    """The songs that a run fingerprints, wherever its configuration leads by now.

    The songs that it was trained on are known by their hash where the run has a store; no others stand in for them.
    """
    from .catalogue import Catalogue
    key = 'fingerprint.catalogue' if run_key(folder, 'fingerprint.catalogue') else 'datasource.train'
    named, found = run_key(folder, key), _manifests(folder, key)
    if not found:
        raise LuminaError(f"The songs of run {folder.name} are not where its configuration has them ({key}: "
                          f"{named or 'empty'}); name their manifest by --catalogue.")
    hashes = [store.identity.trained_on_hash for store in map(FingerprintStore.open, run_stores(folder))]
    expected = next(filter(None, hashes), None) if key == 'datasource.train' else None
    for path in found:
        songs = Catalogue.from_manifest(path)
        if expected in (None, songs.hash):
            return songs
    raise LuminaError(f"The songs in {found[0]} ({key}) are not those that run {folder.name} was trained on (catalogue "
                      f"{Catalogue.from_manifest(found[0]).hash[:12]}, its store says {str(expected)[:12]}); name the "
                      "right manifest by --catalogue.")


def _manifests(folder: Path, key: str) -> tp.List[Path]:
    """Whatever lies where a run's configuration may mean, likeliest first.

    The quickstart tells a run by the environment where its songs are, which the configuration does not keep: they are
    in `embedded` below dora's folder.
    """
    named, base = run_key(folder, key), run_key(folder, 'lumina.catalogue')
    if not named:
        return []
    places = run_paths(folder, named)
    if base and Path(named).is_relative_to(base):
        places.append(folder.resolve().parent.parent / 'embedded' / Path(named).relative_to(base))
    return [path for path in places if path.exists()]


def _trained_on(folder: Path) -> tp.Optional[str]:
    """Hash of the songs that a run was trained on: as its stores have it, else of what its configuration names."""
    from .catalogue import Catalogue
    for path in run_stores(folder):
        known = FingerprintStore.open(path).identity.trained_on_hash
        if known is not None:
            return known
    found = _manifests(folder, 'datasource.train')
    return Catalogue.from_manifest(found[0]).hash if found else None


def _checkpoints(folder: tp.Optional[Path], recipe: Recipe, musicgen: tp.Any
                 ) -> tp.List[tp.Tuple[CheckpointInfo, tp.Optional[tp.Mapping[str, torch.Tensor]]]]:
    """Checkpoints of a model with their weights; those of a run that an earlier pass kept, else the live one."""
    from .hashing import state_hash
    for path in run_stores(folder) if folder is not None else []:
        store = FingerprintStore.open(path)
        kept = [info for info in store.checkpoints if info.weights is not None]  # finished or not: this finishes them
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
