"""`lumina validate ground-truth`: queries of a run's model, and their losses under models retrained on parts of its
catalogue. Whatever is finished is found again by the next call; parts can be shared among processes and machines."""

import concurrent.futures as futures
import json
import logging
import multiprocessing
import os
import time
import typing as tp
from pathlib import Path

import safetensors.torch
import torch
from tqdm import tqdm

from ..atomic import writable_folder, write_atomic
from ..audio import file_sha256
from ..catalogue import Catalogue
from ..errors import LuminaError
from .plan import Retrained, plan_models
from .queries import Query, Sampling, recordings, standard_queries
from .truth import GroundTruth

logger = logging.getLogger(__name__)

EACH, SECONDS = 16, 10.
PROMPT = 0.2  # of a continuation is given
FILE, QUERIES = 'ground_truth.safetensors', 'queries.safetensors'


def make_ground_truth(run: tp.Union[str, Path], heldout: tp.Union[str, Path], work: tp.Union[str, Path],
                      jobs: int = 2, part: tp.Tuple[int, int] = (0, 1), plan: tp.Optional[tp.List[Retrained]] = None,
                      each: int = EACH, seconds: float = SECONDS) -> tp.Optional[GroundTruth]:
    """Make the ground truth of a run, or what is missing of it.

    Args:
        run (path): Folder of a finished dora run. heldout (path): Manifest of songs that it never saw.
        work (path): Folder for everything that is made: queries, one file per retrained model, the truth itself.
        jobs (int): Models that are trained at once, one thread each on a machine with as many cores.
        part (int, int): Train this part of so many, and leave the others to other processes.
        plan (list of Retrained, optional): Models; `plan_models` of the run's catalogue unless given.
        each (int): Queries per family. seconds (float): Length of a query; a fifth of a continuation is its prompt.
    Returns:
        GroundTruth, also saved as `ground_truth.safetensors`; None while models of other parts are missing.
    Raises:
        LuminaError: bad input, or a training that failed.
    """
    from ..catalogue_pass import run_songs
    run, work = Path(run), writable_folder(Path(work).absolute())
    catalogue = run_songs(run)
    plan = plan if plan is not None else plan_models(catalogue)
    queries, facts = _queries(run, catalogue, Path(heldout), work, each, seconds)
    for model in plan:  # before an hour of training, not after
        _expect_own(work, model)
    todo = [model for model in plan[part[0]::part[1]] if not _file(work, model).is_file()]
    if todo:
        _train(run, work, todo, jobs)
    missing = [model for model in plan if not _file(work, model).is_file()]
    if missing:
        logger.info("%d of %d models are trained; %s and others are left to other parts.", len(plan) - len(missing),
                    len(plan), missing[0].name)
        return None
    return _joined(work, catalogue, plan, queries, facts)


def _file(work: Path, model: Retrained) -> Path:
    return work / 'models' / f'{model.name}.safetensors'


def _queries(run: Path, catalogue: Catalogue, heldout: Path, work: Path, each: int, seconds: float
             ) -> tp.Tuple[tp.List[Query], tp.Dict[str, tp.Any]]:
    """The queries, made once: other generations would need all models again."""
    path = work / QUERIES
    if path.is_file():
        known = GroundTruth.load(path)
        if known.facts['catalogue'] != catalogue.hash or known.facts['run'] != run.name:
            raise LuminaError(f"{path} belongs to run {known.facts['run']} on other songs; choose another folder.")
        return known.queries, known.facts
    from ..codec import codec_hash
    from ..hashing import state_hash
    from ..models import load_musicgen
    from ..tokens import Tokenizer
    musicgen = load_musicgen(run)
    codec = musicgen.compression_model
    tokenizer = Tokenizer(codec, codec_hash(codec), seconds, cache=run / 'lumina' / 'codes')
    frames = round(seconds * tokenizer.frame_rate)
    songs = recordings(catalogue, tokenizer, 'songs', frames)
    strangers = recordings(Catalogue.from_manifest(heldout), tokenizer, 'heldout', frames)
    sampling = Sampling()
    prompt_frames = round(PROMPT * seconds * tokenizer.frame_rate)
    queries = standard_queries(musicgen.lm, songs, strangers, frames, prompt_frames, each, sampling)
    facts = {'run': run.name, 'catalogue': catalogue.hash, 'model': state_hash(musicgen.lm.state_dict()),
             'codec': tokenizer.codec_hash, 'frame_rate': tokenizer.frame_rate, 'temperature': sampling.temperature,
             'top_k': sampling.top_k, 'seed': sampling.seed}
    everything = [*queries, *songs]
    empty = torch.zeros(0, len(everything), 2, songs[0].codes.shape[0])
    GroundTruth([track.id for track in catalogue], everything, [], empty, empty.sum(0).long(), facts).save(path)
    return everything, facts


