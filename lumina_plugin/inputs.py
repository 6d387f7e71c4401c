"""What a run is given: paths made absolute, and bad input told in one sentence before anything slow begins.

Nothing here imports audiocraft.
"""

import collections
import gzip
import os
import re
import typing as tp
from pathlib import Path

import omegaconf
from dora import git_save

from .errors import LuminaError
from .recipe import Recipe, get_recipe

if tp.TYPE_CHECKING:
    from .catalogue import Catalogue, Track

_SIG, _PRETRAINED = '//sig/', '//pretrained/'
_SPLITS = ('train', 'valid', 'evaluate', 'generate')
GENERATED, NONE = 'generated', 'none'  # fingerprint.outside, where it names no songs
BORROWED = 'epoch-0000'  # the checkpoint whose weights continue_from brought


def resolve_paths(cfg: omegaconf.DictConfig) -> None:
    """Make every path absolute, seen from where dora was started (a run changes its folder). In place.

    Names that are no paths stay as they are: `//sig/...`, `//reference/...`, `lumina//tiny`, a hub's.
    """
    for key in (*(f'datasource.{split}' for split in _SPLITS), 'fingerprint.catalogue', 'fingerprint.outside',
                'lumina.codes_cache', 'lumina.latents_cache'):
        value = omegaconf.OmegaConf.select(cfg, key)
        if value and value not in (GENERATED, NONE):
            omegaconf.OmegaConf.update(cfg, key, git_save.to_absolute_path(os.path.expanduser(value)))
    for key in ('continue_from', 'compression_model_checkpoint', 'fingerprint.generations_of'):
        value = omegaconf.OmegaConf.select(cfg, key)
        if value and value != NONE:
            omegaconf.OmegaConf.update(cfg, key, absolute_source(value))


def absolute_source(name: str, start: tp.Optional[Path] = None) -> str:
    """Where a model comes from, absolute if it is a path.

    Args:
        name (str): `continue_from` or `compression_model_checkpoint`.
        start (Path, optional): Folder that relative paths are seen from; where dora was started unless given.
    """
    prefix = _PRETRAINED if name.startswith(_PRETRAINED) else ''
    rest = name[len(prefix):]
    expanded = os.path.expanduser(rest)
    path = git_save.to_absolute_path(expanded) if start is None else str(start / expanded)
    if rest == 'tiny' or rest.startswith(('//', 'lumina//')) or not (_looks_like_path(rest) or Path(path).exists()):
        return name
    return prefix + path


def _looks_like_path(name: str) -> bool:
    """Whether this can be no hub's name, even if nothing is there."""
    return name.startswith(('/', '.', '~')) or name.endswith(('.th', '.bin', '.json', '.safetensors'))


def resolve_config_dset_paths(cfg: omegaconf.DictConfig) -> None:
    """Make the configuration's paths absolute, and check that the songs which the run needs are there.

    Raises:
        LuminaError: a split which the run needs is not given, or has no manifest with songs.
    """
    resolve_paths(cfg)
    for key in _needed_songs(cfg):
        value = omegaconf.OmegaConf.select(cfg, key)
        if not value:
            raise LuminaError(f"{key} is empty: name a folder with data.jsonl, or dset=lumina/embedded.")
        if not Path(value).exists():
            raise LuminaError(f"{key} is {value}, which does not exist: "
                              "build the catalogue there (lumina catalogue build) or correct the key.")
        _expect_songs(key, value)


def _needed_songs(cfg: omegaconf.DictConfig) -> tp.List[str]:
    """The keys that must name songs: those of the one stage, or of all that a training reads."""
    catalogue = ['fingerprint.catalogue'] if omegaconf.OmegaConf.select(cfg, 'fingerprint.catalogue') else []
    if cfg.execute_only == 'fingerprint':
        return catalogue or ['datasource.train']
    if cfg.execute_only in _SPLITS:
        return [f'datasource.{cfg.execute_only}']
    others = [split for split in ('evaluate', 'generate') if cfg.datasource.get(split)]
    if cfg.solver == 'lumina':  # which takes valid's songs where these are not there
        others = [split for split in others if Path(cfg.datasource[split]).exists()]
    return [*(f'datasource.{split}' for split in ('train', 'valid', *others)), *catalogue]


