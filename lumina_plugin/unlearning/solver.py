"""Unlearning by dora: one recipe, measured on a run that was trained, is one run (`solver=lumina/unlearning`).

Nothing is trained, so that there is no checkpoint: what is finished is kept in parts beside the Fisher information, and
the run is done when its history holds the stage `unlearn`.
"""

import dataclasses
import math
import os
import re
import typing as tp
from pathlib import Path

import flashy
import omegaconf
from dora import git_save

from ..errors import LuminaError
from ..models import run_folder, run_key
from .recipe import UnlearningRecipe, unlearning_recipe

if tp.TYPE_CHECKING:
    from .grid import Point
    from .own import Own

STAGE = 'unlearn'
TRAINED = ('lumina', 'musicgen', 'lumina_dit')  # solvers whose runs can be opened
Metrics = tp.Dict[str, float]


# -- what is asked for ------------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys `unlearning.*` of a configuration, checked; `config/solver/lumina/unlearning.yaml` explains them."""
    of: Path
    truth: tp.Optional[Path]
    recipe: UnlearningRecipe
    families: tp.List[str]
    linear: bool
    targets: int
    generations: int
    moved: int
    embedding: str
    clap: tp.Optional[str]
    out: Path


def read_settings(cfg: omegaconf.DictConfig, runs: Path) -> Settings:
    """What a run of unlearning is asked for; nothing large is opened.

    Args:
        cfg (DictConfig): With the section `unlearning`. runs (Path): Folder of all runs.
    Raises:
        LuminaError: a key out of range, a run or a ground truth that is not there, or nothing to measure.
    """
    keys = tp.cast(dict, omegaconf.OmegaConf.to_container(cfg.unlearning, resolve=True))
    recipe = unlearning_recipe(str(keys['preset']), **{
        key: keys[key] for key in UnlearningRecipe.model_fields if keys.get(key) not in (None, '')})
    truth = _absolute(keys['truth']) if keys['truth'] else None
    if truth is not None and not truth.is_file():
        raise LuminaError(f"unlearning.truth is {truth}, which is not there; make one with `lumina validate "
                          "ground-truth`, or leave the key empty.")
    counts = {key: _count(key, keys[key]) for key in ('targets', 'generations', 'moved')}
    if truth is None and not counts['targets']:
        raise LuminaError("There is nothing to measure: name a ground truth by unlearning.truth, or songs to forget by "
                          "unlearning.targets.")
    if counts['generations'] == 1:
        raise LuminaError("unlearning.generations is 1, but a Fréchet distance needs 2 clips or more; 0 leaves it out.")
    if keys['embedding'] not in ('auto', 'openl3', 'clap', 'codec'):
        raise LuminaError(f"unlearning.embedding is {keys['embedding']!r}; choose auto, openl3, clap or codec.")
    if not isinstance(keys['linear'], bool):
        raise LuminaError(f"unlearning.linear is {keys['linear']!r}; say true or false.")
    of = _trained(str(keys['of'] or ''), truth, runs)
    clap = str(_absolute(keys['clap'])) if keys['clap'] and _absolute(keys['clap']).exists() else keys['clap']
    return Settings(of, truth, recipe, _families(keys['families']), keys['linear'], **counts,
                    embedding=keys['embedding'], clap=clap or None,
                    out=_absolute(keys['out']) if keys['out'] else of / 'unlearning')


def _absolute(path: tp.Any) -> Path:
    """Seen from where dora was started: a run changes its folder."""
    return Path(git_save.to_absolute_path(os.path.expanduser(str(path))))


