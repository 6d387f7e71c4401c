"""A generator, opened for unlearning: MusicGen or a latent diffusion transformer, with the songs of its training."""

import dataclasses
import typing as tp
from pathlib import Path

import torch
from torch import nn

from .. import compat
from ..errors import LuminaError
from ..validation.lds import HalfLosses
from .bench import Bench, DiffusionBench, MusicGenBench, of_diffusion
from .diffusion import DiffusionSubject
from .masks import Piece
from .musicgen import SECONDS, MusicGenSubject
from .subject import Subject

if tp.TYPE_CHECKING:
    from ..catalogue import Catalogue

OUT = Path('outputs/unlearning')
KEPT = 'kept-model'  # of models that are no runs, below OUT


def open_subject(source: tp.Union[str, Path], device: tp.Optional[str] = None,
                 checkpoint: tp.Optional[str] = None, catalogue: tp.Optional[tp.Union[str, Path]] = None,
                 out: tp.Union[str, Path] = OUT) -> Subject:
    """A generator with the songs that it was trained on.

    Args:
        source (str or path): Folder or signature of a dora run; with a catalogue also an exported MusicGen folder, a
            folder of a Stable Audio pipeline, or a hub's name of either.
        device (str, optional): cpu or cuda.
        checkpoint (str, optional): One whose weights the run's fingerprinting kept, e.g. epoch-0004; the last unless
            said.
        catalogue (str or path, optional): Manifest of those songs, or its folder; a run's own unless said.
        out (str or path): Of what is no run, Fisher information, losses and codes are kept in `kept-model/HASH` of this
            folder; those of a run in the run's.
    Raises:
        LuminaError: when it is no run and no catalogue is given, the model or its songs cannot be found, or there is
            no such checkpoint.
    """
    from ..catalogue import Catalogue
    from ..models import run_folder, run_key
    compat.install()  # before anything of audiocraft is imported
    run = run_folder(source)
    if run is None and catalogue is None:
        raise LuminaError(f"{source} is no dora run, which would know its songs; name the songs that it was trained on "
                          "by --catalogue, or the folder or the signature of a training.")
    if run is None and checkpoint is not None:
        raise LuminaError(f"{source} is no dora run and has one checkpoint; leave --checkpoint away.")
    songs = training_songs(tp.cast(Path, run)) if catalogue is None else Catalogue.from_manifest(catalogue)
    wanted = _Wanted(run or source, run, Path(out), songs, catalogue is None, device, checkpoint)
    diffusion = _is_pipeline(source) if run is None else run_key(run, 'solver') == 'lumina_dit'
    return _diffusion(wanted) if diffusion else _musicgen(wanted)


def run_of(source: tp.Union[str, Path]) -> Path:
    """Folder of a dora run, named by itself or by its signature.

    Raises:
        LuminaError: when it is none.
    """
    from ..models import run_folder
    run = run_folder(source)
    if run is None:
        raise LuminaError(f"{source} is no dora run, whose songs are needed to unlearn; name the folder or the "
                          "signature of a training.")
    return run


def open_bench(truth: tp.Optional[Path] = None, model: tp.Optional[tp.Union[str, Path]] = None,
               suite: Path = Path('outputs/validation'), device: tp.Optional[str] = None) -> Bench:
    """A ground truth and the run that it was made of.

    Args:
        truth (Path, optional): Its file; the suite's unless said, which a diffusion is not judged by.
        model (str or path, optional): The run, else the one that the truth names. suite (Path): Of `lumina validate`.
    Raises:
        LuminaError: when one of them is missing, or they do not belong together.
    """
    from ..dit.ground_truth import DiTTruth
    from ..models import run_key
    from ..validation.opened import open_truth
    if model is None and truth is not None and of_diffusion(truth):
        model = str(DiTTruth.load(truth).facts['run'])
    if model is not None and run_key(run_of(model), 'solver') == 'lumina_dit':
        if truth is None:
            raise LuminaError("A diffusion is judged by a ground truth of its own; make one with "
                              "benchmarks/dit_ground_truth.py and name it by --truth.")
        return DiffusionBench(DiTTruth.load(truth), open_subject(model, device))
    found, opened = open_truth(suite, None if model is None else str(model), truth, device)
    return MusicGenBench(found, opened.musicgen, opened.run)


