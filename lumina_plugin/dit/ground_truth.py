"""Ground truth for a small latent diffusion model: retrained on halves of its catalogue, and asked about queries.

All models start from the run's own first weights; what they differ by is their songs, and the order and noise of their
steps. Queries are free generations of the run's model and recordings that it never heard; every model answers the very
same draws of noise. One file per model, so that the work is resumed, or shared, by index.
"""

import copy
import dataclasses
import json
import logging
import time
import typing as tp
from pathlib import Path

import numpy as np
import omegaconf
import safetensors
import safetensors.torch
import torch

from .. import compat
from ..atomic import writable_folder, write_atomic
from ..audio import file_sha256
from ..catalogue import Catalogue
from ..catalogue_pass import run_songs
from ..errors import LuminaError
from ..hashing import state_hash
from ..models import run_config, run_key
from ..validation.lds import HalfLosses
from ..validation.plan import Retrained, plan_models
from ..validation.truth import FloatArray
from .latents import LatentEncoder, prepare_latents, windows_of
from .loading import from_run
from .model import LatentDiT, LatentExample
from .objective import DiffusionLoss
from .oobleck import oobleck_hash

logger = logging.getLogger(__name__)

FORMAT = 'lumina-dit-ground-truth-1'
FILE, QUERIES = 'dit_ground_truth.safetensors', 'queries.safetensors'
HALVES, EACH, DRAWS, BLOCKS = 24, 16, 64, 4
FAMILIES = ('free', 'heldout')


