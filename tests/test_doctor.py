"""The doctor: says what is there and what is not, how to mend it, and never falls ill itself."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import huggingface_hub
import pytest

from lumina_plugin import __version__, compat, doctor


def by_topic(findings: doctor.Findings):
    return {finding.topic: finding for finding in findings}


def test_it_finds_this_machine_well():
    found = by_topic(doctor.collect())
    assert __version__ in found['lumina_plugin'].finding
    for package in ('torch', 'torchaudio', 'numpy', 'transformers', 'gradio', 'audiocraft'):
        assert found[package] == (package, metadata.version(package), True)
    assert found['packages'].ok and 'GiB' in found['memory'].finding
    assert os.environ['LUMINA_DORA_DIR'] in found['output folder'].finding
    assert found['codec'].ok and '4 codebooks' in found['codec'].finding
    assert {f'shim {shim.name}' for shim in compat.install()} <= found.keys()
    for shim in compat.active():
        assert found[f'shim {shim.name}'].finding.startswith('active: ')
    assert 'HF_HUB_OFFLINE' in found['hub models'].finding  # the tests set it
    assert all(finding.ok for topic, finding in found.items() if topic != 'memory')  # others may be using it now


def test_what_is_missing_or_too_old_is_named_with_its_mend(monkeypatch):
    real = metadata.version

    def version(package: str) -> str:
        if package in ('audiocraft', 'librosa'):
            raise metadata.PackageNotFoundError(package)
        return '4.0.0' if package == 'transformers' else real(package)
    monkeypatch.setattr(metadata, 'version', version)
    (audiocraft,) = doctor._audiocraft()
    assert not audiocraft.ok and 'pip install --no-deps audiocraft==1.3.0' in audiocraft.finding
    found = by_topic(doctor._requirements())
    assert not found['librosa'].ok and found['librosa'].finding.startswith("missing: run `pip install 'librosa")
    assert not found['transformers'].ok
    assert found['transformers'].finding.startswith("4.0.0: run `pip install 'transformers")
    assert not found['packages'].ok and found['torch'].ok


def test_another_audiocraft_is_not_taken_for_ours(monkeypatch):
    monkeypatch.setattr(metadata, 'version', lambda package: '1.4.0')
    (found,) = doctor._audiocraft()
    assert not found.ok and found.finding.startswith('1.4.0, ') and doctor.INSTALL_AUDIOCRAFT in found.finding


def test_a_probe_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch):
    def _weather() -> doctor.Findings:
        raise OSError('no window\nsecond line')

    def _silence() -> doctor.Findings:
        raise ValueError
    monkeypatch.setattr(doctor, '_PROBES', (_weather, _silence, doctor._offline))
    weather, silence, offline = doctor.collect()
    assert weather == ('weather', 'cannot be looked at: OSError: no window', False)
    assert silence.finding.endswith(': ValueError') and offline.ok


def test_without_any_package_every_line_still_comes(tmp_path: Path):
    """Python without site-packages and the bare folder: no torch, no audiocraft, no metadata."""
    script = f'import sys; sys.path.insert(0, {str(Path(doctor.__file__).parent.parent)!r}); ' \
             'from lumina_plugin.doctor import collect; [print(t, "|", f, "|", ok) for t, f, ok in collect()]'
    done = subprocess.run([sys.executable, '-S', '-E', '-c', script], cwd=tmp_path, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {line.split(' | ')[0]: line for line in done.stdout.splitlines()}
    assert 'pip install --no-deps audiocraft==1.3.0' in lines['audiocraft'] and lines['audiocraft'].endswith('False')
    assert 'torch' in lines['device'] and lines['device'].endswith('False')
    assert lines['memory'].endswith('True') and lines['offline'].endswith('True')


@pytest.mark.parametrize('kind', ['file in the way', 'not there yet', 'made by a run'])
def test_the_output_folder(kind, tmp_path, monkeypatch):
    monkeypatch.delenv('AUDIOCRAFT_DORA_DIR', raising=False)
    folder = tmp_path / 'a' / 'b'
    monkeypatch.setenv('LUMINA_DORA_DIR', str(folder))
    if kind == 'file in the way':
        (tmp_path / 'a').write_text('')
    elif kind == 'made by a run':
        (folder / 'xps' / '01234567' / '.hydra').mkdir(parents=True)
        (folder / 'xps' / '01234567' / '.hydra' / 'config.yaml').write_text('')
    (found,) = doctor._output_folder()
    assert str(folder) in found.finding and 'LUMINA_DORA_DIR' in found.finding
    assert found.ok == (kind != 'file in the way')
    assert ('1 run,' in found.finding) == (kind == 'made by a run')
    assert folder.exists() == (kind == 'made by a run')  # looking changes nothing


def test_little_memory_is_said(monkeypatch):
    monkeypatch.setattr(doctor, '_spare_memory', lambda: 2 ** 30)
    (found,) = doctor._memory()
    assert not found.ok and found.finding.startswith('1.0 GiB available; the quickstart needs 4 GiB')
    monkeypatch.setattr(doctor, '_spare_memory', lambda: None)
    assert doctor._memory()[0].ok


def test_a_hub_model_in_the_cache_is_seen(monkeypatch, tmp_path):
    """A cache laid out as the hub's client does."""
    model = tmp_path / 'models--facebook--musicgen-small'
    (model / 'refs').mkdir(parents=True)
    (model / 'refs' / 'main').write_text('f00d')
    (model / 'snapshots' / 'f00d').mkdir(parents=True)
    real = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda *args: real(*args, cache_dir=tmp_path))
    for index, name in enumerate(doctor.HUB_FILES):
        assert ' is not in ' in doctor._hub()[0].finding, index
        (model / 'snapshots' / 'f00d' / name).write_bytes(b'')
    assert ' is in ' in doctor._hub()[0].finding
