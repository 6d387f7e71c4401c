"""The standard suite's songs and runs: which songs are for what, and which runs are finished."""

import json

from omegaconf import OmegaConf

from lumina_plugin.validation import suite


def manifest(folder, split, ids):
    path = folder / 'egs' / split / 'data.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps({'path': f'{split}/{one}.flac'}) + '\n' for one in ids))


def test_no_song_is_for_two_purposes(tmp_path, monkeypatch):
    """Whole songs to pretrain on, excerpts to set gates by and to test them with."""
    asked = {}

    def build(work, extra, jobs):
        asked.update(extra=extra)
        for folder, kind in ((work / 'embedded', 'whole'), (work / 'songs', 'cut')):
            manifest(folder, 'extra', [f'{kind}-{index}' for index in range(extra)])
        return work / 'songs'
    monkeypatch.setattr(suite, 'build_excerpts', build)
    songs = suite.build_songs(tmp_path)
    assert asked['extra'] == suite.PRETRAINING + suite.CALIBRATION + suite.STRANGERS
    found = {split: [json.loads(line)['path']
                     for line in (songs / 'egs' / split / 'data.jsonl').read_text().splitlines()]
             for split in ('pretraining', 'calibration', 'strangers')}
    assert {split: len(paths) for split, paths in found.items()} == {
        'pretraining': suite.PRETRAINING, 'calibration': suite.CALIBRATION, 'strangers': suite.STRANGERS}
    numbers = [path.split('-')[-1] for paths in found.values() for path in paths]
    assert len(set(numbers)) == len(numbers)
    assert all('whole' in path for split in ('pretraining', 'strangers') for path in found[split])
    assert all('cut' in path for path in found['calibration'])


def run(work, signature, solver, epochs, done):
    folder = work / 'xps' / signature
    (folder / '.hydra').mkdir(parents=True)
    OmegaConf.save(OmegaConf.create([f'solver=lumina/{solver}']), folder / '.hydra' / 'overrides.yaml')
    OmegaConf.save(OmegaConf.create({'optim': {'epochs': epochs}}), folder / '.hydra' / 'config.yaml')
    if done:
        (folder / 'history.json').write_text(json.dumps([{}] * done))
    return folder


def test_only_a_finished_run_of_the_preset_is_found(tmp_path):
    assert suite.finished_run(tmp_path) is None
    run(tmp_path, 'aaaaaaaa', 'validation', 8, 3)
    run(tmp_path, 'bbbbbbbb', 'validation', 8, 0)
    run(tmp_path, 'cccccccc', 'validation_pretraining', 10, 10)
    assert suite.finished_run(tmp_path) is None
    finished = run(tmp_path, 'dddddddd', 'validation', 8, 8)
    assert suite.finished_run(tmp_path) == finished
    assert suite.finished_run(tmp_path, 'validation_pretraining').name == 'cccccccc'
