"""Every command and program that README and docs show is run: here, as it stands, or by the test or step named below.

What cannot be run (it needs a hub, GPUs, or hours) says so, and is read: its options, keys, targets and files exist.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lumina_plugin import train
from lumina_plugin.cli import main as lumina
from lumina_plugin.store import FingerprintStore

from . import documents
from .documents import PAGES, ROOT, Shown
from .project import TINY
from .tiny import write_songs

WALKED = ('README.md', 'docs/training.md', 'docs/method.md', 'docs/store.md', 'docs/codec.md')

# (page, command or program): who runs it. `file::test` is a test; `file: text` is a step of that file.
RUN_BY = [
    ('README', r'make (quickstart|test)$', '.ci/run: make {0}'),
    ('', r'lumina quickstart', 'Makefile: $(BIN)/lumina quickstart'),
    ('', r'dora grid lumina\.(\w+) --dry_run --init', 'tests/test_grids.py::test_dora_lays_out_every_grid'),
    ('README', r'dora run solver=lumina/finetune',
     'tests/test_documents.py::test_a_page_runs_from_its_first_line_to_its_last'),
    ('README', r'dora run solver=lumina/quickstart execute_only=fingerprint',
     'tests/test_run.py::test_an_interrupted_training_resumes_and_fingerprints_the_rest'),
    ('docs/store', r'lumina store', 'tests/test_store_tools.py::test_commands'),
    ('docs/store', r'dora run -d',
     'tests/test_run.py::test_a_distributed_training_makes_the_store_that_one_process_makes_of_its_weights'),
    ('docs/store', r'torchrun', 'tests/test_run.py::test_torchrun_shares_a_pass_outside_of_training'),
    ('docs/serving', r'lumina', 'tests/test_serving.py::test_every_command_of_a_page_runs'),
    ('docs/serving', r'import asyncio',
     'tests/test_serving.py::test_the_server_generates_and_hands_out_audio_and_report'),
    ('docs/serving', r'from lumina_plugin import attach', 'tests/test_serving.py::test_the_pages_program_runs'),
    ('docs/reports', r'lumina', 'tests/test_serving.py::test_every_command_of_a_page_runs'),
    ('docs/demo', r'from gradio_client', 'tests/test_web.py::test_the_example_of_the_docs_runs'),
    ('docs/demo', r'lumina demo|python demo/app.py', 'tests/test_documents.py::test_the_page_starts_as_the_docs_say'),
    ('docs/codec', r'dora run', 'tests/test_codec.py::test_codec_trains_resumes_and_is_exported_by_signature'),
    ('docs/codec', r'python -c', 'tests/test_codec.py::test_codec_trains_resumes_and_is_exported_by_signature'),
    ('docs/real_recordings', r'(python benchmarks/real_recordings|lumina|dora)',
     '.ci/run: benchmarks/real_recordings.py'),
    ('docs/validation', r'lumina validate (ground-truth|lds)', 'tests/test_judge.py::test_the_commands'),
    ('docs/validation', r'lumina validate (causal|self|repro|false-payments)',
     'tests/test_validate_run.py::test_the_commands'),
    ('docs/validation', r'lumina validate leave-out', 'tests/test_validate_leave_out.py::test_the_command'),
    ('docs/validation', r'lumina validate diagnose', 'tests/test_diagnose.py::test_reports_are_gathered_and_diagnosed'),
    ('docs/validation', r'lumina validate channels',
     'tests/test_channels_command.py::test_every_way_of_both_channels_is_measured'),
    ('', r'dora run solver=lumina/dit_quickstart',
     'tests/test_dit_solver.py::test_history_checkpoints_and_latents_are_there'),
    ('docs/dit', r'python benchmarks/dit_ground_truth.py --read',
     'tests/test_dit_solver.py::test_the_committed_truth_says_what_the_docs_say'),
    ('', r'lumina unlearn fisher', 'tests/test_unlearn_command.py::test_the_fisher_is_made_once'),
    ('', r'lumina unlearn attribute .*--fast',
     'tests/test_unlearn_command.py::test_a_shortlist_asks_about_fewer_songs'),
    ('', r'lumina unlearn attribute',
     'tests/test_unlearn_command.py::test_a_recording_is_attributed_and_what_is_finished_is_read'),
    ('', r'lumina unlearn draws', 'tests/test_unlearn_draws.py::test_the_command_in_a_process_of_its_own'),
    ('', r'lumina unlearn self', 'tests/test_unlearn_command.py::test_songs_find_themselves'),
    ('', r'lumina unlearn grid', 'tests/test_unlearn_command.py::test_a_grid_is_judged_and_goes_on'),
    ('', r'lumina unlearn compare --model DIFFUSION',
     'tests/test_unlearn_compare_diffusion.py::test_the_command'),
    ('', r'lumina unlearn compare', 'tests/test_unlearn_compare.py::test_the_command'),
    ('docs/validation', r'lumina validate soak',
     'tests/test_soak.py::test_the_command_ends_with_one_where_something_failed'),
]
# Nobody runs these; a page may also say so itself, by `<!-- not run: why -->` before a block.
UNRUN = [
    ('README', r'git clone|cd |\. ', 'it is how one gets to where the tests begin'),
    ('README', r'dora run solver=lumina/musicgen_small', 'needs a hub and a GPU'),
    ('docs/projection', r'python benchmarks/projection_error', 'takes hours'),
    ('docs/dit', r'dora run solver=compression/lumina_oobleck|python (-c|benchmarks/)',
     'takes minutes to hours of a core'),
    ('docs/unlearning', r'python benchmarks/unlearning', 'a measurement of half an hour'),
    ('docs/demo', r'python benchmarks/demo', 'a measurement of minutes, with a browser'),
    ('docs/validation', r'make validate-peers', 'installs packages of gigabytes'),
]
KINDS = ('shell', 'python', 'python server.py', 'json')


def runner(one: Shown):
    """Who runs a command of a page, from RUN_BY."""
    for page, pattern, by in RUN_BY:
        found = re.match(pattern, one.text)
        if one.page.startswith(page) and found:
            return by.format(*(found.groups() or ('',)))
    return None


def reason(one: Shown):
    """Why nobody runs it."""
    return one.unrun or next((why for page, pattern, why in UNRUN
                              if one.page.startswith(page) and re.match(pattern, one.text)), None)


@pytest.mark.parametrize('page', PAGES)
def test_everything_that_a_page_shows_is_run_or_says_why_not(page):
    for one in documents.shown(page):
        assert one.kind in KINDS, f'{one}: a fence of an unknown kind'
        if one.kind == 'shell':
            documents.parse(one.text)
        by, why = runner(one), reason(one)
        if by is not None:
            file, _, name = by.partition('::') if '::' in by else by.partition(': ')
            wanted = f'def {name}(' if '::' in by else name
            assert wanted in (ROOT / file).read_text(encoding='utf-8'), f'{one}: {by} is not there'
        elif why is None:
            assert page in WALKED, f'{one}: nobody runs it; say who does in RUN_BY, or walk through the page'
    for command in documents.inline(page):
        documents.parse(command)


@pytest.mark.parametrize('command', [
    'lumina attribute FILE --outt FOLDER', 'lumina nonsense', 'lumina store info', 'make nonsense',
    'lumina generate --n x --out y', "pip install 'lumina_plugin[nonsense]'", 'dora run solver=lumina/nonsense',
    'dora run solver=lumina/quickstart optim.epoch=1', 'dora grid lumina.nonsense', 'python benchmarks/nonsense.py',
    'python benchmarks/real_recordings.py --nonsense'])
def test_a_command_that_is_wrong_is_found_out(command):
    with pytest.raises(Exception):  # noqa: B017 (of four parsers)
        documents.parse(command)


def test_commands_are_told_from_outputs_and_marks_hold_for_one_block(tmp_path, monkeypatch):
    (tmp_path / 'x.md').write_text(
        'a\n\n    lumina doctor   # why\n    lumina show \\\n      X\n\n    3 songs\n    lumina\n\n'
        '<!-- not run: why -->\n\n    make test && make help\n\n- list\n    make wheel\n\n    make lint\n')
    monkeypatch.setattr(documents, 'ROOT', tmp_path)
    assert [(one.line, one.text, one.unrun) for one in documents.shown('x.md')] == [
        (3, 'lumina doctor', None), (4, 'lumina show X', None), (12, 'make test', 'why'), (12, 'make help', 'why'),
        (17, 'make lint', None)]


# --- walking through a page -------------------------------------------------------------------------------------------

class Walk:
    """A folder as a reader has it: the quickstart's run, some songs, and what each command leaves to the next."""

    def __init__(self, project, folder: Path):
        self.folder, base = folder, project.folder()
        self.env = {**os.environ, 'LUMINA_DORA_DIR': str(folder / 'outputs')}
        shutil.copytree(base, folder / 'outputs' / 'xps' / base.name)
        songs = write_songs(folder / 'songs')
        for theirs, ours in (('song-0', 'night-train'), ('song-1', 'waltz-for-nobody')):
            (songs / f'{theirs}.wav').rename(songs / f'{ours}.wav')
        (songs / 'silence.wav').unlink()
        for name in ('recording.wav', 'outputs/embedded/audio/train/song-001.wav', 'RECORDINGS/one.wav'):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(songs / 'night-train.wav', folder / name)
        (folder / 'others').symlink_to(project.root / 'outside')
        self.overrides = [*TINY[1:], f'compression_model_checkpoint={project.codec}', 'fingerprint.outside=others',
                          'optim.epochs=2', 'fingerprint.every=1']
        self.names = {'BASE': base.name, 'SIGNATURE': base.name, 'FILE': 'recording.wav', 'SONG': 'song-1'}

    def put(self, text: str) -> str:
        """A command or program with what is here in the place of what stands for it."""
        for name, ours in self.names.items():
            text = re.sub(rf'\b{name}\b', ours, text)
        return text

    def run(self, one: Shown) -> None:
        first, *rest = documents.words(self.put(one.text)) if one.kind == 'shell' else (one.kind,)
        if first == 'python':
            exec(compile(self.put(one.text), one.page, 'exec'), dict(self.known))  # noqa: S102
        elif first == 'json':
            (self.folder / 'songs' / 'night-train.json').write_text(one.text)
        elif first == 'dora':
            self.dora(rest)
        elif first == 'make':
            subprocess.run(['make', *rest], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        else:
            assert first == 'lumina', f'{one}: not known how to run it'
            lumina([*rest, *(['--seconds', '1', '--prompt-seconds', '0.5'] if rest[0] == 'generate' else [])])

    @property
    def known(self) -> dict:
        """What programs of a page take for given."""
        import torch
        return {'__name__': '__main__', 'wav': torch.rand(1, 1, 16000) - 0.5}

    def dora(self, argv) -> None:
        """`dora run` as it stands, of a model, songs and a training as small as the tests'."""
        argv = [*argv, *self.overrides]
        done = subprocess.run([sys.executable, '-m', 'dora', '-P', 'lumina_plugin', *argv], cwd=self.folder,
                              env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        self.names['SIGNATURE'] = train.main.get_xp(argv[1:]).sig

    def before(self, one: Shown) -> None:
        """What a reader does by hand, as the text says."""
        if one.text.startswith('lumina catalogue build') and (self.folder / 'outputs' / 'owed').exists():
            (self.folder / 'songs' / 'waltz-for-nobody.wav').unlink()
            (write_songs(self.folder / 'more', 1, seed=7) / 'song-0.wav').rename(self.folder / 'songs' / 'new.wav')
        if one.text.startswith('lumina explain outputs/clips'):
            lumina(['attribute', 'recording.wav', '--out', self.put('outputs/clips/SIGNATURE/free')])
            self.names['song-024'] = 'song-1'
        if one.text.startswith('lumina show CLIP'):
            lumina(['attribute', 'recording.wav', '--sidecar'])
            self.names['CLIP.wav'] = 'recording.wav'


@pytest.fixture
def walk(project, tmp_path, monkeypatch):
    made = Walk(project, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LUMINA_DORA_DIR', made.env['LUMINA_DORA_DIR'])
    monkeypatch.setattr(train.main.dora, 'dir', tmp_path / 'outputs')
    (tmp_path / 'FOLDER').symlink_to('songs')
    return made


@pytest.mark.parametrize('page', WALKED)
def test_a_page_runs_from_its_first_line_to_its_last(page, walk, monkeypatch):
    if page == 'README.md':
        walk.names['FOLDER --out outputs/mine'] = 'songs --out outputs/mine'
        (walk.folder / 'FOLDER').unlink()
    ran = [one for one in documents.shown(page) if runner(one) is None and reason(one) is None]
    assert ran
    for one in ran:
        walk.before(one)
        try:
            walk.run(one)
        except (Exception, SystemExit) as error:
            raise AssertionError(f'{one} does not run: {error!r}') from error
    if page == 'docs/training.md':
        expect_what_training_promises(walk)


def expect_what_training_promises(walk: Walk) -> None:
    run = walk.folder / 'outputs' / 'xps' / walk.names['SIGNATURE']
    store = FingerprintStore.open(run / 'lumina' / 'finetune')
    assert len(json.loads((run / 'history.json').read_text())) == 2
    assert {path.parent.name for path in (run / 'lumina').glob('*/manifest.json')} == {'finetune', 'paper', 'narrow'}
    assert [info.complete for info in store.checkpoints] == [True, True]
    assert {track.id for track in store.tracks} == {'night-train', 'new', *(f'song-{index}' for index in range(2, 6))}
    kept = store.track('night-train')
    assert (kept.title, kept.artist, kept.isrc) == ('Night Train', 'The Sleepers', 'QZ5AB2400001')
    assert [owner['share'] for owner in kept.extra['writers']] == [60, 40]
    for made in ('report/report.html', 'owed/summary.html', 'model/state_dict.bin'):
        assert (walk.folder / 'outputs' / made).is_file()
    assert list((walk.folder / 'outputs' / 'exported').glob('**/*.npz'))


def test_the_page_starts_as_the_docs_say(walk, monkeypatch):
    """`lumina demo` and `python demo/app.py` reach the server, which tests/test_web.py runs, with what is asked."""
    import runpy

    import lumina_plugin.web
    asked = []
    monkeypatch.setattr(lumina_plugin.web, 'launch', lambda model, store, **options: asked.append(
        (str(model), store, options['checkpoint'])))
    walk.names['STORE'] = walk.put('outputs/xps/SIGNATURE/lumina/default')
    for one in documents.shown('docs/demo.md'):
        if one.text.startswith('lumina demo'):
            walk.run(one)
        elif one.text == 'python demo/app.py':
            monkeypatch.setattr(sys, 'argv', ['demo/app.py'])
            runpy.run_path(str(ROOT / 'demo' / 'app.py'), run_name='__main__')
    run = walk.put('outputs/xps/SIGNATURE')
    assert asked == [(run, None, None), (run, Path(walk.names['STORE']), None), (run, None, 'epoch-0004'),
                     (run, None, None)]
