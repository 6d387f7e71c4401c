"""A song's fingerprint does not depend on what it is computed beside, on batches or on threads; a repeat is identical.

On the quickstart's model: 4 layers of 128, 4 codebooks of 256, random weights.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lumina_plugin.fingerprint import Fingerprinter, Song
from lumina_plugin.gradients import Example
from lumina_plugin.recipe import get_recipe

from .oracle import relative_error
from .tiny import attributes_for, build_lm

ALLOWED = 1e-4
PRESETS = pytest.mark.parametrize('preset', ['default', 'paper'])


def quickstart_lm():
    return build_lm(n_q=4, card=256, dim=128, num_heads=4, num_layers=4, hidden_scale=2)


def unlike_songs(lm, count=5):
    """Songs of one or two whole chunks of 60 frames, and a last one that is padded or simply shorter."""
    generator = torch.Generator().manual_seed(0)

    def example(frames, stop):
        return Example(torch.randint(0, lm.card, (lm.n_q, frames), generator=generator), 0, stop,
                       attributes_for(lm, 'slow waltz'))
    return [Song(f'song-{i}', [*(example(60, 60) for _ in range(i % 2 + 1)),
                               example(60, 37) if i % 3 else example(31 + i, 31 + i)]) for i in range(count)]


@pytest.fixture
def threads():
    """Sets how many threads torch uses; put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@PRESETS
def test_batches_threads_and_neighbours_do_not_matter(preset, threads):
    lm = quickstart_lm()
    songs = unlike_songs(lm)
    recipe = get_recipe(preset)
    threads(1)
    projections, _ = Fingerprinter(lm, recipe).fit(songs)
    query = songs[3].examples + songs[0].examples[::-1]  # chunks of three lengths

    def found(batch_size, songs):
        fingerprinter = Fingerprinter(lm, recipe, projections=projections, batch_size=batch_size)
        vectors = {f'{found.song} {channel}': vector for found in fingerprinter.fingerprints(songs)
                   for channel, vector in found.vectors.items()}
        whole, parts = fingerprinter.query(query)
        return {**vectors, **{f'query {channel}': vector for channel, vector in whole.items()},
                **{f'parts {channel}': rows for channel, rows in parts.items()}}
    expected = found(1, songs)
    others = [found(4, songs), found(16, songs[::-1]), found(16, songs[3:4])]
    threads(2)
    others += [found(16, songs[2:])]
    worst = max(relative_error(vector, expected[name]) for other in others for name, vector in other.items())
    print(f'{preset}: {worst:.1e}')
    assert worst < ALLOWED


def digest():
    """SHA-256 over fits and fingerprints of both recipes on one thread."""
    torch.set_num_threads(1)
    lm = quickstart_lm()
    songs = unlike_songs(lm, 4)
    sha = hashlib.sha256()
    for preset in ('default', 'paper'):
        fingerprinter = Fingerprinter(lm, get_recipe(preset))
        projections, _ = fingerprinter.fit(songs)
        for channel in ('P', 'M'):
            for _, tensor in sorted(projections[channel].tensors().items()):
                sha.update(tensor.contiguous().numpy().tobytes())
        for found in fingerprinter.fingerprints(songs):
            for channel in ('P', 'M'):
                sha.update(found.vectors[channel].numpy().tobytes() + repr(found.norms[channel]).encode())
        for vectors in fingerprinter.query(songs[0].examples):
            sha.update(vectors['P'].numpy().tobytes() + vectors['M'].numpy().tobytes())
    return sha.hexdigest()


def test_another_process_gives_the_same_bits(threads):
    root = Path(__file__).parent.parent
    code = 'from tests.test_reproducible import digest; print(digest())'
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=False,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == digest()