def free_pieces(model: tp.Union[str, Path], count: int, truth: tp.Optional[Path] = None,
                device: tp.Optional[str] = None
                ) -> tp.Tuple[Subject, tp.List[Piece], tp.Optional[HalfLosses]]:
    """A diffusion with free generations: its ground truth's with what retraining says of them, or fresh ones.

    Args:
        count (int): How many. truth (Path, optional): A ground truth of it.
    Raises:
        LuminaError: for a model that is no diffusion, or another one's ground truth.
    """
    if truth is not None:
        bench = open_bench(truth, model, device=device)
        halves = bench.halves('free')
        return bench.subject, bench.queries('free')[:count], halves._replace(
            losses=halves.losses[:, :count], ceiling=halves.ceiling[:count])
    subject = open_subject(model, device)
    if not isinstance(subject, DiffusionSubject):
        raise LuminaError(f"Run {subject.folder.name} is no diffusion, and its losses have no draws of noise; name a "
                          "run of solver=lumina/dit_quickstart.")
    return subject, [Piece(example.id, [example]) for example in subject.dit.generate(count)], None


def training_songs(run: Path) -> 'Catalogue':
    """The songs that a run was trained on, whatever it fingerprints."""
    from ..catalogue import Catalogue
    from ..catalogue_pass import manifests_of, run_songs
    from ..models import run_key
    if not run_key(run, 'fingerprint.catalogue'):
        return run_songs(run)
    found = manifests_of(run, 'datasource.train')
    if not found:
        raise LuminaError(f"The songs that run {run.name} was trained on are not where its configuration has them "
                          "(datasource.train); put them back.")
    return Catalogue.from_manifest(found[0])


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is opened; `run` is None where `source` is no run, `own` tells that the songs are those that a run names."""
    source: tp.Union[str, Path]
    run: tp.Optional[Path]
    out: Path
    catalogue: 'Catalogue'
    own: bool
    device: tp.Optional[str]
    checkpoint: tp.Optional[str]

    def home(self, module: nn.Module) -> Path:
        """Where Fisher information and losses are kept: the run's folder, or that of these weights."""
        if self.run is not None:
            return self.run
        from ..atomic import writable_folder
        from ..hashing import state_hash
        return writable_folder(self.out / KEPT / state_hash(module.state_dict())[:12])

    @property
    def titles(self) -> tp.Dict[str, tp.Optional[str]]:
        return {track.id: track.title for track in self.catalogue}


def _is_pipeline(source: tp.Union[str, Path]) -> bool:
    """Whether what is no run is a Stable Audio pipeline: a folder by what lies in it, a hub's by its name."""
    return (Path(source) / 'model_index.json').is_file() or str(source).startswith('stabilityai/stable-audio')


def _musicgen(wanted: _Wanted) -> MusicGenSubject:
    from ..codec import codec_hash
    from ..models import load_musicgen
    from ..prepared import prepare
    from ..tokens import Tokenizer
    musicgen = load_musicgen(wanted.source, wanted.device)
    codec, home = musicgen.compression_model, wanted.home(musicgen.lm)
    tokenizer = Tokenizer(codec, codec_hash(codec), SECONDS, cache=home / 'lumina' / 'codes')
    prepared = prepare(wanted.catalogue, tokenizer, musicgen.lm)
    return MusicGenSubject(home, musicgen.lm, codec, prepared.songs, _state(wanted, musicgen.lm), tokenizer,
                           wanted.titles)


def _diffusion(wanted: _Wanted) -> DiffusionSubject:
    from ..dit.latents import LatentEncoder, prepare_latents
    from ..dit.loading import load_dit
    from ..dit.solver import chosen_songs
    from ..models import default_device, run_config, run_key
    dit, run = load_dit(wanted.source, wanted.device or default_device()), wanted.run
    home, windows, cache = wanted.home(dit.denoiser), 1, None
    if run is not None:
        windows, cache = int(run_key(run, 'dit.windows') or 1), run_key(run, 'lumina.latents_cache')
    encoder = LatentEncoder(dit, windows, cache or home / 'lumina' / 'latents')
    songs = prepare_latents(wanted.catalogue, encoder).songs
    if run is not None and wanted.own:
        trained = set(chosen_songs([track.id for track in wanted.catalogue], run_config(run).dit.subset))
        songs = [song for song in songs if song.id in trained]
    return DiffusionSubject(home, dit, songs, _state(wanted, dit.denoiser), encoder, wanted.titles)


def _state(wanted: _Wanted, module: nn.Module) -> tp.Optional[tp.Mapping[str, torch.Tensor]]:
    from ..validation.tracin import run_checkpoints
    run, checkpoint = wanted.run, wanted.checkpoint
    if checkpoint is None or run is None:
        return None
    known = {one.name: one.state for one in run_checkpoints(run, module)}
    if checkpoint not in known:
        raise LuminaError(f"Run {run.name} has no checkpoint '{checkpoint}' whose weights were kept; choose of "
                          f"{', '.join(known)}.")
    return known[checkpoint]