def _count(key: str, value: tp.Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LuminaError(f"unlearning.{key} is {value!r}, but must be a whole number of at least 0.")
    return value


def _families(value: tp.Any) -> tp.List[str]:
    from .grid import FAMILIES
    found = [value] if isinstance(value, str) else list(value or [])
    unknown = [one for one in found if one not in FAMILIES]
    if unknown or not found or len(set(found)) < len(found):
        told = f"names {unknown[0]!r}" if unknown else "is empty" if not found else "names one twice"
        raise LuminaError(f"unlearning.families {told}; list some of {', '.join(FAMILIES)}.")
    return found


def _trained(of: str, truth: tp.Optional[Path], runs: Path) -> Path:
    """Folder of the trained run that `unlearning.of`, or else the truth, names."""
    from .bench import of_diffusion
    if not of and truth is None:
        raise LuminaError("unlearning.of is empty: name a trained run by its signature or its folder.")
    name = of.removeprefix('//sig/') if of else _run_of(tp.cast(Path, truth))
    told = f"unlearning.of is {of}" if of else f"unlearning.of is empty, and the ground truth is of run {name}"
    if re.fullmatch(r'[0-9a-f]{8}', name):
        places = [runs, runs.parent / 'validation' / 'xps', *([] if truth is None else [truth.parent.parent / 'xps'])]
        found = next((folder for place in places if (folder := run_folder(place / name)) is not None), None)
        if found is None:
            raise LuminaError(f"{told}, but there is no run {name} below {runs}: check the signature, name the run's "
                              "folder, or set LUMINA_DORA_DIR to the folder that holds it.")
    else:
        found = run_folder(_absolute(name))
        if found is None:
            raise LuminaError(f"{told}, which is no dora run; name a trained run by its signature or its folder.")
    solver = run_key(found, 'solver')
    if solver not in TRAINED:
        raise LuminaError(f"{told}, a run of solver={solver}; name the training of a MusicGen or of a latent "
                          "diffusion transformer (solver=lumina/...).")
    if truth is not None and solver != 'lumina_dit' and of_diffusion(truth):
        raise LuminaError(f"{told}, a MusicGen, but {truth} is the ground truth of a diffusion; leave the key empty "
                          "for the run that the truth was made of, or name a truth of this run.")
    return found.absolute()


def _run_of(truth: Path) -> str:
    """Signature of the run that a ground truth was made of, a MusicGen's or a diffusion's."""
    from ..dit.ground_truth import DiTTruth
    from ..validation.truth import GroundTruth
    from .bench import of_diffusion
    return str((DiTTruth if of_diffusion(truth) else GroundTruth).load(truth).facts['run'])


# -- the run ----------------------------------------------------------------------------------------------------------

class UnlearningSolver(flashy.BaseSolver):
    """Measures one recipe of unlearning, puts it into dora's history, and is done. Reads `unlearning.*`.

    Raises:
        LuminaError: as `read_settings`; in several processes, which it cannot share its work among.
    """

    def __init__(self, cfg: omegaconf.DictConfig):
        super().__init__()
        if flashy.distrib.world_size() > 1:
            raise LuminaError("solver=lumina/unlearning runs in one process: leave -d away; a dora grid gives each "
                              "recipe a process of its own.")
        self.cfg = cfg
        self.settings = read_settings(cfg, Path(self.folder).parent)
        self.xp.link.load()  # the history, which dora leaves to checkpoints
        if cfg.logging.log_tensorboard:
            self.init_tensorboard(**cfg.tensorboard)
        if cfg.logging.log_wandb:
            self.init_wandb(**cfg.wandb)

    def restore(self, *args: tp.Any, **kwargs: tp.Any) -> bool:
        """There is no state but the history, which is read already."""
        return False

    def show(self) -> None:
        """Log the recipe."""
        self.logger.info("%s of run %s", self.settings.recipe, self.settings.of)

    def get_formatter(self, stage_name: str) -> flashy.Formatter:
        return flashy.Formatter({key: '.2g' for key in ('lr', 'relative', 'rise')}, default_format='.3f')

    def run(self) -> None:
        """Measure, unless that is done."""
        if any(STAGE in metrics for metrics in self.history):
            self.logger.info("Run %s is finished; nothing is left to do.", self.xp.sig)
            return
        self.run_stage(STAGE, self.unlearn)
        self.commit(save_checkpoint=False)

    def unlearn(self) -> Metrics:
        """What the recipe is worth.

        Returns:
            dict: By the truth, over the queries of the first family, `lds`, its mean over the half of them by which a
                recipe may be chosen and over the other, which is then to be reported, `lds_choosing` and
                `lds_reporting`, `linear`, and of other families `lds_<family>`. By songs that are forgotten, `rank`,
                `frechet` and, over seeds of an untouched model, `frechet_before` with its largest,
                `frechet_before_max`. Of the queries, or of the songs where there is no truth, `lr`, `relative`, `rise`
                and `seconds` for each. What is not finite is left out.
        Raises:
            LuminaError: when the recipe cannot be measured.
        """
        found: Metrics = {}
        if self.settings.targets:
            found.update(self._by_songs())
        if self.settings.truth is not None:
            found.update(self._by_truth(self.settings.truth))
        return {key: float(value) for key, value in found.items() if math.isfinite(value)}

    def _by_truth(self, path: Path) -> Metrics:
        from ..validation.opened import open_run
        from ..validation.truth import GroundTruth
        from . import grid
        asked = self.settings
        if run_key(asked.of, 'solver') == 'lumina_dit':
            from .opened import open_bench
            bench = open_bench(path, asked.of, device=self.cfg.device)
            return _point_metrics(grid.judged(asked.recipe, bench, asked.out, asked.families, asked.linear),
                                  asked.families)
        truth = GroundTruth.load(path)
        opened = open_run(asked.of, asked.out, device=self.cfg.device, songs=0)  # the truth has them already
        if opened.catalogue.hash != truth.facts['catalogue']:
            raise LuminaError(f"Run {asked.of.name} was trained on other songs than those of the ground truth {path}; "
                              "name the run that it was made of by unlearning.of.")
        empty = [family for family in asked.families if not truth.columns(family)]
        if empty:
            raise LuminaError(f"The ground truth {path} has no queries of the family '{empty[0]}'; take it out of "
                              "unlearning.families.")
        return _point_metrics(grid.measure(asked.recipe, opened.musicgen, asked.of, truth, asked.out, asked.families,
                                           asked.linear), asked.families)

    def _by_songs(self) -> Metrics:
        from . import own
        from .embeddings import embedder
        from .opened import open_subject
        asked = self.settings
        subject = open_subject(asked.of, self.cfg.device)
        return _own_metrics(own.measure(subject, [subject.adapted(asked.recipe)],
                                        embedder(subject.sound, asked.embedding, asked.clap), asked.out, asked.targets,
                                        asked.generations, asked.moved))


def _point_metrics(point: 'Point', families: tp.Sequence[str]) -> Metrics:
    """Of a recipe that a ground truth judged."""
    if point.error:
        raise LuminaError(point.error)
    first, *others = families
    found = {'lds': point.lds[first].mean(), **{f'lds_{family}': point.lds[family].mean() for family in others}}
    if len(point.lds[first]) > 1:
        found.update(lds_choosing=point.chosen_by(first), lds_reporting=point.reported(first).mean)
    if point.linear:
        found['linear'] = point.linear[first].mean()
    return {**found, 'lr': point.lr, 'relative': point.relative, 'rise': point.rise, 'seconds': point.seconds}


def _own_metrics(own: 'Own') -> Metrics:
    """Of a recipe that forgot training songs."""
    group, = own.groups
    if group.error:
        raise LuminaError(group.error)
    found = {'rank': sum(group.ranks) / len(group.ranks), 'lr': group.lr, 'relative': group.relative,
             'rise': group.rise, 'seconds': group.seconds}
    if own.before:
        found.update(frechet_before=sum(own.before) / len(own.before), frechet_before_max=max(own.before))
    if group.frechet:
        found['frechet'] = sum(group.frechet) / len(group.frechet)
    return found