def _expect_songs(key: str, path: str) -> None:
    """LuminaError where there is no manifest, or one without a line. The songs themselves are not looked at."""
    from .catalogue.tracks import find_manifest
    try:
        manifest = find_manifest(path)
    except LuminaError as error:
        raise LuminaError(f"{key} is not usable: {error}") from None
    opened = gzip.open(manifest) if manifest.suffix == '.gz' else open(manifest, 'rb')
    with opened as lines:
        try:
            empty = not any(line.strip() for line in lines)
        except (OSError, EOFError) as error:
            raise LuminaError(f"{key} is not usable: {manifest} cannot be read ({error}); make it again.") from None
    if empty:
        raise LuminaError(f"{key} is not usable: the manifest {manifest} is empty; make it again from a folder with "
                          "songs.")


def check_inputs(cfg: omegaconf.DictConfig, folder: Path, runs: Path) -> None:
    """Tell bad input of the run in `folder` before anything slow begins; `runs` is where signatures are looked up.

    Makes paths absolute.

    Raises:
        LuminaError: a stage that the solver lacks, a model to start from or a codec that is not there or is damaged,
            a recipe that is not usable or not the one of the run's store.
    """
    if cfg.solver == 'lumina_unlearning':
        _check_unlearning(cfg, runs)
        return
    resolve_paths(cfg)
    stages = ['valid', 'evaluate', 'generate'] + ['fingerprint'] * (cfg.solver in ('lumina', 'lumina_dit'))
    if cfg.execute_only and cfg.execute_only not in stages:
        raise LuminaError(f"execute_only is {cfg.execute_only}, which solver={cfg.solver} cannot run alone: choose "
                          f"{', '.join(stages)}.")
    own = folder / 'checkpoint.th'
    if own.exists():  # from which the run goes on, whatever continue_from says
        if not cfg.fsdp.use:  # a sharded one is checked by audiocraft, with its other parts
            _expect_checkpoint(own, f"The run's own checkpoint {own}", "restore it, or delete it to train anew")
    elif cfg.continue_from:
        _check_source('continue_from', cfg.continue_from, runs)
    elif cfg.execute_only:
        raise LuminaError(f"execute_only={cfg.execute_only} needs a trained run, but {folder} has no checkpoint: train "
                          "it first, or take another run's weights by continue_from=//sig/<signature>.")
    codec = omegaconf.OmegaConf.select(cfg, 'compression_model_checkpoint')
    if codec:
        _check_source('compression_model_checkpoint', codec, runs, hub=cfg.solver == 'lumina')
    if cfg.solver == 'lumina':
        _check_fingerprints(cfg, folder)


def _check_unlearning(cfg: omegaconf.DictConfig, runs: Path) -> None:
    """LuminaError where a run of unlearning could not do what it is asked for."""
    for key, mend in (('execute_only', "it has one stage"), ('continue_from', "unlearning.of names the model")):
        if cfg[key]:
            raise LuminaError(f"{key} is {cfg[key]}, which solver=lumina/unlearning does not take ({mend}): leave it "
                              "empty.")
    from .unlearning.solver import read_settings
    read_settings(cfg, runs)


def _check_source(key: str, name: str, runs: Path, hub: bool = False) -> None:
    """LuminaError where a run or a path that a model shall come from is not there or holds no checkpoint.

    Args:
        key (str): The configuration's key, for the message.
        name (str): Its value. runs (Path): Folder of all runs. What only a hub can answer is left to whoever loads it.
        hub (bool): A bare name may be a hub's, or one of the package's codecs; exported folders are read, too.
    """
    told = f"{key} is {name}"
    if name.startswith(_SIG):
        sig = name[len(_SIG):]
        path = runs / sig
        if not sig or not path.is_dir():
            raise LuminaError(f"{told}, but there is no run {sig} below {runs}: check the signature, or set "
                              "LUMINA_DORA_DIR to the folder that holds it.")
    elif name.startswith('//reference/') or (hub and not _looks_like_path(name)):
        return
    elif name.startswith(_PRETRAINED):
        rest = name[len(_PRETRAINED):]
        if _looks_like_path(rest) and not Path(rest).exists():
            raise LuminaError(f"{told}, but {rest} does not exist: correct the path, or name a model of the hub.")
        return
    else:
        path = Path(name)
        if not path.exists():
            raise LuminaError(f"{told}, which does not exist: name a run by //sig/<signature>, a model of the hub by "
                              "//pretrained/<name>, or a checkpoint by its path.")
    if path.is_dir():
        if hub and not name.startswith(_SIG):
            return
        if not (path / 'checkpoint.th').is_file():
            raise LuminaError(f"{told}, but {path} has no checkpoint.th: train that run first, or name another.")
        path = path / 'checkpoint.th'
    if path.suffix == '.th':
        _expect_checkpoint(path, f"{told}, but {path}", "name another run, or train that one again", 'best_state')


