"""Stores whose channels are separated: fitted in the pass, on the catalogue's own songs, changed."""

import json
import shutil

import pytest
import torch

from lumina_plugin import augmentations
from lumina_plugin.attribution import Attributor
from lumina_plugin.capture import full_gradient
from lumina_plugin.catalogue import Catalogue
from lumina_plugin.channel_verdict import known_verdict
from lumina_plugin.cli import main
from lumina_plugin.codec import codec_hash
from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Fingerprinter
from lumina_plugin.models import load_musicgen, run_stores
from lumina_plugin.pairs import Maker
from lumina_plugin.prepared import estimate, prepare
from lumina_plugin.projection import ChannelProjection
from lumina_plugin.recipe import get_recipe, recipe_from_dict
from lumina_plugin.separation import KEEPS, TIMES, Separation
from lumina_plugin.store import FingerprintStore
from lumina_plugin.tokens import Tokenizer
from lumina_plugin.validation.channel_table import STANDING

from .test_passes import Passes
from .test_workers import content
from .tiny import build_lm, build_songs


@pytest.fixture(scope='module')
def musicgen(project):
    return load_musicgen(project.folder())


@pytest.fixture(scope='module')
def made(project, tmp_path_factory):
    """A store of the project's run, in a folder of its own, made by the command."""
    path = tmp_path_factory.mktemp('separated') / 'store'
    main(['fingerprint', str(project.folder()), '--out', str(path), '--set', 'name=separated',
          '--set', 'projection.kind=separated', '--set', 'projection.block_width={P: 12, M: 10}'])
    return FingerprintStore.open(path)


# -- end to end --------------------------------------------------------------------------------------------------------

def joined(fingerprinter, examples, projection):
    """The joined gradient [1, R] of a song from whole gradients of one example after the other: no batch, no window, no
    reduction in the capture."""
    total = sum(example.weight for example in examples)
    sums = {}
    for example in examples:
        whole = fingerprinter.gradients([example], {name: full_gradient for name in fingerprinter.blocks})
        for name, gradient in whole.items():
            sums[name] = sums.get(name, 0) + gradient * (example.weight / total)
    for block in projection.reducers.blocks:
        left, right = (projection.reducers.factors.get(f'{block.name}.{side}') for side in ('out', 'in'))
        kept = sums[block.name] if left is None else left.T @ sums[block.name]
        sums[block.name] = kept if right is None else kept @ right
    return projection.reducers.join(sums)[0]


def alike(found, expected):
    """Directions, but for rounding, which a whitening makes larger where songs hardly differ."""
    cosines = torch.nn.functional.cosine_similarity(found.float(), expected.float())
    assert found.shape == expected.shape and cosines.min() > .999, cosines


def test_a_store_holds_what_a_separation_of_its_own_songs_changed_gives(made, musicgen, project):
    recipe = recipe_from_dict(made.identity.recipe)
    tokenizer = Tokenizer(musicgen.compression_model, codec_hash(musicgen.compression_model), 1.)
    songs = {song.id: song for song in prepare(Catalogue.from_manifest(project.manifest), tokenizer, musicgen.lm).songs}
    tracks = [track for track in Catalogue.from_manifest(project.manifest) if track.id in songs]
    assert len(made.checkpoints) == 2 and made.verify() == [] and len(tracks) == 6
    for info in made.checkpoints:
        fingerprinter = Fingerprinter(musicgen.lm, recipe, made.load_weights(info))
        for channel, blocks in fingerprinter.channels.items():
            tensors, facts = made.projection(info.name, channel)
            stored = ChannelProjection.load(blocks, tensors, facts, recipe.block_norm)
            examples, of = Maker(tokenizer, musicgen.lm, None).changed(tracks, KEEPS[channel], TIMES)
            rows = torch.cat([joined(fingerprinter, [example], stored) for example in examples])
            expected = Separation.fit(rows, of, 256, dim=512)
            assert facts == {'kind': 'separated', 'songs': '6', 'in_dim': str(rows.shape[1]), 'dim': '512',
                             'rank': str(expected.map.shape[1])} and len(rows) == 6 * (1 + TIMES)
            alike(stored.projection(rows), expected(rows))
            ids, vectors = made.vectors(info.name, channel)
            alike(vectors, expected(torch.cat([joined(fingerprinter, songs[id].examples, stored) for id in ids])))
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(ids)))


