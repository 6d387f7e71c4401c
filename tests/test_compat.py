"""Shims: there where they are needed, absent where the real package works. Each case is a process of its own, because
what is under test is the state of `sys.modules`."""

import json
import os
import subprocess
import sys
import textwrap
import typing as tp
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, *extra_path: Path, **env: str) -> tp.Any:
    """Run `code` in a fresh python that finds `extra_path` first; return the JSON that it prints last."""
    path = os.pathsep.join([*map(str, extra_path), str(ROOT)])
    # Tests in this process may have installed the shims, which name audiocraft's configuration in the environment.
    clean = {key: value for key, value in os.environ.items() if key != 'AUDIOCRAFT_CONFIG'}
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True,
                          env={**clean, 'PYTHONPATH': path, **env})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def write(folder: Path, files: tp.Mapping[str, str]) -> None:
    """Write text files below `folder`."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_importing_compat_imports_nothing_heavy():
    loaded = run("""
        import sys, json
        from lumina_plugin import compat
        print(json.dumps([m for m in ('torch', 'audiocraft', 'omegaconf', 'torchaudio') if m in sys.modules]
                         + [s.name for s in compat.active()]))""")
    assert loaded == []


def test_install_twice_changes_nothing():
    same = run("""
        import sys, json, os
        from lumina_plugin import compat
        first = compat.install()
        state = dict(sys.modules), list(sys.meta_path), dict(os.environ)
        second = compat.install()
        now = dict(sys.modules), list(sys.meta_path), dict(os.environ)
        print(json.dumps([first == second, state == now, len(first)]))""")
    assert same[:2] == [True, True] and same[2] >= 6


def test_stub_xformers_attends_like_plain_attention():
    worst = run("""
        import json, torch
        from lumina_plugin import compat
        q, k, v = torch.randn(3, 2, 7, 4, 8)  # [B, T, H, D] each
        def plain(mask):
            scores = torch.einsum('bihd,bjhd->bhij', q, k) / 8 ** .5
            if mask: scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
            return torch.einsum('bhij,bjhd->bihd', scores.softmax(-1), v)
        f = compat._memory_efficient_attention
        print(json.dumps([(f(q, k, v) - plain(False)).abs().max().item(),
                          (f(q, k, v, attn_bias=compat.LowerTriangularMask()) - plain(True)).abs().max().item()]))""")
    assert max(worst) < 1e-5


def test_working_packages_are_left_alone(tmp_path: Path):
    write(tmp_path, {'xformers/__init__.py': '', 'xformers/ops.py': 'unbind = "the real one"',
                     'torchaudio/__init__.py': 'real = True', 'audiocraft/__init__.py': '',
                     'config/config.yaml': 'a: 1', 'bin/ffmpeg': '#!/bin/sh\n'})
    ffmpeg = tmp_path / 'bin' / 'ffmpeg'
    ffmpeg.chmod(0o755)
    result = run("""
        import json, os
        from lumina_plugin import compat
        shims = {s.name: s.active for s in compat.install()}
        import xformers.ops, torchaudio
        print(json.dumps([shims, xformers.ops.unbind, torchaudio.real, 'AUDIOCRAFT_CONFIG' in os.environ]))""",
                 tmp_path, PATH=f"{ffmpeg.parent}{os.pathsep}{os.environ['PATH']}")
    shims, unbind, real, config_set = result
    assert not any(shims[name] for name in ('xformers', 'torchaudio', 'audio_write', 'train'))
    assert unbind == 'the real one' and real and not config_set


def test_broken_packages_are_stood_in_for(tmp_path: Path):
    """xformers built for another torch, torchaudio whose extension does not load, no ffmpeg, no config."""
    write(tmp_path, {
        'xformers/__init__.py': '', 'xformers/ops.py': 'raise OSError("wrong ABI")', 'audiocraft/__init__.py': '',
        'torchaudio/__init__.py': 'from . import _extension\nfrom . import functional',
        'torchaudio/_extension/__init__.py': 'raise OSError("undefined symbol")',
        'torchaudio/functional.py': 'from ._extension import fail_if_no_align\n'
                                    '@fail_if_no_align\ndef align(): return 1\ndef plain(): return 2'})
    shims, plain, aligned, unbind = run("""
        import json
        from lumina_plugin import compat
        shims = {s.name: [s.active, s.reason] for s in compat.install()}
        import torch, torchaudio, xformers.ops
        try: torchaudio.functional.align(); aligned = True
        except RuntimeError: aligned = False
        print(json.dumps([shims, torchaudio.functional.plain(), aligned, xformers.ops.unbind is torch.unbind]))""",
                                        tmp_path, PATH=str(tmp_path / 'nowhere'))
    assert all(shims[name][0] for name in ('xformers', 'torchaudio', 'audio_write', 'train'))
    assert 'wrong ABI' in shims['xformers'][1]
    assert plain == 2 and not aligned and unbind


def test_the_users_own_audiocraft_config_is_kept(tmp_path: Path):
    write(tmp_path, {'audiocraft/__init__.py': ''})
    kept = run("""
        import json, os
        from lumina_plugin import compat
        compat.install()
        print(json.dumps(os.environ['AUDIOCRAFT_CONFIG']))""", tmp_path, AUDIOCRAFT_CONFIG='/mine.yaml')
    assert kept == '/mine.yaml'


def test_real_audiocraft_runs_under_the_shims(tmp_path: Path):
    """The real thing: audiocraft imports, reads and writes audio without ffmpeg, finds its teams' file under any login
    name, resolves `audiocraft.train`, and a checkpoint with a configuration loads with `weights_only`."""
    result = run(f"""
        import json, sys, warnings
        warnings.simplefilter('error', FutureWarning)  # notices we silence must not come back
        from lumina_plugin import compat
        compat.install()
        import torch, omegaconf
        from audiocraft.data.audio import audio_read, audio_write
        from audiocraft.environment import AudioCraftEnvironment
        from audiocraft.modules.conv import NormConv1d
        NormConv1d(1, 1, 1, norm='weight_norm')
        wav = torch.sin(torch.arange(16000) / 10)[None] * .5
        errors = []
        for form in ('wav', 'flac', 'ogg', 'mp3'):
            path = audio_write(r'{tmp_path}/a', wav, 16000, format=form, normalize=False)
            back, rate = audio_read(path, seek_time=.25, duration=.5)
            assert rate == 16000 and back.shape[0] == 1, (form, rate, back.shape)
            errors.append(float((back[0, :4000] - wav[0, 4000:8000]).abs().max()) if form in ('wav', 'flac') else 0.)
        left = [p.name for p in __import__('pathlib').Path(r'{tmp_path}').iterdir() if 'part' in p.name]
        state = {{'xp.cfg': omegaconf.OmegaConf.create({{'a': [1, 2.5, 'x', None, True], 'b': {{'c': '${{a}}'}}}})}}
        torch.save(state, r'{tmp_path}/c.th')
        cfg = torch.load(r'{tmp_path}/c.th', 'cpu', weights_only=True)['xp.cfg']
        AudioCraftEnvironment.apply_dataset_mappers('x')
        import audiocraft.train, lumina_plugin.train
        print(json.dumps([max(errors), left, cfg.b.c[2], audiocraft.train is lumina_plugin.train]))""",
                 PATH=str(tmp_path / 'nowhere'), USER='', LOGNAME='')
    worst, left, value, same = result
    assert worst < 1e-3 and left == [] and value == 'x' and same