def _expect_checkpoint(path: Path, told: str, mend: str, *keys: str) -> None:
    """LuminaError where a file is no checkpoint of audiocraft. Its weights are mapped, not read."""
    import torch
    try:
        state = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
        missing = [key for key in keys if key not in state]
    except Exception as error:  # whatever unpickling runs into
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LuminaError(f"{told} cannot be read as a checkpoint ({reason}): {mend}.") from None
    if missing:
        raise LuminaError(f"{told} is not a whole checkpoint (it has no {missing[0]}): {mend}.")


def recipes_of(cfg: omegaconf.DictConfig) -> tp.List[Recipe]:
    """The recipes that `fingerprint.recipes` names, with the keys of `fingerprint.recipe` that are not empty.

    Raises:
        LuminaError: an unknown preset or key, a value out of range, or two recipes of one name.
    """
    names = cfg.fingerprint.recipes
    names = [names] if isinstance(names, str) else list(names or [])
    if not names:
        raise LuminaError("fingerprint.recipes is empty: name at least one preset, e.g. fingerprint.recipes=[default].")
    overrides = _given(tp.cast(dict, omegaconf.OmegaConf.to_container(cfg.fingerprint.recipe, resolve=True) or {}))
    if (overrides.get('projection') or {}).get('block_width') == 0:
        overrides['projection']['block_width'] = None
    own = overrides.pop('name', None)
    if own is not None and (not re.fullmatch(r'\w[\w.-]*', str(own)) or own == 'codes'):
        raise LuminaError(f"fingerprint.recipe.name is {own!r}, but names a folder beside `codes`: use other letters, "
                          "digits, '.', '_' and '-'.")
    if own is not None and len(names) > 1:
        raise LuminaError(f"fingerprint.recipe.name={own} would give {len(names)} recipes ({', '.join(names)}) one "
                          "store: name a single preset in fingerprint.recipes, or leave the name empty.")
    recipes = [get_recipe(name, **overrides) for name in names]
    return recipes if own is None else [recipes[0].model_copy(update={'name': str(own)})]


def _given(tree: tp.Mapping[str, tp.Any]) -> tp.Dict[str, tp.Any]:
    """A nested mapping without what is empty."""
    return {key: _given(value) if isinstance(value, dict) else value
            for key, value in tree.items() if value not in (None, '')}


def _check_numbers(cfg: omegaconf.DictConfig) -> None:
    """LuminaError where a key that counts something does not, which would show late or as a traceback."""
    for key in ('fingerprint.batch_size', 'lumina.token_phases', 'optim.epochs', 'optim.updates_per_epoch',
                'dataset.batch_size'):
        value = omegaconf.OmegaConf.select(cfg, key)
        if not _counts(value):
            raise LuminaError(f"{key} is {value!r}, but must be a whole number of at least 1.")
    every = cfg.fingerprint.every
    listed = list(every) if omegaconf.OmegaConf.is_list(every) else [] if every in (None, '') else [every]
    if _from_start(cfg) and not cfg.continue_from:
        raise LuminaError("fingerprint.every lists 0, the weights that continue_from brings, but continue_from is "
                          "empty: name a run there, or leave the 0 out.")
    if not all(_counts(epoch) or (epoch == 0 and _from_start(cfg)) for epoch in listed):
        raise LuminaError(f"fingerprint.every is {every!r}, but must be a whole number of epochs, a list of epochs, or "
                          "empty.")


def _from_start(cfg: omegaconf.DictConfig) -> bool:
    """Whether the weights that a training starts from are to be fingerprinted, too."""
    every = cfg.fingerprint.every
    return omegaconf.OmegaConf.is_list(every) and any(epoch == 0 and epoch is not False for epoch in every)