def test_queries_are_projected_as_songs_were(made, musicgen, project):
    """A query of a song's own chunks and text is that song."""
    attributor = Attributor(musicgen.lm, musicgen.compression_model, made)
    catalogue = Catalogue.from_manifest(project.manifest)
    for song in prepare(catalogue, attributor.tokenizer, musicgen.lm).songs:
        for scores in attributor.scores(song.examples).values():
            assert attributor.song_ids[scores.argmax()] == song.id and scores.max() == pytest.approx(1, abs=1e-5)
    report = attributor.attribute_file(catalogue.get('song-1').path)
    assert report.recipe.keys['projection.kind'] == 'separated' and set(report.channels) == {'P', 'M'}
    for channel, found in report.channels.items():  # an unrelated query cannot be far from all of so few directions
        ranks = [int(made.projection(info.name, channel)[1]['rank']) for info in made.checkpoints]
        assert found.noise_floor >= (len(ranks) * min(ranks)) ** -.5 - 1e-9
        assert all(info.noise[channel] >= rank ** -.5 - 1e-9
                   for info, rank in zip(made.checkpoints, ranks, strict=True))


def test_what_is_said_of_its_channels_is_of_this_store(made, project, tmp_path):
    main(['validate', 'channels', '--model', str(project.folder()), '--store', str(made.path), '--out', str(tmp_path),
          '--songs', '3', '--changes', '2', '--compositions', '3', '--productions', '2', '--every-checkpoint'])
    told = json.loads((tmp_path / 'channels' / 'channels.json').read_text())
    assert told['facts']["the store's projection"] == 'separated'
    assert (known_verdict(made) or '').startswith(told['verdict'][STANDING])
    assert known_verdict(FingerprintStore.open(run_stores(project.folder())[0])) != known_verdict(made)


def test_a_training_makes_such_a_store(project):
    """By the keys of dora, and with one channel alone."""
    argv = ('optim.epochs=2', 'label=separated', 'fingerprint.recipe.name=p',
            'fingerprint.recipe.projection.kind={P:separated,M:fitted}', 'fingerprint.outside=none')
    project.dora(*argv)
    store = FingerprintStore.open(project.folder(*argv) / 'lumina' / 'p')
    (info,) = store.checkpoints
    assert info.complete and {channel: ref.fit.kind for channel, ref in info.projections.items()} == {
        'P': 'separated', 'M': 'fitted'}
    assert len(list((store.path.parent / 'codes' / 'changed').iterdir())) == 6  # of P alone


# -- a pass that stops, and a catalogue that grows ---------------------------------------------------------------------

class Separated(Passes):
    """A tiny model whose catalogue grows and whose channels are separated, its codes remembered on disk."""

    def __init__(self, folder, cache='codes', **projection):
        super().__init__(folder)
        self.cache = folder / cache
        self.recipe = get_recipe('default', chunk_seconds=1., projection={
            'kind': 'separated', 'dim': 32, 'block_width': 8, **projection})

    def prepared(self, songs):
        found = super().prepared(songs)
        return prepare(found.catalogue, Tokenizer(self.codec, 'codec', 1., cache=self.cache), self.lm)


class Counted:
    """Changes of recordings, counted; broken off before one of them."""

    def __init__(self, monkeypatch, stop=None):
        self.done, self.stop = 0, stop
        for name, change in list(augmentations.CHANGES.items()):
            monkeypatch.setitem(augmentations.CHANGES, name, lambda *args, change=change: self.make(change, *args))

    def make(self, change, *args):
        if self.done == self.stop:
            raise KeyboardInterrupt
        self.done += 1
        return change(*args)


