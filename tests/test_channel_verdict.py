"""What reports say of the channels: what was measured on this very store, or that nothing was."""

import json

import pytest

from lumina_plugin.attribution import Attributor
from lumina_plugin.channel_verdict import keep_verdict, known_verdict, verdict_file
from lumina_plugin.models import load_musicgen, run_stores
from lumina_plugin.report import words
from lumina_plugin.report.render import render_html, render_table
from lumina_plugin.store import FingerprintStore


@pytest.fixture
def store(project):
    opened = FingerprintStore.open(run_stores(project.folder())[0])
    verdict_file(opened).unlink(missing_ok=True)  # of a test that measured this store
    yield opened
    verdict_file(opened).unlink(missing_ok=True)


def test_a_verdict_is_of_its_store_alone(store):
    assert known_verdict(store) is None
    path = keep_verdict(store, 'Channel P tells composition from production.')
    assert known_verdict(store) == 'Channel P tells composition from production.'
    other = json.loads(path.read_text())
    for broken in (json.dumps({**other, 'recipe': 'another'}), json.dumps({**other, 'model': []}), '[]', '{', '{}'):
        path.write_text(broken)
        assert known_verdict(store) is None


def test_reports_say_what_was_measured_or_that_nothing_was(store, project, tmp_path):
    musicgen = load_musicgen(project.folder())
    attributor = Attributor(musicgen.lm, musicgen.compression_model, store)
    song = project.root / 'songs' / 'song-0.wav'
    silent = attributor.attribute_file(song)
    assert silent.channel_meaning is None and 'has not been measured' in words.channel_meaning(silent)
    keep_verdict(store, 'Channel M is not separated on this model.')
    told = attributor.attribute_file(song)
    assert told.channel_meaning == 'Channel M is not separated on this model.'
    page = render_html(told, out_path=tmp_path / 'report.html').read_text()
    assert 'Channel M is not separated on this model.' in page
    assert 'The channels: Channel M is not separated' in ' '.join(render_table(told).split())
