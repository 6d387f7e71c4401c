"""What `lumina doctor` says: what is installed, what was patched, and what works here, each with its mend.

Nothing here raises: whatever cannot be looked at is a finding itself.
"""

import importlib
import os
import platform
import re
import shutil
import sys
import typing as tp
from importlib import metadata
from pathlib import Path

from . import compat
from .errors import LuminaError

PACKAGE = 'lumina_plugin'
AUDIOCRAFT = 'audiocraft==1.3.0'
INSTALL_AUDIOCRAFT = f'pip install --no-deps {AUDIOCRAFT}'
HUB_MODEL = 'facebook/musicgen-small'
HUB_FILES = ('state_dict.bin', 'compression_state_dict.bin')
NAMED = ('torch', 'torchaudio', 'numpy', 'transformers', 'gradio', 'dora-search', 'hydra-core')
SPARE_MEMORY, SPARE_DISK = 4 * 2 ** 30, 2 * 2 ** 30  # what the quickstart needs, bytes


class Finding(tp.NamedTuple):
    """One line: what was looked at, what was found (and how to mend it), and whether all is well."""
    topic: str
    finding: str
    ok: bool = True


Findings = tp.List[Finding]


def collect() -> Findings:
    """Look at everything. The shims are installed and audiocraft is imported, which takes several seconds."""
    return [finding for probe in _PROBES for finding in _probed(probe)]


def _probed(probe: tp.Callable[[], Findings]) -> Findings:
    """What a probe finds; where it breaks, that is the finding."""
    topic = probe.__name__.strip('_').replace('_', ' ')
    try:
        return probe()
    except Exception as error:
        return [Finding(topic, f'cannot be looked at: {_named(error)}', False)]


def _named(error: BaseException) -> str:
    if isinstance(error, LuminaError):  # says itself what to do
        return str(error)
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


# --- what is installed ------------------------------------------------------------------------------------------------

def _python() -> Findings:
    from . import __version__
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    mend = '' if fits else ', but 3.11 to 3.13 is needed: make an environment with one of these'
    return [Finding(PACKAGE, f'{__version__} in {Path(__file__).parent}'),
            Finding('python', f'{platform.python_version()} on {platform.system()} {platform.machine()}{mend}', fits)]


def _version(package: str) -> tp.Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> Findings:
    """The packages that setup.py asks for: the ones people ask about by version, and every one that does not fit."""
    from packaging.requirements import Requirement
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return [Finding('packages', f'{PACKAGE} is not installed, only its folder is there: run `make install`', False)]
    wanted = {req.name: req for req in map(Requirement, lines) if req.marker is None or req.marker.evaluate()}
    unfit = [req for name, req in wanted.items()
             if not req.specifier.contains(_version(name) or '0', prereleases=True) or _version(name) is None]
    found = [Finding(name, str(_version(name))) for name in NAMED if name in wanted and wanted[name] not in unfit]
    for req in unfit:
        mend = f"pip install '{req.name}{req.specifier}'"
        found.append(Finding(req.name, f"{_version(req.name) or 'missing'}: run `{mend}`", False))
    return found + [Finding('packages', f'{len(wanted) - len(unfit)} of {len(wanted)} requirements are met', not unfit)]


def _audiocraft() -> Findings:
    version = _version('audiocraft')
    if version is None:
        why = 'without --no-deps it asks for versions of torch and av that cannot be installed'
        return [Finding('audiocraft', f'missing: run `{INSTALL_AUDIOCRAFT}` ({why})', False)]
    if f'audiocraft=={version}' != AUDIOCRAFT:
        mend = f'this was made for {AUDIOCRAFT}: run `{INSTALL_AUDIOCRAFT}`'
        return [Finding('audiocraft', f'{version}, but {mend}', False)]
    compat.install()
    for module in ('audiocraft.models', 'audiocraft.solvers'):
        importlib.import_module(module)
    return [Finding('audiocraft', version)]


