"""Beginnings of songs: exactly as long as asked, and cut again where the song has changed."""

import json
import os

import numpy as np
import soundfile

from lumina_plugin.validation.excerpts import _cut


def write(path, value, seconds, later=0.):
    soundfile.write(path, np.full(int(seconds * 16000), value, dtype=np.int16), 16000)
    path.with_suffix('.json').write_text(json.dumps({'track_id': path.stem}))
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + later))
    return {'path': str(path), 'duration': float(seconds), 'sample_rate': 16000}


def test_a_song_is_cut_once_and_again_when_it_was_rendered_anew(tmp_path):
    folder = tmp_path / 'cut'
    entry = _cut(write(tmp_path / 'a.wav', 100, 3), folder, 2.)
    assert entry['duration'] == 2. and (folder / 'a.json').is_file()
    before = (folder / 'a.wav').stat().st_mtime_ns
    _cut({**entry, 'path': str(tmp_path / 'a.wav'), 'duration': 3.}, folder, 2.)
    assert (folder / 'a.wav').stat().st_mtime_ns == before
    _cut(write(tmp_path / 'a.wav', 200, 3, later=60.), folder, 2.)
    samples, _ = soundfile.read(folder / 'a.wav', dtype='int16')
    assert len(samples) == 32000 and (samples == 200).all()


def test_a_shorter_song_stays_whole(tmp_path):
    assert _cut(write(tmp_path / 'b.wav', 1, 1), tmp_path / 'cut', 2.)['duration'] == 1.
