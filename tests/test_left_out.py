"""The word about what was left out, and that CI=true lets no test be left out silently."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest

def test_runs(): pass
def test_hears(real_recordings): assert real_recordings.is_dir()
@pytest.mark.gpu
def test_on_a_gpu(): pass
"""


@pytest.mark.parametrize('ci, there', [(False, False), (True, False), (True, True)])
def test_left_out(tmp_path: Path, ci: bool, there: bool):
    suite, recordings = tmp_path / 'suite', tmp_path / 'recordings'
    suite.mkdir()
    (suite / 'pytest.ini').write_text('[pytest]\naddopts = --strict-markers -p no:cacheprovider\nmarkers = gpu: x\n')
    (suite / 'test_it.py').write_text(SUITE)
    if there:
        recordings.mkdir()
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parent), 'LUMINA_RECORDINGS': str(recordings),
           'CI': str(ci).lower(), 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run([sys.executable, '-m', 'pytest', '-p', 'left_out', suite], cwd=suite, env=env, check=False,
                          capture_output=True, text=True)
    assert done.returncode == (1 if ci and not there else 0), done.stdout + done.stderr
    end = done.stdout[done.stdout.index('= left out ='):]
    assert '1 test: no CUDA device\n' in end
    assert ('the real recordings are not here' in end) == (not there)
    assert ('not allowed where CI=true' in end) == (ci and not there)
    assert f'{2 if there else 1} passed' in end.splitlines()[-1]
