"""Fisher information on disk, beside the checkpoint that it is of; that of another checkpoint is refused."""

import contextlib
import errno
import hashlib
import json
import logging
import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import safetensors.torch
from filelock import FileLock, Timeout

from ..atomic import write_atomic
from ..errors import LuminaError
from ..hashing import codes_hash, state_hash
from .fisher import Fisher, fisher_from

logger = logging.getLogger(__name__)

FORMAT = 'lumina-fisher-2'
FOLDER = 'fisher'
POLL = 0.5  # seconds between two looks at whether another process is done


def facts_of(kind: str, layers: str, objective: str, state: str, songs: str,
             extra: tp.Optional[tp.Dict[str, tp.Any]] = None) -> tp.Dict[str, tp.Any]:
    """All that Fisher information depends on.

    Args:
        state (str): Hash of the checkpoint's weights. songs (str): Their `songs_hash`.
        extra (dict, optional): More, ready for JSON, such as timesteps and noise of a diffusion.
    """
    return {'kind': kind, 'layers': layers, 'objective': objective, 'checkpoint': state, 'songs': songs,
            'extra': extra or {}}


def songs_hash(songs: tp.Sequence[tp.Any]) -> str:
    """SHA-256 over ids, codes (or latents), conditions and what counts in them."""
    digest = hashlib.sha256()
    for song in songs:
        digest.update(song.id.encode() + b'\0')
        for example in song.examples:
            digest.update(_example_hash(example).encode())
    return digest.hexdigest()


def _example_hash(example: tp.Any) -> str:
    if hasattr(example, 'codes'):
        return f'{codes_hash(example.codes)} {example.start} {example.stop} {_counted(example)} ' \
               f'{getattr(example.attributes, "text", None)}'
    return f'{state_hash({"latents": example.latents})} {example.valid_frames} {_counted(example)} {example.text} ' \
           f'{example.start} {example.seconds}'


def _counted(example: tp.Any) -> tp.Optional[tp.List[bool]]:
    return None if example.counted is None else example.counted.tolist()


def path_of(folder: Path, facts: tp.Mapping[str, tp.Any]) -> Path:
    """Where Fisher information with these facts lies below a run's folder."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return folder / FOLDER / f"{facts['kind']}-{digest}.safetensors"


@contextlib.contextmanager
def alone(path: Path) -> tp.Iterator[None]:
    """Keep other processes that want to make the same file waiting; whoever waited looks for it again.

    The lock is the operating system's, so that it ends with its holder, however that ends.

    Raises:
        LuminaError: where nothing can be written.
    """
    lock = FileLock(path.parent / f'.{path.name}.lock')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("Another process makes %s; waiting for it.", path)
            lock.acquire(poll_interval=POLL)
    except (NotImplementedError, OSError) as error:  # the former is what older filelocks make of ENOSYS
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise LuminaError(f"Cannot write into {path.parent} ({error.strerror}); make it writable.") from None
        logger.warning("The file system of %s knows no locks: processes that want the same file each make it.",
                       path.parent)
    try:
        yield
    finally:
        if path.is_file():  # nobody will make it again
            with contextlib.suppress(OSError):  # Windows removes no open file
                Path(lock.lock_file).unlink()
        lock.release()


def save_fisher(path: Path, fisher: Fisher, facts: tp.Mapping[str, tp.Any]) -> Path:
    """Write it whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in fisher.tensors().items()}
    return write_atomic(path, safetensors.torch.save(tensors, {'format': FORMAT, 'facts': json.dumps(dict(facts))}))


def load_fisher(path: Path, facts: tp.Mapping[str, tp.Any]) -> Fisher:
    """Read it.

    Raises:
        LuminaError: when it is none, or of another checkpoint, other songs, layers or another objective.
    """
    try:
        with safetensors.safe_open(str(path), 'pt') as file:
            header = file.metadata() or {}
            if header.get('format') != FORMAT:
                raise LuminaError(f"{path} holds no Fisher information of this version; make it with `lumina unlearn "
                                  "fisher`.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        known = json.loads(header['facts'])
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise LuminaError(f"{path} cannot be read as Fisher information ({str(error).splitlines()[0]}); make it again "
                          "with `lumina unlearn fisher`.") from error
    words = {'checkpoint': 'another checkpoint', 'songs': 'other songs', 'layers': 'other layers',
             'objective': 'another objective', 'kind': 'another kind', 'extra': 'other settings'}
    for key, what in words.items():
        if known.get(key) != facts[key]:
            raise LuminaError(f"The Fisher information in {path} is of {what}; make that of this model with `lumina "
                              "unlearn fisher`.")
    return fisher_from(known['kind'], tensors)


def save_losses(path: Path, losses: npt.NDArray[np.float64], facts: tp.Mapping[str, tp.Any]) -> Path:
    """Losses of the songs before anything is unlearnt, [N]."""
    header = {'format': FORMAT, 'facts': json.dumps(dict(facts))}
    return write_atomic(path, safetensors.numpy.save({'losses': np.ascontiguousarray(losses)}, header))


def load_losses(path: Path, facts: tp.Mapping[str, tp.Any]) -> tp.Optional[npt.NDArray[np.float64]]:
    """What `save_losses` wrote; None where there is nothing, or nothing that can be read."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(str(path), 'np') as file:
            if json.loads((file.metadata() or {})['facts']) == dict(facts):
                return tp.cast('npt.NDArray[np.float64]', file.get_tensor('losses'))
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        logger.warning("%s is damaged (%s) and is made again.", path, str(error).splitlines()[0])
    return None
