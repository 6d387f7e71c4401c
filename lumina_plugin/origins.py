"""Which models a model was trained on from, and on which songs: followed through configurations on disk."""

import typing as tp
from pathlib import Path

import omegaconf
import torch

from .catalogue import Catalogue
from .errors import LuminaError
from .inputs import absolute_source
from .models import expect_model, run_config, run_folder, run_stores
from .store import FingerprintStore


class Origin(tp.NamedTuple):
    """A model that another was trained on from.

    Args:
        name (str): For provenance. source (str or path): What `models.load_musicgen` takes.
        trained_on (str, optional): Hash of the songs that it learnt itself, where known.
    """
    name: str
    source: tp.Union[str, Path]
    trained_on: tp.Optional[str] = None

    @property
    def words(self) -> str:
        return self.name + (f' (trained on {self.trained_on[:12]})' if self.trained_on else '')


def origins_of(source: tp.Optional[str], runs: Path) -> tp.List[Origin]:
    """Follow `continue_from` through the configurations of runs and exported folders.

    Args:
        source (str, optional): The key's value. runs (Path): Folder that holds runs by their signatures.
    """
    found: tp.List[Origin] = []
    seen: tp.Set[str] = set()
    while source and source not in seen:
        seen.add(source)
        exported = source.startswith('//pretrained/')
        name = source.removeprefix('//pretrained/')
        folder = runs / name.removeprefix('//sig/') if name.startswith('//sig/') else Path(name)
        folder = folder.parent if folder.is_file() else folder
        source = None
        if exported and (folder / 'state_dict.bin').is_file():
            state = torch.load(folder / 'state_dict.bin', map_location='cpu', mmap=True, weights_only=True)
            source = omegaconf.OmegaConf.create(state['xp.cfg']).get('continue_from')
            found.append(Origin(name, folder))
        elif not exported and (folder / '.hydra' / 'config.yaml').is_file():
            source = run_config(folder).get('continue_from')
            source = absolute_source(source, _started_in(folder)) if source else None
            found.append(Origin(f'dora:{folder.name}', folder, _trained_on(folder)))
        else:
            found.append(Origin(name, name))
    return found


def origin_named(name: str) -> tp.List[Origin]:
    """A model by any name that `models.load_musicgen` knows, and those that it was trained on from.

    Raises:
        LuminaError: when there is none of that name.
    """
    expect_model(name)
    run = run_folder(name)
    if run is None:
        return origins_of(f'//pretrained/{name}', Path())
    return origins_of(str(run.resolve()), run.resolve().parent)


def _trained_on(run: Path) -> tp.Optional[str]:
    """Hash of a run's own training songs: as its store has it, else from its manifest; None where that has moved."""
    for path in run_stores(run):
        return FingerprintStore.open(path).identity.trained_on_hash
    train = run_config(run).datasource.get('train')
    return songs_hash(str(_started_in(run) / train)) if train else None


def _started_in(run: Path) -> Path:
    """The folder from which relative paths of a run's configuration are seen."""
    facts = omegaconf.OmegaConf.load(run / '.hydra' / 'hydra.yaml')
    return Path(omegaconf.OmegaConf.select(facts, 'hydra.runtime.cwd'))


def songs_hash(manifest: str) -> tp.Optional[str]:
    """Hash of a catalogue, None where it is not there any more."""
    try:
        return Catalogue.from_manifest(manifest).hash
    except LuminaError:
        return None