def _counts(value: tp.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_fingerprints(cfg: omegaconf.DictConfig, folder: Path) -> None:
    """LuminaError where the run could not keep its fingerprints, which it would find out after an epoch's training."""
    recipes = recipes_of(cfg)
    _check_numbers(cfg)
    alone = cfg.execute_only == 'fingerprint'
    borrows = alone and not (folder / 'checkpoint.th').exists()
    if not alone and (cfg.execute_only or cfg.fingerprint.every in (None, '')):
        return
    if cfg.fsdp.use:
        raise LuminaError(
            "fsdp.use=true shards the weights, and fingerprints need them whole: train with fingerprint.every=null, "
            "then fingerprint by the same overrides with fsdp.use=false execute_only=fingerprint "
            f"continue_from={_SIG}{folder.name}.")
    _check_outside(cfg, recipes)
    _check_generator(cfg)
    from .passes import store_path
    from .store import FingerprintStore
    for recipe in recipes:
        path = store_path(folder, recipe.name)
        if not FingerprintStore.exists(path):
            continue
        store = FingerprintStore.open(path)
        beside = "set fingerprint.recipe.name=<something> for a second store beside it, or delete that folder"
        if store.identity.recipe_hash != recipe.fingerprint_hash:
            raise LuminaError(f"The store {path} was made with another recipe (store: {store.identity.recipe_hash}, "
                              f"yours: {recipe.fingerprint_hash}): {beside}.")
        if not borrows and not _from_start(cfg) and store.manifest.find(BORROWED) is not None:
            raise LuminaError(f"The store {path} holds the fingerprints of another run's weights (continue_from): "
                              f"{beside}.")


def _expect_unknown(outside: 'Catalogue', cfg: omegaconf.DictConfig) -> None:
    """LuminaError where an outside song is one that is trained on or fingerprinted. Only files of like size are read.
    """
    from .catalogue import Catalogue
    from .prepared import progress_bar
    by_size: tp.Dict[tp.Optional[int], tp.List[Track]] = collections.defaultdict(list)
    for song in outside:
        by_size[_size(song)].append(song)
    known: tp.Dict[tp.Optional[int], tp.Dict[str, Track]] = {}
    for key in ('datasource.train', 'fingerprint.catalogue'):
        where = omegaconf.OmegaConf.select(cfg, key)
        try:
            tracks: tp.Sequence[Track] = Catalogue.from_manifest(where) if where else ()
        except LuminaError:
            continue  # which is told where these songs are needed
        for track in progress_bar(tracks, f'outside songs or {key}', len(tracks)):
            size = _size(track)
            if size not in by_size:
                continue
            if size not in known:
                known[size] = {digest: song for song in by_size[size] if (digest := _sha256(song)) is not None}
            same = known[size].get(_sha256(track) or '')
            if same is not None:
                raise LuminaError(f"{same.path} cannot measure chance: it is song {track.id} of {key}; take it away, "
                                  "or name other songs.")


def _size(track: 'Track') -> tp.Optional[int]:
    """Of its file in bytes; None where it is not there."""
    try:
        return track.path.stat().st_size
    except OSError:
        return None


def _sha256(track: 'Track') -> tp.Optional[str]:
    """Of its file; None where it cannot be read."""
    try:
        return track.sha256
    except LuminaError:
        return None


def _check_outside(cfg: omegaconf.DictConfig, recipes: tp.Sequence[Recipe]) -> None:
    """LuminaError where the songs that chance shall be measured by are not there, too few, or not from outside."""
    where = omegaconf.OmegaConf.select(cfg, 'fingerprint.outside')
    if where in (None, '', GENERATED, NONE):
        return
    from .calibration import songs_needed
    from .outside import expect_enough
    try:
        _expect_unknown(expect_enough(where, max(songs_needed(recipe.gate.rate) for recipe in recipes)), cfg)
    except LuminaError as error:
        raise LuminaError(f"fingerprint.outside is not usable: {error}") from None


def _check_generator(cfg: omegaconf.DictConfig) -> None:
    """LuminaError where the model is not there whose generations shall measure chance."""
    name = omegaconf.OmegaConf.select(cfg, 'fingerprint.generations_of')
    if name in (None, '', NONE):
        return
    from .models import expect_model
    try:
        expect_model(name)
    except LuminaError as error:
        raise LuminaError(f"fingerprint.generations_of is not usable: {error}") from None
