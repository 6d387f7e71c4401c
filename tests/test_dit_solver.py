"""Training a small latent diffusion transformer by dora: deterministic, resumable, on parts of a catalogue."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lumina_plugin.errors import LuminaError
from lumina_plugin.hashing import state_hash

from .tiny import write_songs
from .tiny_dit import tiny_dit, write_autoencoder

TINY = ['solver=lumina/dit_quickstart', 'dit.condition_dim=16', 'dit.max_seconds=8', 'dit.text.dim=16',
        'dit.text.length=12', 'dit.transformer.sample_size=24', 'dit.transformer.num_layers=2',
        'dit.transformer.attention_head_dim=16', 'dit.transformer.num_key_value_attention_heads=1',
        'dit.transformer.cross_attention_dim=16', 'dit.transformer.time_proj_dim=16', 'dit.passes_per_epoch=2',
        'dit.valid_draws=2', 'dataset.batch_size=2', 'optim.epochs=3', 'fingerprint.every=[2,3]',
        'fingerprint.recipe.draws=2', 'num_threads=1']


class Runs:
    """Songs, an autoencoder, and runs of dora on them."""

    def __init__(self, root: Path):
        from lumina_plugin.catalogue import build_catalogue
        self.root = root
        self.manifest = build_catalogue(write_songs(root / 'songs'), root / 'catalogue', progress=False).manifest
        self.argv = [*TINY, f'dit.autoencoder={write_autoencoder(root / "autoencoder")}',
                     f'lumina.latents_cache={root / "latents"}',
                     *(f'datasource.{split}={self.manifest.parent}' for split in ('train', 'valid', 'evaluate',
                                                                                  'generate'))]

    def dora(self, *overrides: str, folder: str = 'runs', check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run([sys.executable, '-m', 'dora', '-P', 'lumina_plugin', 'run', *self.argv, *overrides],
                              capture_output=True, text=True, cwd=self.root,
                              env={**os.environ, 'LUMINA_DORA_DIR': str(self.root / folder)})
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done

    def folder(self, *overrides: str, folder: str = 'runs') -> Path:
        from lumina_plugin.train import main
        main.dora.dir = self.root / folder
        return main.get_xp([*self.argv, *overrides]).folder


def weights(folder: Path, name: str = 'checkpoint.th') -> str:
    return state_hash(torch.load(folder / name, map_location='cpu', weights_only=True)['model'])


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp('dit'))
    runs.dora()
    return runs


def test_history_checkpoints_and_latents_are_there(runs):
    folder = runs.folder()
    history = json.loads((folder / 'history.json').read_text())
    assert [sorted(epoch) for epoch in history] == [['train', 'valid'], *[['fingerprint', 'train', 'valid']] * 2]
    assert all(epoch['train']['loss'] > 0 and epoch['valid']['loss'] > 0 for epoch in history)
    assert len({weights(folder, f'checkpoint_{epoch}.th') for epoch in (1, 2, 3)}) == 3
    assert len(list((runs.root / 'latents').glob('*.safetensors'))) == 7  # the silent song's too: nothing is read twice


def test_the_same_seed_gives_the_same_weights_with_and_without_fingerprints(runs):
    again = ['fingerprint.every=', 'label=again']
    runs.dora(*again)
    assert weights(runs.folder(*again)) == weights(runs.folder())
    other = ['fingerprint.every=', 'seed=7', 'optim.epochs=1']
    runs.dora(*other)
    assert weights(runs.folder(*other)) != weights(runs.folder(), 'checkpoint_1.th')


def test_an_interrupted_run_ends_as_an_uninterrupted_one(runs):
    """What a run leaves when it is stopped after its first epoch, and what it makes of that."""
    source, copy = runs.folder(), runs.folder(folder='resumed')
    copy.mkdir(parents=True)
    shutil.copytree(source / '.hydra', copy / '.hydra')
    history = json.loads((source / 'history.json').read_text())
    state = torch.load(source / 'checkpoint_1.th', map_location='cpu', weights_only=True)
    torch.save(state, copy / 'checkpoint.th')
    (copy / 'history.json').write_text(json.dumps(history[:1]))
    runs.dora(folder='resumed')
    assert weights(copy) == weights(source)
    assert len(json.loads((copy / 'history.json').read_text())) == 3


def test_a_run_is_loaded_with_its_weights(runs):
    from lumina_plugin.dit.loading import load_dit
    dit = load_dit(runs.folder())
    assert state_hash(dit.denoiser.state_dict()) == weights(runs.folder()) and dit.frames == 24
    assert dit.generate(1, steps=2)[0].latents.shape == (4, 24)


def test_a_part_of_the_songs(runs):
    """Fewer songs, as many looks at each: fewer updates; a song by its id, or a part by a seed."""
    part = ['dit.subset.songs=[song-1,song-3]', 'fingerprint.every=', 'optim.epochs=1']
    done = runs.dora(*part)
    assert 'Training on 2 of 7 songs' in done.stderr + done.stdout
    assert weights(runs.folder(*part)) != weights(runs.folder(), 'checkpoint_1.th')
    bad = runs.dora('dit.subset.songs=[nobody]', check=False)
    assert bad.returncode == 2 and bad.stderr.count('Error:') == 1 and 'nobody' in bad.stderr


def test_subsets_are_the_seeds_alone():
    from omegaconf import OmegaConf

    from lumina_plugin.dit.solver import chosen_songs
    ids = [f's{i}' for i in range(9)]

    def chosen(**keys):
        return chosen_songs(ids, OmegaConf.create({'songs': [], 'fraction': 1., 'seed': 0, **keys}))
    assert chosen() == ids and chosen(songs=['s4', 's2']) == ['s2', 's4']
    half = chosen(fraction=.5)
    assert len(half) == 4 and half == chosen(fraction=.5) == sorted(half) and half != chosen(fraction=.5, seed=1)
    for bad in (dict(fraction=0), dict(fraction=2), dict(fraction=.01), dict(songs=['x'])):
        with pytest.raises(LuminaError, match='dit.subset'):
            chosen(**bad)


def test_every_window_is_seen_as_often_as_any_other():
    from lumina_plugin.dit.solver import LatentBatches

    from .tiny_dit import tiny_examples
    batches = LatentBatches(tiny_examples(tiny_dit(), 5), 2, 2., seed=3)
    assert len(batches) == 5
    seen, drawn = [], []
    for epoch in (1, 2):
        batches.epoch = epoch
        for examples, generator in batches:
            seen += [example.id for example in examples]
            drawn.append(float(torch.rand(1, generator=generator)))
    assert all(seen.count(f'song-{i}') == 4 for i in range(5)) and len(set(drawn)) == 10
    batches.epoch = 2
    assert [e.id for examples, _ in batches for e in examples] == seen[10:]


def test_a_run_fingerprints_its_catalogue_and_finds_its_songs(runs):
    from lumina_plugin.dit.attribution import DiTAttributor
    from lumina_plugin.dit.latents import LatentEncoder
    from lumina_plugin.dit.loading import load_dit
    from lumina_plugin.store import FingerprintStore
    dit, store = load_dit(runs.folder()), FingerprintStore.open(runs.folder() / 'lumina' / 'dit')
    assert [info.name for info in store.checkpoints if info.complete] == ['epoch-0002', 'epoch-0003']
    attributor = DiTAttributor(dit, store)
    assert attributor.song_ids == [f'song-{i}' for i in range(6)]
    encoder = LatentEncoder(dit)
    query = encoder.file(runs.root / 'songs' / 'song-2.wav', 'song-2')
    scores = attributor.scores([query])
    assert all(scores[channel].shape == (1, 6) for channel in 'PM')
    assert attributor.song_ids[int(scores['P'][0].argmax())] == 'song-2'


def test_remembered_latents_that_are_damaged_are_made_again(runs, tmp_path, caplog):
    from lumina_plugin.dit.latents import LatentEncoder
    dit, song = tiny_dit(), runs.root / 'songs' / 'song-0.wav'
    encoder = LatentEncoder(dit, windows=3, cache=tmp_path)
    made = encoder.file(song, 'a', 'waltz')
    assert len(made) == 3
    (kept,) = tmp_path.glob('*.safetensors')
    known = encoder.file(song, 'b')
    assert all(torch.equal(x.latents, y.latents) and y.id == 'b' and x.start == y.start
               for x, y in zip(made, known, strict=True))
    kept.write_bytes(kept.read_bytes()[:100])
    again = encoder.file(song, 'a', 'waltz')
    assert 'damaged' in caplog.text and all(torch.equal(x.latents, y.latents) for x, y in zip(made, again, strict=True))
    assert encoder.file(runs.root / 'songs' / 'silence.wav', 's') == []
    assert encoder.file(runs.root / 'songs' / 'silence.wav', 's') == []


def test_a_ground_truth_is_made_in_parts_and_kept(runs, tmp_path, monkeypatch):
    """Two halves retrained by two parts, none of them twice; made again, they answer the same to the bit."""
    from lumina_plugin.dit import ground_truth as gt
    from lumina_plugin.validation.lds import lds
    monkeypatch.chdir(tmp_path)

    def make(work, **options):
        return gt.make_truth(runs.folder(), runs.manifest, tmp_path / work, halves=2, each=2, draws=8, **options)
    assert make('work', part=(0, 2)) is None
    first = (tmp_path / 'work' / 'models' / 'half-000-a.safetensors').stat().st_mtime_ns
    truth = make('work', part=(1, 2))
    assert (tmp_path / 'work' / 'models' / 'half-000-a.safetensors').stat().st_mtime_ns == first
    assert truth.losses.shape == (2, 4, gt.BLOCKS) and truth.families == ['free', 'free', 'heldout', 'heldout']
    assert len(truth.songs) == 6 and 'silence' not in truth.songs
    assert [len(model.songs) for model in truth.models] == [3, 3]
    known = gt.DiTTruth.load(tmp_path / 'work' / gt.FILE)
    assert torch.equal(known.losses, truth.losses) and known.models == truth.models and known.facts == truth.facts
    assert all(torch.equal(a.latents, b.latents) and a.id == b.id
               for a, b in zip(known.queries, truth.queries, strict=True))
    again = make('again', part=(0, 1))
    assert torch.equal(again.losses, truth.losses)
    halves = known.halves(known.columns('free'))
    assert halves.members.sum(1).tolist() == [3, 3] and halves.losses.shape == (2, 2)
    assert lds(halves.members[:1].repeat(2, 0), halves).shape == (2,)
    with pytest.raises(LuminaError, match='another draws'):
        gt.make_truth(runs.folder(), runs.manifest, tmp_path / 'work', halves=2, each=2, draws=16)
    with pytest.raises(LuminaError, match='multiple'):
        gt.query_losses(tiny_dit(), truth.queries, 10)
    (tmp_path / 'broken').write_bytes(b'123')
    with pytest.raises(LuminaError, match='ground truth'):
        gt.DiTTruth.load(tmp_path / 'broken')


def test_the_committed_truth_says_what_the_docs_say():
    root = Path(__file__).resolve().parent.parent
    argv = ['benchmarks/dit_ground_truth.py', '--read', 'benchmarks/dit_ground_truth.safetensors']
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    free, heldout = done.stdout.splitlines()
    page = (root / 'docs' / 'dit.md').read_text()
    assert f'python {" ".join(argv)}' in page and free in ' '.join(page.split())
    assert re.findall(r'heldout: … ([\d.]+), … ([\d.]+)', page) == [tuple(re.findall(r'0\.\d\d', heldout))]