def _shims() -> Findings:
    shims = compat.install()
    return [Finding(f'shim {shim.name}', f"{'active' if shim.active else 'not needed'}: {shim.reason}")
            for shim in shims]


# --- the machine ------------------------------------------------------------------------------------------------------

def _device() -> Findings:
    import torch
    threads = f'{torch.get_num_threads()} threads of {os.cpu_count()} cores'
    if not torch.cuda.is_available():
        why = 'this torch is a CPU build' if torch.version.cuda is None else 'torch sees no NVIDIA GPU'
        return [Finding('device', f'cpu, {threads} ({why}; a CPU is enough for the quickstart)')]
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    named = '; '.join(f'cuda:{index} {card.name}, {_gib(card.total_memory)}' for index, card in enumerate(cards))
    return [Finding('device', f'{named}; cpu, {threads}')]


def _memory() -> Findings:
    spare = _spare_memory()
    if spare is None:
        return [Finding('memory', 'this system does not say how much there is; the quickstart needs 4 GiB')]
    enough = spare >= SPARE_MEMORY
    mend = '' if enough else '; the quickstart needs 4 GiB: close something, or train fewer songs at once'
    return [Finding('memory', f'{_gib(spare)} available{mend}', enough)]


def _spare_memory() -> tp.Optional[int]:
    """Bytes that can be had without swapping, None where the system does not tell (it is not Linux)."""
    try:
        found = re.search(r'^MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _output_folder() -> Findings:
    """Where dora's runs go, and whether that can be written and has space."""
    named = next((name for name in ('AUDIOCRAFT_DORA_DIR', 'LUMINA_DORA_DIR') if os.environ.get(name)), None)
    folder = Path(os.environ[named] if named else 'outputs').absolute()
    how = f'from {named}' if named else 'LUMINA_DORA_DIR names another'
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        mend = 'set LUMINA_DORA_DIR to one that can'
        return [Finding('output folder', f'{folder} cannot be written ({how}): {mend}', False)]
    free = shutil.disk_usage(place).free
    enough = free >= SPARE_DISK
    mend = '' if enough else '; the quickstart needs 2 GiB: make room, or set LUMINA_DORA_DIR'
    runs = len(list((folder / 'xps').glob('*/.hydra/config.yaml')))
    counted = f"{runs} {'run' if runs == 1 else 'runs'}"
    return [Finding('output folder', f'{folder} ({how}), {counted}, {_gib(free)} free{mend}', enough)]


def _gib(size: float) -> str:
    return f'{size / 2 ** 30:.1f} GiB'


# --- what works -------------------------------------------------------------------------------------------------------

def _codec() -> Findings:
    from .codec import load_codec
    codec: tp.Any = load_codec()
    form = f'{codec.num_codebooks} codebooks of {codec.cardinality}, {codec.frame_rate:g} frames/s'
    return [Finding('codec', f'the one in the package loads: {codec.sample_rate} Hz, {form}')]


def _offline() -> Findings:
    return [Finding('offline', 'everything works without network on models trained here and on exported folders; '
                               'only hub models download')]


def _hub() -> Findings:
    from huggingface_hub import constants, try_to_load_from_cache
    here = [name for name in HUB_FILES if isinstance(try_to_load_from_cache(HUB_MODEL, name), str)]
    if len(here) == len(HUB_FILES):
        return [Finding('hub models', f'{HUB_MODEL} is in {constants.HF_HUB_CACHE}')]
    if constants.HF_HUB_OFFLINE:
        how = 'HF_HUB_OFFLINE is set, so that it will not be fetched: unset it once to use hub models'
    else:
        how = 'it will be fetched when it is first asked for (not needed for the quickstart)'
    return [Finding('hub models', f'{HUB_MODEL} is not in {constants.HF_HUB_CACHE}; {how}')]


_PROBES: tp.Tuple[tp.Callable[[], Findings], ...] = (
    _python, _requirements, _audiocraft, _shims, _device, _memory, _output_folder, _codec, _offline, _hub)