def _train(run: Path, work: Path, todo: tp.Sequence[Retrained], jobs: int) -> None:
    """Train models in `jobs` processes; what one has finished is on disk whatever happens to the others."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ[name] = str(threads)
    begun = time.perf_counter()
    with futures.ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn')) as pool, \
            tqdm(total=len(todo), desc='retraining', unit='model', dynamic_ncols=True) as bar:
        waiting = {pool.submit(train_one, str(run), str(work), model, threads): model for model in todo}
        try:
            for done in futures.as_completed(waiting):
                done.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    logger.info("Retrained %d models in %.0f s.", len(todo), time.perf_counter() - begun)


def train_one(run: str, work: str, model: Retrained, threads: int) -> None:
    """Train one model and write its weights with the queries' losses under it, in a process of its own."""
    from ..catalogue_pass import run_songs
    from .losses import query_losses
    from .retraining import Retraining
    folder = Path(work)
    queries = GroundTruth.load(folder / QUERIES).queries
    begun = time.perf_counter()
    lm = Retraining(Path(run), run_songs(Path(run)), folder / 'training', threads).train(model)
    sums, counts = query_losses(lm, queries)
    tensors = {f'model.{name}': tensor.contiguous() for name, tensor in lm.state_dict().items()}
    tensors.update(sums=sums.float(), counts=counts.to(torch.int32))
    header = {'model': json.dumps(_origin(folder, model)),
              'seconds': f'{time.perf_counter() - begun:.1f}'}
    write_atomic(_file(folder, model), safetensors.torch.save(tensors, header))


def _origin(work: Path, model: Retrained) -> tp.Dict[str, tp.Any]:
    """What a model's file must agree with: its songs, its seed, and the queries whose losses it holds."""
    return {'songs': list(model.songs), 'seed': model.seed, 'queries': file_sha256(work / QUERIES)}


def _expect_own(work: Path, model: Retrained) -> None:
    """LuminaError where a model's file is there, but of another plan or with the losses of other queries."""
    path = _file(work, model)
    if not path.is_file():
        return
    with safetensors.safe_open(str(path), 'pt') as file:
        made = json.loads((file.metadata() or {}).get('model', '{}'))
    if made != _origin(work, model):
        raise LuminaError(f"{path} belongs to another plan or to other queries; remove it, or choose another folder.")


def _joined(work: Path, catalogue: Catalogue, plan: tp.Sequence[Retrained], queries: tp.List[Query],
            facts: tp.Dict[str, tp.Any]) -> GroundTruth:
    """All models' losses in one file."""
    sums, counts = [], torch.zeros(0)
    for model in plan:
        with safetensors.safe_open(str(_file(work, model)), 'pt') as file:
            sums.append(file.get_tensor('sums'))
            counts = file.get_tensor('counts')
    truth = GroundTruth([track.id for track in catalogue], queries, list(plan), torch.stack(sums), counts, facts)
    truth.save(work / FILE)
    return truth
