"""A run, opened for unlearning: a MusicGen's or a latent diffusion transformer's, with the songs of its training."""

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


def open_subject(source: tp.Union[str, Path], device: tp.Optional[str] = None,
                 checkpoint: tp.Optional[str] = None) -> Subject:
    """A dora run with the songs that it was trained on.

    Args:
        source (str or path): Its folder or signature. device (str, optional): cpu or cuda.
        checkpoint (str, optional): One whose weights the run's fingerprinting kept, e.g. epoch-0004; the last unless
            said.
    Raises:
        LuminaError: when it is no run, its songs cannot be found, or there is no such checkpoint.
    """
    from ..models import run_key
    compat.install()  # before anything of audiocraft is imported
    run = run_of(source)
    opened = _diffusion if run_key(run, 'solver') == 'lumina_dit' else _musicgen
    return opened(run, device, checkpoint)


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


def _musicgen(run: Path, device: tp.Optional[str], checkpoint: tp.Optional[str]) -> MusicGenSubject:
    from ..codec import codec_hash
    from ..models import load_musicgen
    from ..prepared import prepare
    from ..tokens import Tokenizer
    catalogue, musicgen = training_songs(run), load_musicgen(run, device)
    codec = musicgen.compression_model
    tokenizer = Tokenizer(codec, codec_hash(codec), SECONDS, cache=run / 'lumina' / 'codes')
    prepared = prepare(catalogue, tokenizer, musicgen.lm)
    return MusicGenSubject(run, musicgen.lm, codec, prepared.songs, _state(run, musicgen.lm, checkpoint), tokenizer,
                           {track.id: track.title for track in catalogue})


def _diffusion(run: Path, device: tp.Optional[str], checkpoint: tp.Optional[str]) -> DiffusionSubject:
    from ..dit.latents import LatentEncoder, prepare_latents
    from ..dit.loading import load_dit
    from ..dit.solver import chosen_songs
    from ..models import default_device, run_config, run_key
    catalogue, dit = training_songs(run), load_dit(run, device or default_device())
    encoder = LatentEncoder(dit, int(run_key(run, 'dit.windows') or 1),
                            run_key(run, 'lumina.latents_cache') or run / 'lumina' / 'latents')
    prepared = prepare_latents(catalogue, encoder)
    trained = set(chosen_songs([song.id for song in prepared.songs], run_config(run).dit.subset))
    songs = [song for song in prepared.songs if song.id in trained]
    return DiffusionSubject(run, dit, songs, _state(run, dit.denoiser, checkpoint), encoder,
                            {track.id: track.title for track in catalogue})


def _state(run: Path, module: nn.Module, checkpoint: tp.Optional[str]
           ) -> tp.Optional[tp.Mapping[str, torch.Tensor]]:
    from ..validation.tracin import run_checkpoints
    if checkpoint is None:
        return None
    known = {one.name: one.state for one in run_checkpoints(run, module)}
    if checkpoint not in known:
        raise LuminaError(f"Run {run.name} has no checkpoint '{checkpoint}' whose weights were kept; choose of "
                          f"{', '.join(known)}.")
    return known[checkpoint]
