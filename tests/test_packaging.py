"""The wheel: everything inside that a run needs, nothing outside its own name, and it works in an empty folder."""

import email.message
import email.parser
import os
import re
import shutil
import subprocess
import sys
import typing as tp
import zipfile
from pathlib import Path

import pytest

from lumina_plugin import __version__

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ('lumina_plugin', 'config', 'grids', 'setup.py', 'pyproject.toml', 'README.md', 'MANIFEST.in')
SHIPPED_KINDS = {'.py', '.yaml', '.j2', '.css', '.js', '.json', '.safetensors', '.md'}


def run(*command: tp.Union[str, Path], cwd: Path, **env: str) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**os.environ, **env}, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope='session')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp('wheel')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index',
        '-w', folder / 'dist', '.', cwd=folder)
    (built,) = (folder / 'dist').glob('*.whl')
    return built


@pytest.fixture(scope='session')
def names(wheel: Path) -> tp.List[str]:
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope='session')
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def test_every_file_of_the_package_its_config_and_its_grids_is_inside(names):
    homes = {'lumina_plugin': 'lumina_plugin', 'config': 'lumina_plugin/config', 'grids': 'lumina_plugin/grids'}
    wanted = {f'{home}/{path.relative_to(ROOT / folder).as_posix()}' for folder, home in homes.items()
              for path in (ROOT / folder).rglob('*') if path.suffix in SHIPPED_KINDS}
    assert len(wanted) > 80
    assert wanted - set(names) == set()


def test_nothing_is_installed_under_a_foreign_name(names):
    assert {name.split('/')[0] for name in names} == {'lumina_plugin', f'lumina_plugin-{__version__}.dist-info'}
    assert not any(part in name for name in names for part in ('/tests/', '__pycache__', '/demo/', 'outputs/'))


def test_metadata_has_the_version_the_pythons_and_no_pin_that_audiocraft_would_need(metadata, wheel):
    assert metadata['Name'] == 'lumina_plugin' and metadata['Version'] == __version__
    assert set(metadata['Requires-Python'].split(',')) == {'>=3.11', '<3.14'}
    required = [line for line in metadata.get_all('Requires-Dist') if 'extra ==' not in line]
    assert all(re.fullmatch(r'[\w.-]+<[\d.]+,>=[\d.]+', line) for line in required), required
    assert not {'audiocraft', 'xformers', 'torchvision'} & {re.split(r'[<>=]', line)[0] for line in required}
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('entry_points.txt'))
        assert 'lumina = lumina_plugin.cli:main' in archive.read(name).decode()


def test_the_environment_fits_the_requirements(metadata):
    from importlib.metadata import version

    from packaging.requirements import Requirement
    required = [Requirement(line) for line in metadata.get_all('Requires-Dist') if 'extra ==' not in line]
    assert [str(req) for req in required if not req.specifier.contains(version(req.name), prereleases=True)] == []


def test_the_installed_wheel_runs_in_an_empty_folder(wheel, tmp_path):
    """Command line, dora's run and dora's grid by the wheel's own files alone."""
    installed, empty = tmp_path / 'installed', tmp_path / 'empty'
    empty.mkdir()
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', installed, wheel,
        cwd=tmp_path)
    env = dict(PYTHONPATH=str(installed), LUMINA_DORA_DIR=str(tmp_path / 'runs'), COLUMNS='200')
    script = ('import lumina_plugin.train as t; from lumina_plugin import compat; print(t.__file__); '
              'print(compat.config_dir()); '
              'print("epochs", t.main.get_xp(["solver=lumina/quickstart"]).cfg.optim.epochs)')
    *_, module, config, epochs = run(sys.executable, '-c', script, cwd=empty, **env).splitlines()
    assert Path(module) == installed / 'lumina_plugin' / 'train.py'
    assert Path(config) == installed / 'lumina_plugin' / 'config'
    assert re.fullmatch(r'epochs \d+', epochs)

    grid = run(sys.executable, '-m', 'dora', '-P', 'lumina_plugin', 'grid', 'lumina.quickstart', '--dry_run', '--init',
               cwd=empty, **env)
    assert 'Base name:  solver=lumina/quickstart' in grid and 'seed=3' in grid
    assert list((tmp_path / 'runs' / 'xps').glob('*/.argv.json')), grid

    assert 'Usage: lumina' in run(sys.executable, installed / 'bin' / 'lumina', '--help', cwd=empty, **env)
    assert list(empty.iterdir()) == []
