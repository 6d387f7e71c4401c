"""The pass over a catalogue that changes: only what is new is fingerprinted, and who is withdrawn stays out."""

import pytest
import torch

from lumina_plugin.catalogue import build_catalogue
from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Fingerprinter
from lumina_plugin.hashing import state_hash
from lumina_plugin.passes import make_identity, open_or_create, run_pass
from lumina_plugin.prepared import prepare
from lumina_plugin.recipe import get_recipe
from lumina_plugin.store import CheckpointInfo, FingerprintStore, TrackRecord
from lumina_plugin.tokens import Tokenizer

from .tiny import build_codec, build_lm, write_songs


class Passes:
    """A tiny model whose catalogue grows."""

    def __init__(self, folder):
        self.folder = folder
        self.lm = build_lm().eval()
        self.recipe = get_recipe('default', chunk_seconds=1., projection={'dim': 32, 'residual_dim': 8})
        self.codec = build_codec()[0]

    def prepared(self, songs):
        folder = write_songs(self.folder / f'songs-{songs}', songs, 1.4)
        (folder / 'silence.wav').unlink()
        catalogue = build_catalogue(folder, self.folder / f'catalogue-{songs}', progress=False).catalogue
        return prepare(catalogue, Tokenizer(self.codec, 'codec', 1.), self.lm)

    def store(self, prepared, update=False):
        identity = make_identity('tiny', self.lm, 'codec', self.recipe, prepared.catalogue, None)
        return open_or_create(self.folder / 'store', identity, prepared, update)

    def run(self, prepared, store, name='live'):
        seen = []
        fingerprinter = Fingerprinter(self.lm, self.recipe)
        inner = fingerprinter.gradients
        fingerprinter.gradients = lambda batch, reducers: seen.append(len(batch)) or inner(batch, reducers)
        weights = self.lm.state_dict()
        run_pass(fingerprinter, prepared, store, CheckpointInfo(name=name, model_hash=state_hash(weights)))
        return sum(seen)


def test_only_new_songs_are_fingerprinted_and_withdrawn_ones_stay_out(tmp_path):
    passes = Passes(tmp_path)
    four, six = passes.prepared(4), passes.prepared(6)
    store = passes.store(four)
    assert passes.run(four, store) >= 8  # two chunks each, and the fit
    before = store.vectors('live', 'P')[1].clone()
    with pytest.raises(LuminaError, match='2 songs are new and 0 have another recording; .*--update'):
        passes.store(six)
    store = passes.store(six, update=True)
    assert passes.run(six, store) == 4
    ids, rows = store.vectors('live', 'P')
    assert len(ids) == 6 and torch.equal(rows[:4], before)
    assert passes.run(six, store) == 0
    store.withdraw(['song-1'], 'opted out')
    assert passes.run(six, store) == 0
    passes.run(six, store, 'later')
    assert store.vectors('later', 'M')[0] == [f'song-{index}' for index in (0, 2, 3, 4, 5)]
    with pytest.raises(LuminaError, match='lumina store withdraw'):
        passes.store(four, update=True)


def test_titles_are_taken_over_without_fingerprinting_again(tmp_path):
    """Who is paid is looked up by them: a correction in the catalogue reaches the store at the next pass."""
    import json
    passes = Passes(tmp_path)
    four = passes.prepared(4)
    store = passes.store(four)
    passes.run(four, store)
    sidecar = four.catalogue.get('song-2').sidecar
    told = json.loads(sidecar.read_text()) if sidecar.exists() else {}
    sidecar.write_text(json.dumps({**told, 'title': 'Right Title', 'isrc': 'XX-ABC-25-00001'}))
    prepared = prepare(type(four.catalogue).from_manifest(four.catalogue.source), four.tokenizer, passes.lm)
    store = passes.store(prepared)
    assert (store.track('song-2').title, store.track('song-2').isrc) == ('Right Title', 'XX-ABC-25-00001')
    assert passes.run(prepared, store) == 0 and store.manifest.checkpoints[0].complete


@pytest.mark.parametrize('interrupted', [False, True])
def test_a_shard_of_silent_and_broken_songs_alone(tmp_path, interrupted, monkeypatch):
    """It is full before anything is fitted, and yet must name the projections that the others are made with."""
    passes = Passes(tmp_path)
    folder = write_songs(tmp_path / 'songs', 4, 1.4)
    for name in ('z-silence-1.wav', 'z-silence-2.wav'):
        (folder / name).write_bytes((folder / 'silence.wav').read_bytes() + b'\0' * 32 * len(name))
    (folder / 'silence.wav').unlink()
    catalogue = build_catalogue(folder, tmp_path / 'catalogue', progress=False).catalogue
    prepared = prepare(catalogue, Tokenizer(passes.codec, 'codec', 1.), passes.lm)
    identity = make_identity('tiny', passes.lm, 'codec', passes.recipe, catalogue, None)
    tracks = [TrackRecord(id=t.id, title=t.title or '', sha256=t.sha256) for t in catalogue]
    store = FingerprintStore.create(tmp_path / 'store', identity, tracks, shard_size=2)
    if interrupted:  # after the silent ones' shard, before the first of the others
        project = Fingerprinter.project
        monkeypatch.setattr(Fingerprinter, 'project', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            passes.run(prepared, store)
        monkeypatch.setattr(Fingerprinter, 'project', project)
    passes.run(prepared, store)
    assert store.vectors('live', 'P')[0] == [f'song-{index}' for index in range(4)] and store.verify() == []
    assert [track.status for track in store.tracks][-2:] == ['silent', 'silent']
