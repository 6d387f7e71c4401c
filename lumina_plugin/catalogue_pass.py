"""Fingerprint a catalogue with a trained model, outside of any training: which recipe, which songs, which weights."""

import logging
import os
import re
import typing as tp
from pathlib import Path

import torch

from . import compat
from .atomic import writable_folder
from .errors import LuminaError
from .inputs import GENERATED, NONE
from .models import expect_model, licence_note, load_musicgen, run_config, run_folder, run_key, run_paths, run_stores
from .recipe import BY_CHANNEL, Recipe, get_recipe, recipe_from_dict
from .store import CheckpointInfo, FingerprintStore
from .workers import Workers

if tp.TYPE_CHECKING:
    from .catalogue import Catalogue

logger = logging.getLogger(__name__)


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
        from .inputs import recipes_of
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
    whole = dotted.strip() in BY_CHANNEL
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
    joined = isinstance(value, dict) and isinstance(keys.get(last), dict) and not whole
    keys[last] = {**keys[last], **value} if joined else value


def fingerprint_model(source: tp.Union[str, Path], catalogue: tp.Optional[tp.Union[str, Path]] = None,
                      out: tp.Optional[tp.Union[str, Path]] = None, recipe: tp.Optional[Recipe] = None,
                      strict: bool = False, device: tp.Optional[str] = None, batch_size: int = 8,
                      update: bool = False, outside: tp.Optional[str] = None,
                      generations_of: tp.Optional[str] = None) -> FingerprintStore:
    """Fingerprint a catalogue with a trained model, outside of any training.

    For a dora run, every checkpoint whose weights an earlier pass kept is used (the last alone where the recipe says
    so); catalogue, recipe and output folder default to the run's own. Any other model has one checkpoint, its live
    weights. `outside` says by which songs chance is measured, as the key `fingerprint.outside` does. Under `torchrun`
    all processes share the work.

    Raises:
        LuminaError: when something needed is missing or does not fit an existing store.
    """
    with Workers.here() as workers:
        return _fingerprint_model(source, catalogue, out, recipe, strict, device, batch_size, update, outside,
                                  generations_of, workers)


def _fingerprint_model(source: tp.Union[str, Path], catalogue: tp.Optional[tp.Union[str, Path]],
                       out: tp.Optional[tp.Union[str, Path]], recipe: tp.Optional[Recipe], strict: bool,
                       device: tp.Optional[str], batch_size: int, update: bool, outside: tp.Optional[str],
                       generations_of: tp.Optional[str], workers: Workers) -> FingerprintStore:
    compat.install()
    from .catalogue import Catalogue
    from .codec import codec_hash
    from .fingerprint import Fingerprinter
    from .null_pass import outside_of_run, run_null
    from .passes import make_identity, open_or_create, run_pass, store_path
    from .prepared import estimate, prepare
    from .tokens import Tokenizer
    expect_model(source)
    folder = run_folder(source)
    if folder is None and (catalogue is None or out is None):
        raise LuminaError(f"{source} is not a dora run, so name both the songs (--catalogue) and the folder of "
                          "the new store (--out).")
    recipe = recipe or recipe_for(source)
    path = Path(out) if out is not None else store_path(tp.cast(Path, folder), recipe.name)
    _expect_recipe(path, recipe)
    songs = Catalogue.from_manifest(catalogue) if catalogue is not None else run_songs(tp.cast(Path, folder))
    if workers.count > 1 and device in (None, 'cuda') and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', workers.rank % torch.cuda.device_count())}"
    musicgen = load_musicgen(source, device)
    digest = codec_hash(musicgen.compression_model)
    known = _trained_on(folder) if folder is not None else None
    identity = make_identity(musicgen.name, musicgen.lm, digest, recipe, songs, known, licence_note(str(source)))
    if FingerprintStore.exists(path):  # told before every song is encoded, not after
        FingerprintStore.open(path).expect(codec_hash=digest, model_config_hash=identity.model_config_hash)
    cache = (folder / 'lumina' if folder is not None else writable_folder(path)) / 'codes'
    tokenizer = Tokenizer(musicgen.compression_model, digest, recipe.chunk_seconds, recipe.silence_db, cache=cache)
    writable_folder(path)
    prepared = prepare(songs, tokenizer, musicgen.lm, strict, recipe.song_phases, workers)
    if workers.first:
        open_or_create(path, identity, prepared, update)
    workers.barrier()
    beside = None
    if workers.first:
        beside = outside_of_run(folder, FingerprintStore.open(path), tokenizer, recipe, songs=outside,
                                generations_of=generations_of)
    for info, weights in _checkpoints(folder, recipe, musicgen):
        fingerprinter = Fingerprinter(musicgen.lm, recipe, weights, batch_size=batch_size)
        if workers.first:
            logger.info("%s: %s", info.name, estimate(prepared, fingerprinter))
        run_pass(fingerprinter, prepared, FingerprintStore.open(path), info, weights, workers)
        if beside is not None:
            run_null(fingerprinter, beside, FingerprintStore.open(path), info.name)
        workers.barrier()
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


def run_songs(folder: Path) -> 'Catalogue':
    """The songs that a run fingerprints, wherever its configuration leads by now.

    The songs that it was trained on are known by their hash where the run has a store; no others stand in for them.
    """
    from .catalogue import Catalogue
    key = 'fingerprint.catalogue' if run_key(folder, 'fingerprint.catalogue') else 'datasource.train'
    named, found = run_key(folder, key), manifests_of(folder, key)
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


def manifests_of(folder: Path, key: str) -> tp.List[Path]:
    """Whatever lies where a run's configuration may mean, likeliest first.

    The quickstart and the validation suite tell a run by the environment where its songs are, which the configuration
    does not keep: they are in `embedded` or in `songs` below dora's folder.
    """
    named, base = run_key(folder, key), run_key(folder, 'lumina.catalogue')
    if not named or named in (GENERATED, NONE):
        return []
    places = run_paths(folder, named)
    if base and Path(named).is_relative_to(base):
        around = folder.resolve().parent.parent
        places += [around / catalogue / Path(named).relative_to(base) for catalogue in ('embedded', 'songs')]
    return [path for path in places if path.exists()]


def _trained_on(folder: Path) -> tp.Optional[str]:
    """Hash of the songs that a run was trained on: as its stores have it, else of what its configuration names."""
    from .catalogue import Catalogue
    for path in run_stores(folder):
        known = FingerprintStore.open(path).identity.trained_on_hash
        if known is not None:
            return known
    found = manifests_of(folder, 'datasource.train')
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