@pytest.mark.parametrize('where', ['while songs are changed', 'while gradients are taken', 'before fingerprints'])
def test_a_pass_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch, where):
    passes = Separated(tmp_path)
    four = passes.prepared(4)
    store = passes.store(four)
    passes.run(four, store)
    undisturbed = content(store.path)
    shutil.rmtree(store.path)
    shutil.rmtree(passes.cache / 'changed')
    with monkeypatch.context() as patch:
        counted = Counted(patch, stop=2 * TIMES + 1 if where.startswith('while songs') else None)
        if where.startswith('while gradients'):
            patch.setattr(Separation, 'fit', lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        if where.startswith('before'):
            patch.setattr(Fingerprinter, 'project', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            passes.run(four, passes.store(four))
        done = counted.done
    counted = Counted(monkeypatch)
    store = passes.store(four)
    passes.run(four, store)
    redone = 1 if where.startswith('while songs') else 0  # that of the song in hand
    assert done + counted.done == 2 * 4 * TIMES + redone
    assert content(store.path) == undisturbed and store.verify() == []


def test_an_update_keeps_the_projection_and_changes_no_song(tmp_path, monkeypatch):
    passes = Separated(tmp_path)
    four, six = passes.prepared(4), passes.prepared(6)
    store = passes.store(four)
    passes.run(four, store)
    before, rows = store.checkpoint('live').projections, store.vectors('live', 'M')[1].clone()
    counted = Counted(monkeypatch)
    store = passes.store(six, update=True)
    assert passes.run(six, store) == 4 and counted.done == 0  # the chunks of two songs, nothing more
    assert store.checkpoint('live').projections == before
    ids, vectors = store.vectors('live', 'M')
    assert len(ids) == 6 and torch.equal(vectors[:4], rows)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
    assert any('should be fitted again' in note for note in store.info()['notes'])


def test_a_seed_of_its_own_makes_other_changes_and_fit_songs_bounds_them(tmp_path, monkeypatch):
    maps = []
    for seed, fit_songs in ((0, 2048), (1, 2048), (0, 3)):
        passes = Separated(tmp_path / f'{seed}-{fit_songs}', seed=seed, fit_songs=fit_songs)
        four = passes.prepared(4)
        with monkeypatch.context() as patch:
            counted = Counted(patch)
            store = passes.store(four)
            passes.run(four, store)
        assert counted.done == 2 * TIMES * min(4, fit_songs)
        tensors, facts = store.projection('live', 'P')
        maps.append(tensors['projection.map'])
        assert facts['songs'] == str(min(4, fit_songs))
    assert not torch.equal(maps[0], maps[1])


# -- what it takes -----------------------------------------------------------------------------------------------------

def test_the_estimate_before_a_pass_counts_the_recordings_and_their_gradients(tmp_path):
    passes = Separated(tmp_path, block_width=None)
    six = passes.prepared(6)
    fingerprinter = Fingerprinter(passes.lm, passes.recipe)
    assert fingerprinter.recordings(6) == {'P': 42, 'M': 42}
    assert '84 recordings to fit on are made first' in estimate(six, fingerprinter)
    said, held = fingerprinter.fit_bytes(6)
    passes.run(six, passes.store(six))
    store = passes.store(six)
    tensors = {channel: store.projection('live', channel)[0] for channel in 'PM'}
    assert said == sum(33 * 4 * len(one['projection.mean']) for one in tensors.values())
    assert said >= sum(4 * tensor.numel() for one in tensors.values() for tensor in one.values())
    assert held == 2 * 42 * 4 * max(len(one['projection.mean']) for one in tensors.values())
    few = Fingerprinter(passes.lm, get_recipe('default', projection={'kind': {'P': 'separated'}, 'fit_songs': 5}))
    assert few.recordings(10 ** 6) == {'P': 35} and Fingerprinter(passes.lm, passes.recipe).recordings(10 ** 6) == {
        'P': 2044, 'M': 2044}


def test_what_cannot_be_separated_is_refused_in_one_sentence(tmp_path, project, capsys):
    lm = build_lm()
    with pytest.raises(LuminaError, match='run_pass'):
        Fingerprinter(lm, get_recipe('default', projection={'kind': 'separated'})).fit(build_songs(lm, 3))
    with pytest.raises(SystemExit) as stop:
        main(['fingerprint', str(project.folder()), '--out', str(tmp_path / 'store'), '--set',
              'projection.kind=separated', '--set', 'channels={P: [self_attention], X: [feed_forward]}'])
    told = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and len(told.splitlines()) == 1
    assert 'what channel X is to find' in told and '{P: separated, X: fitted}' in told
    assert not (tmp_path / 'store').exists()
