"""What all tests share: a world of their own (seeds, folders, no hub); `left_out` says what was skipped."""

import os
import random
import shutil
import sys
import tempfile

import hypothesis
import numpy as np
import pytest

from . import left_out
from .page import browser, served  # noqa: F401  (fixtures of all modules)
from .project import project, studio  # noqa: F401  (fixtures of all modules)

hypothesis.settings.register_profile('lumina', deadline=None, derandomize=left_out.CI)
hypothesis.settings.load_profile('lumina')


def pytest_configure(config: pytest.Config) -> None:
    """Before anything of ours is imported: runs go to a folder of their own, and no hub is ever asked."""
    config.pluginmanager.register(left_out)
    outputs = tempfile.mkdtemp(prefix='lumina-tests-')
    config.add_cleanup(lambda: shutil.rmtree(outputs, ignore_errors=True))
    for name in ('AUDIOCRAFT_DORA_DIR', 'AUDIOCRAFT_CONFIG', 'LUMINA_CATALOGUE', 'DORA_PACKAGE'):
        os.environ.pop(name, None)
    os.environ.update(LUMINA_DORA_DIR=outputs, HF_HUB_OFFLINE='1', MPLBACKEND='Agg', GRADIO_ANALYTICS_ENABLED='False')


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(2036)
    np.random.seed(2036)
    if 'torch' in sys.modules:
        sys.modules['torch'].manual_seed(2036)
