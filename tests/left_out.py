"""A pytest plugin with an honest word about what was left out.

Tests that need the real recordings, the extra `peers` or a browser ask for the fixture `real_recordings`, `peers` or
`browser`; those that need a GPU are marked `gpu`. Without, they are skipped, and pytest's last lines say so. Where
CI=true a skip is a failure, a missing GPU or extra aside.
"""

import collections
import os
import typing as tp
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CI = os.environ.get('CI') == 'true'
NO_RECORDINGS = "the real recordings are not here (LUMINA_RECORDINGS names their folder)"
NO_GPU = "no CUDA device"
NO_PEERS = "the extra 'peers' is not installed (make validate-peers)"
NO_BROWSER = "no Chromium (Debian: apt-get install chromium; LUMINA_BROWSER names another)"
ALLOWED_IN_CI = (NO_GPU, NO_PEERS)


def recordings_folder() -> tp.Optional[Path]:
    """LUMINA_RECORDINGS, or the folder that developers of this project have beside their checkout."""
    named = os.environ.get('LUMINA_RECORDINGS')
    folder = Path(named) if named else ROOT.parent / 'shared' / 'recordings'
    return folder.resolve() if folder.is_dir() else None


@pytest.fixture(scope='session')
def real_recordings() -> Path:
    """Folder of the eight real recordings (Ogg, 44.1 kHz); without it the test is skipped."""
    folder = recordings_folder()
    if folder is None:
        pytest.skip(NO_RECORDINGS)
    return folder


@pytest.fixture(scope='session')
def peers() -> None:
    """The libraries of other methods; without them the test is skipped."""
    from lumina_plugin.validation.peers import missing_peers
    if missing_peers():
        pytest.skip(NO_PEERS)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('gpu') is not None:
        import torch
        if not torch.cuda.is_available():
            pytest.skip(NO_GPU)


def _left_out(config: pytest.Config) -> tp.Dict[str, int]:
    """Skipped tests by reason."""
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    reports = reporter.stats.get('skipped', []) if reporter is not None else []
    reasons = (report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr) for report in reports)
    return collections.Counter(reason.removeprefix('Skipped: ') for reason in reasons)


def _forbidden(config: pytest.Config) -> tp.Set[str]:
    return {reason for reason in _left_out(config) if CI and reason not in ALLOWED_IN_CI}


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
