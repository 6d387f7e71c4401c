"""The command line: exit codes, one clear sentence, help that teaches."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lumina_plugin.cli import main

from .tiny import write_songs


def run(capsys, *argv: str):
    """Exit code, standard output and error of a command, in this process."""
    try:
        main([str(arg) for arg in argv])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize('argv', [[], ['quickstart'], ['catalogue'], ['catalogue', 'build'], ['catalogue', 'check'],
                                  ['fingerprint'], ['generate'], ['attribute'], ['explain'], ['show'],
                                  ['demo'], ['doctor']])
def test_every_command_explains_itself(capsys, argv):
    code, out, _ = run(capsys, *argv, '--help')
    assert code == 0 and 'Usage' in out and len(out) > 300


def test_help_is_quick_because_nothing_heavy_is_imported():
    done = subprocess.run([sys.executable, '-c', 'import sys\nfrom lumina_plugin.cli.app import app\n'
                           'print([m for m in ("torch", "audiocraft", "gradio", "librosa") if m in sys.modules])'],
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def bad_inputs(folder: Path):
    empty, text, zero = folder / 'empty.jsonl', folder / 'notes.wav', folder / 'zero.wav'
    empty.write_text('')
    text.write_text('this is no music')
    zero.write_bytes(b'')
    nothing = folder / 'nothing'
    nothing.mkdir()
    return [
        (['attribute', folder / 'gone.wav'], 'gone.wav'), (['attribute', text], 'notes.wav'),
        (['attribute', zero], 'zero.wav'), (['attribute', folder], '--out'),
        (['attribute', nothing, '--out', folder / 'out', '--model', nothing], 'no state_dict.bin'),
        (['catalogue', 'check', empty], 'empty.jsonl'), (['catalogue', 'check', folder / 'gone'], 'gone'),
        (['catalogue', 'build', nothing, '--out', folder / 'out'], 'no recordings'),
        (['fingerprint', 'no-such-model'], 'no-such-model'), (['fingerprint', folder, '--recipe', 'mine'], 'mine'),
        (['generate', '--out', folder / 'out', '--model', folder / 'gone'], 'gone'),
        (['generate', '--out', folder / 'out', '--model', nothing], 'nothing has no state_dict.bin'),
        (['generate', '--out', folder / 'out', '--top-k', '0'], '--top-k'),
        (['generate', '--out', folder / 'out', '--n', 'many'], '--n'), (['generate'], '--out'),
        (['generat'], 'generat'), (['fingerprint', folder, '--set', 'projection'], 'KEY=VALUE'),
        (['demo', '--model', nothing, '--host', 'nowhere.invalid'], '--host'),
    ]


def test_bad_input_is_one_sentence_and_exit_code_2(capsys, tmp_path):
    for argv, named in bad_inputs(tmp_path):
        code, _, err = run(capsys, *argv)
        assert code == 2, argv
        last = err.strip().splitlines()[-1]
        assert last.startswith('Error: ') and named in last and 'Traceback' not in err, (argv, err)


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(capsys):
    with socket.socket() as busy:
        busy.bind(('127.0.0.1', 0))
        busy.listen()
        port = busy.getsockname()[1]
        code, _, err = run(capsys, 'demo', '--model', 'nothing', '--port', port)
    assert code == 2 and f'Port {port}' in err and '--port' in err


def test_an_interruption_says_that_nothing_is_lost(capsys, monkeypatch, tmp_path):
    def interrupt(path):
        raise KeyboardInterrupt
    monkeypatch.setattr('lumina_plugin.audio.read_audio', interrupt)
    (tmp_path / 'song.wav').touch()
    code, _, err = run(capsys, 'attribute', tmp_path / 'song.wav')
    assert code == 130 and 'what was finished is kept' in err


def test_nothing_asked_prints_help(capsys):
    code, out, err = run(capsys)
    assert code == 2 and 'Usage' in out + err and 'Error' not in out + err


def test_without_a_run_the_mend_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    song = write_songs(tmp_path / 'songs', count=1) / 'song-0.wav'
    code, _, err = run(capsys, 'attribute', song)
    assert code == 2 and '--model' in err and 'lumina quickstart' in err


def test_an_internal_error_is_exit_code_1(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr('lumina_plugin.audio.read_audio', lambda path: 1 / 0)
    (tmp_path / 'song.wav').touch()
    code, _, err = run(capsys, 'attribute', tmp_path / 'song.wav')
    assert code == 1 and 'ZeroDivisionError' in err and 'Traceback' not in err


def test_catalogue_build_and_check(capsys, tmp_path):
    songs = write_songs(tmp_path / 'songs', count=2)
    (songs / 'broken.wav').write_text('RIFF but no more')
    code, out, _ = run(capsys, 'catalogue', 'build', songs, '--out', tmp_path / 'out')
    assert code == 0 and 'broken.wav' in out and '1 skipped' in out and '1 silent' in out
    code, out, _ = run(capsys, 'catalogue', 'check', tmp_path / 'out')
    assert code == 0 and '3 songs' in out
    code, _, err = run(capsys, 'catalogue', 'build', songs, '--out', tmp_path / 'strict', '--strict')
    assert code == 2 and 'broken.wav' in err
    (tmp_path / 'songs' / 'song-1.wav').unlink()
    code, out, _ = run(capsys, 'catalogue', 'check', tmp_path / 'out')
    assert code == 2 and 'song-1' in out


def test_doctor_says_what_there_is(capsys):
    code, out, _ = run(capsys, 'doctor')
    assert code == 0 and 'torch' in out and 'audiocraft' in out
