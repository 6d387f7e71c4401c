"""What all tests share: a world of their own (seeds, folders, no hub) and an honest word about what was left out.

Tests that need the real recordings ask for the fixture `real_recordings`; those that need a GPU are marked `gpu`.
Without, they are skipped, and pytest's last lines say so. Where CI=true a skip is a failure, a missing GPU aside.
"""

import collections
import os
import random
import shutil
import sys
import tempfile
import typing as tp
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from .project import project, studio  # noqa: F401  (fixtures of all modules)

ROOT = Path(__file__).resolve().parent.parent
CI = os.environ.get('CI') == 'true'
NO_RECORDINGS = "the real recordings are not here (LUMINA_RECORDINGS names their folder)"
NO_GPU = "no CUDA device"
ALLOWED_IN_CI = (NO_GPU,)

hypothesis.settings.register_profile('lumina', deadline=None, derandomize=CI)
hypothesis.settings.load_profile('lumina')


def recordings_folder() -> tp.Optional[Path]:
    """LUMINA_RECORDINGS, or the folder that developers of this project have beside their checkout."""
    named = os.environ.get('LUMINA_RECORDINGS')
    folder = Path(named) if named else ROOT.parent / 'shared' / 'recordings'
    return folder.resolve() if folder.is_dir() else None


def pytest_configure(config: pytest.Config) -> None:
    """Before anything of ours is imported: runs go to a folder of their own, and no hub is ever asked."""
    outputs = tempfile.mkdtemp(prefix='lumina-tests-')
    config.add_cleanup(lambda: shutil.rmtree(outputs, ignore_errors=True))
    for name in ('AUDIOCRAFT_DORA_DIR', 'AUDIOCRAFT_CONFIG', 'LUMINA_CATALOGUE', 'DORA_PACKAGE'):
        os.environ.pop(name, None)
    os.environ.update(LUMINA_DORA_DIR=outputs, HF_HUB_OFFLINE='1', MPLBACKEND='Agg', GRADIO_ANALYTICS_ENABLED='False')


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('gpu') is not None:
        import torch
        if not torch.cuda.is_available():
            pytest.skip(NO_GPU)


@pytest.fixture(scope='session')
def real_recordings() -> Path:
    """Folder of the eight real recordings (Ogg, 44.1 kHz); without it the test is skipped."""
    folder = recordings_folder()
    if folder is None:
        pytest.skip(NO_RECORDINGS)
    return folder


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(2036)
    np.random.seed(2036)
    if 'torch' in sys.modules:
        sys.modules['torch'].manual_seed(2036)


# --- what was left out ------------------------------------------------------------------------------------------------

def _left_out(config: pytest.Config) -> tp.Dict[str, int]:
    """Skipped tests by reason."""
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    reports = reporter.stats.get('skipped', []) if reporter is not None else []
    reasons = (report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr) for report in reports)
    return collections.Counter(reason.removeprefix('Skipped: ') for reason in reasons)


def _forbidden(config: pytest.Config) -> tp.Dict[str, int]:
    return {reason: count for reason, count in _left_out(config).items() if CI and reason not in ALLOWED_IN_CI}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _forbidden(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: tp.Any, config: pytest.Config) -> None:
    left_out, forbidden = _left_out(config), _forbidden(config)
    terminalreporter.section('left out')
    for reason, count in left_out.items():
        verdict = ' - not allowed where CI=true' if reason in forbidden else ''
        terminalreporter.write_line(f"{count} {'test' if count == 1 else 'tests'}: {reason}{verdict}")
    if not left_out:
        terminalreporter.write_line('nothing')