@dataclasses.dataclass(frozen=True)
class DiTTruth:
    """What retraining said, small enough to be kept beside the code.

    Args:
        songs (list of str): Ids of the N songs. queries (list of LatentExample): Q of them, latents in fp16.
        families (list of str): Of each query, one of `FAMILIES`.
        models (list of Retrained): M of them.
        losses (torch.Tensor): Mean v-losses, [M, Q, BLOCKS]: the draws in blocks, one after the other, which
            differ by as much of a loss as is chance of its draws.
        facts (dict): Hashes of the catalogue, the run's model and its autoencoder; draws and their seed.
    """
    songs: tp.List[str]
    queries: tp.List[LatentExample]
    families: tp.List[str]
    models: tp.List[Retrained]
    losses: torch.Tensor
    facts: tp.Dict[str, tp.Any]

    def columns(self, family: str) -> tp.List[int]:
        """Which queries are of a family."""
        return [column for column, one in enumerate(self.families) if one == family]

    def halves(self, columns: tp.Sequence[int]) -> HalfLosses:
        """Losses of queries under the retrained halves, as `validation.lds.lds` takes them; no ceiling is known, as
        every half was trained once."""
        place = {song: column for column, song in enumerate(self.songs)}
        members: FloatArray = np.zeros((len(self.models), len(self.songs)))
        for row, model in enumerate(self.models):
            members[row, [place[song] for song in model.songs]] = 1.
        losses = self.losses.double().mean(-1)[:, list(columns)].numpy()
        return HalfLosses(members, losses, np.full(len(columns), np.nan))

    def save(self, path: tp.Union[str, Path]) -> Path:
        """Write it as one safetensors file."""
        queries = [{**{f.name: getattr(query, f.name) for f in dataclasses.fields(query) if f.name != 'latents'},
                    'family': family} for query, family in zip(self.queries, self.families, strict=True)]
        models = [{'name': m.name, 'kind': m.kind, 'seed': m.seed, 'group': m.group} for m in self.models]
        members = torch.tensor([[song in set(m.songs) for song in self.songs] for m in self.models], dtype=torch.uint8)
        header = {'format': FORMAT, 'songs': json.dumps(self.songs), 'queries': json.dumps(queries),
                  'models': json.dumps(models), 'facts': json.dumps(self.facts)}
        return write_atomic(path, safetensors.torch.save({
            'latents': torch.stack([query.latents for query in self.queries]).half(), 'losses': self.losses.float(),
            'members': members.reshape(len(self.models), len(self.songs))}, header))

    @classmethod
    def load(cls, path: tp.Union[str, Path]) -> 'DiTTruth':
        """Read one. Raises LuminaError where it is missing or no such truth."""
        try:
            with safetensors.safe_open(str(path), 'pt') as file:
                header = file.metadata() or {}
                if header.get('format') != FORMAT:
                    raise LuminaError(f"{path} is no ground truth of a diffusion model ({header.get('format')}); make "
                                      "one with benchmarks/dit_ground_truth.py.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, safetensors.SafetensorError) as error:
            raise LuminaError(f"{path} cannot be read as a ground truth ({str(error).splitlines()[0]}); make one with "
                              "benchmarks/dit_ground_truth.py.") from error
        songs, known = json.loads(header['songs']), json.loads(header['queries'])
        families = [one.pop('family') for one in known]
        queries = [LatentExample(latents=latents.float(), **facts)
                   for latents, facts in zip(tensors['latents'], known, strict=True)]
        models = [Retrained(songs=tuple(song for song, inside in zip(songs, row, strict=True) if inside), **facts)
                  for row, facts in zip(tensors['members'].tolist(), json.loads(header['models']), strict=True)]
        return cls(songs, queries, families, models, tensors['losses'], json.loads(header['facts']))


def make_truth(run: tp.Union[str, Path], heldout: tp.Union[str, Path], work: tp.Union[str, Path],
               part: tp.Tuple[int, int] = (0, 1), halves: int = HALVES, each: int = EACH, draws: int = DRAWS,
               seed: int = 0) -> tp.Optional[DiTTruth]:
    """Make the ground truth of a run, or what is missing of it.

    Args:
        run (path): Folder of a finished run of solver=lumina/dit_quickstart.
        heldout (path): Manifest of songs that it never saw.
        work (path): Folder for all that is made: queries, a file per retrained model, the truth itself.
        part (int, int): Train this part of so many, and leave the others to other processes.
        halves (int): Models. each (int): Queries per family. draws (int): Of a loss. seed (int): Of plan and queries.
    Returns:
        DiTTruth, also saved as `dit_ground_truth.safetensors`; None while models of other parts are missing.
    Raises:
        LuminaError: bad input, or a folder that holds the truth of another run.
    """
    run, work = Path(run), writable_folder(Path(work).absolute())
    dit = from_run(run)
    catalogue = _sounding(run, run_songs(run), dit)
    plan = plan_models(catalogue, halves, seeds=1, whole=0, groups=0, seed=seed)
    truth = _queries(run, dit, catalogue, Path(heldout), work, each, draws, seed)
    origin = file_sha256(work / QUERIES)
    for model in plan[part[0]::part[1]]:
        if _known(work, model, origin) is None:
            begun = time.perf_counter()
            dit = retrain(run, catalogue, model, work / 'training')
            trained = time.perf_counter()
            losses = query_losses(dit, truth.queries, draws)
            header = {'model': json.dumps({'songs': list(model.songs), 'seed': model.seed, 'queries': origin}),
                      'seconds': f'{time.perf_counter() - begun:.1f}'}
            write_atomic(_file(work, model), safetensors.torch.save({
                'losses': losses, **{f'model.{n}': t.contiguous() for n, t in dit.denoiser.state_dict().items()}},
                header))
            logger.info("%s: trained in %.0f s, asked in %.0f s.", model.name, trained - begun,
                        time.perf_counter() - trained)
    found = [_known(work, model, origin) for model in plan]
    ready = [one for one in found if one is not None]
    if len(ready) < len(plan):
        logger.info("%d of %d models are trained; the others are left to other parts.", len(ready), len(plan))
        return None
    truth = dataclasses.replace(truth, models=plan, losses=torch.stack(ready))
    truth.save(work / FILE)
    return truth


def retrain(run: Path, catalogue: Catalogue, model: Retrained, work: Path) -> LatentDiT:
    """Train a model as a run was trained, from the same first weights, on some of the songs of its catalogue.

    Every song is seen as often as in the run, in fewer updates.

    Raises:
        LuminaError: when the catalogue has no manifest, or training ends with weights that are not finite.
    """
    import dora.xp

    from .. import train
    compat.install()
    cfg = copy.deepcopy(run_config(run))
    omegaconf.OmegaConf.set_struct(cfg, False)
    cfg.dit.seed = int(cfg.dit.seed)  # before the seed that it may stand for becomes another
    cfg.dit.subset = {'songs': list(model.songs), 'fraction': 1., 'seed': 0}
    cfg.seed, cfg.num_threads = model.seed, torch.get_num_threads()
    cfg.logging.log_updates, cfg.lumina.render = 1, False
    cfg.execute_only, cfg.show = None, False  # whatever was last done with the run
    if catalogue.source is None:
        raise LuminaError("A catalogue without a manifest cannot be retrained on; write one with `lumina catalogue "
                          "build`.")
    for split in ('train', 'valid', 'evaluate', 'generate'):  # wherever they lie by now
        cfg.datasource[split] = str(Path(catalogue.source).absolute().parent)
    cfg.fingerprint.every = cfg.evaluate.every = cfg.generate.every = None
    cfg.lumina.latents_cache = cfg.lumina.latents_cache or str(run.absolute() / 'lumina' / 'latents')
    train.init_seed_and_system(cfg)
    xp = dora.xp.XP(dataclasses.replace(train.main.dora, dir=work), cfg, [], sig=model.name)
    xp.folder.mkdir(parents=True, exist_ok=True)
    with xp.enter():
        solver = train.get_solver(cfg)
        while solver.epoch <= int(cfg.optim.epochs):
            solver.run_stage('train', solver.train)
            solver.commit(save_checkpoints=False)
        weights = solver._current_weights()
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise LuminaError(f"{model.name} ended with weights that are not finite; lower optim.lr of the run.")
    dit = tp.cast(LatentDiT, solver.dit)
    dit.denoiser.load_state_dict(weights)
    dit.denoiser.eval()
    return dit


@torch.no_grad()
def query_losses(dit: LatentDiT, queries: tp.Sequence[LatentExample], draws: int, seed: int = 0,
                 batch_size: int = 8) -> torch.Tensor:
    """Mean losses of queries over the draws, in `BLOCKS` blocks of draws: [Q, BLOCKS]."""
    if draws % (2 * BLOCKS):
        raise LuminaError(f"{draws} draws do not make {BLOCKS} blocks of pairs; use a multiple of {2 * BLOCKS}.")
    loss = DiffusionLoss(dit, draws, seed)
    size = draws // BLOCKS
    rows = []
    for first in range(0, len(queries), batch_size):
        batch = queries[first:first + batch_size]
        rows.append(torch.stack([loss.at(batch, range(block * size, (block + 1) * size)).mean(1)
                                 for block in range(BLOCKS)], dim=1).cpu())
    return torch.cat(rows)


def _sounding(run: Path, catalogue: Catalogue, dit: LatentDiT) -> Catalogue:
    """Without the songs that are silent: nothing of those is trained on, nor could be lost."""
    cache = run_key(run, 'lumina.latents_cache') or run.absolute() / 'lumina' / 'latents'  # the training's own
    heard = {song.id for song in prepare_latents(catalogue, LatentEncoder(dit, cache=cache)).songs}
    return Catalogue([track for track in catalogue if track.id in heard], catalogue.source)


def _queries(run: Path, dit: LatentDiT, catalogue: Catalogue, heldout: Path, work: Path, each: int, draws: int,
             seed: int) -> DiTTruth:
    """The queries, made once: others would need all models again."""
    path = work / QUERIES
    facts = {'run': run.name, 'catalogue': catalogue.hash, 'model': state_hash(dit.denoiser.state_dict()),
             'codec': oobleck_hash(dit.vae), 'draws': draws, 'seed': seed}
    if path.is_file():
        known = DiTTruth.load(path)
        if known.facts != facts:
            differing = next(key for key in facts if known.facts.get(key) != facts[key])
            raise LuminaError(f"{path} was made with another {differing} ({known.facts.get(differing)}); choose "
                              "another folder.")
        return known
    encoder = LatentEncoder(dit, cache=work / 'latents')
    strangers = windows_of(prepare_latents(Catalogue.from_manifest(heldout), encoder))[:each]
    free = dit.generate(each, seed=seed)
    if len(strangers) < each:
        raise LuminaError(f"{heldout} holds {len(strangers)} songs that can be used, {each} are needed; name more.")
    # kept in half precision, and asked about as they are kept
    queries = [dataclasses.replace(query, latents=query.latents.half().float(), text=None)
               for query in [*free, *strangers]]
    empty = torch.zeros(0, len(queries), BLOCKS)
    truth = DiTTruth([track.id for track in catalogue], queries, [FAMILIES[0]] * each + [FAMILIES[1]] * each, [], empty,
                     facts)
    truth.save(path)
    return DiTTruth.load(path)


def _file(work: Path, model: Retrained) -> Path:
    return work / 'models' / f'{model.name}.safetensors'


def _known(work: Path, model: Retrained, origin: str) -> tp.Optional[torch.Tensor]:
    """The losses [Q, BLOCKS] of a model that is trained; None where it is not.

    Raises:
        LuminaError: when its file belongs to another plan or other queries.
    """
    path = _file(work, model)
    if not path.is_file():
        return None
    with safetensors.safe_open(str(path), 'pt') as file:
        made = json.loads((file.metadata() or {}).get('model', '{}'))
        if made != {'songs': list(model.songs), 'seed': model.seed, 'queries': origin}:
            raise LuminaError(f"{path} belongs to another plan or to other queries; remove it, or choose another "
                              "folder.")
        return tp.cast(torch.Tensor, file.get_tensor('losses'))
