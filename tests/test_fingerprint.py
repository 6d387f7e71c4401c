"""Fingerprints of songs: averaging, batching, lending weights."""

import pytest
import torch

from lumina_plugin.capture import full_gradient
from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Fingerprinter, spread
from lumina_plugin.recipe import get_recipe

from .tiny import build_lm, build_songs

SMALL = {'block_width': 6, 'dim': 32, 'residual_dim': 8}


def test_a_songs_gradient_is_the_mean_over_its_chunks_weighted_by_valid_frames():
    lm = build_lm()
    songs = build_songs(lm, 3)
    fingerprinter = Fingerprinter(lm, get_recipe('default'), batch_size=4)
    reducers = {name: full_gradient for name in fingerprinter.blocks}
    found, chunk_norms = fingerprinter.song_gradients([song.examples for song in songs], reducers)
    for row, song in enumerate(songs):
        one_by_one = [fingerprinter.gradients([example], reducers) for example in song.examples]
        total = sum(example.weight for example in song.examples)
        for name in reducers:
            expected = sum(g[name] * e.weight / total for g, e in zip(one_by_one, song.examples, strict=True))
            torch.testing.assert_close(found[name][row:row + 1], expected, rtol=1e-4, atol=1e-7)
        norms = [torch.stack([g[block.name].norm() for block in fingerprinter.channels['P']]).norm()
                 for g in one_by_one]
        torch.testing.assert_close(chunk_norms[row]['P'], torch.stack(norms), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('preset', ['default', 'paper'])
def test_fingerprints_do_not_depend_on_batches_or_neighbours(preset):
    lm = build_lm()
    songs = build_songs(lm, 8)
    recipe = get_recipe(preset, **({'projection': SMALL} if preset == 'default' else {}))
    reference = Fingerprinter(lm, recipe)
    projections, _ = reference.fit(songs)
    vectors = {found.song: found.vectors for found in reference.fingerprints(songs)}
    for batch_size in (1, 4, 16):
        other = Fingerprinter(lm, recipe, projections=projections, batch_size=batch_size)
        for found in other.fingerprints(songs[3:]):
            for channel, vector in found.vectors.items():
                assert (vector - vectors[found.song][channel]).norm() < 1e-4
                assert vector.norm().item() == pytest.approx(1, abs=1e-5) and found.norms[channel] > 0


def test_repeated_passes_are_bit_identical():
    lm = build_lm()
    songs = build_songs(lm, 6)
    recipe = get_recipe('default', projection=SMALL)

    def run():
        fingerprinter = Fingerprinter(lm, recipe)
        fingerprinter.fit(songs)
        return [found.vectors['P'] for found in fingerprinter.fingerprints(songs)]
    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_rows_of_a_fit_are_the_songs_fingerprints():
    lm = build_lm()
    songs = build_songs(lm, 6)
    fingerprinter = Fingerprinter(lm, get_recipe('default', projection=SMALL))
    _, windows = fingerprinter.fit(songs)
    direct = [found.vectors['M'] for found in fingerprinter.fingerprints(songs)]
    fitted = [found.vectors['M'] for window in windows for found in fingerprinter.project(window)]
    assert all(torch.equal(a, b) for a, b in zip(direct, fitted, strict=True))


def test_weights_are_lent_not_copied_in():
    lm, other = build_lm(seed=0), build_lm(seed=1)
    songs = build_songs(lm, 4)
    recipe = get_recipe('paper')
    lent = Fingerprinter(lm, recipe, weights=other.state_dict())
    own = Fingerprinter(other, recipe)
    lent.fit(songs), own.fit(songs)
    for a, b in zip(lent.fingerprints(songs), own.fingerprints(songs), strict=True):
        torch.testing.assert_close(a.vectors['P'], b.vectors['P'])
    assert not torch.equal(lm.linears[0].weight, other.linears[0].weight)


def test_a_query_is_its_song_and_has_one_fingerprint_per_chunk():
    lm = build_lm()
    songs = build_songs(lm, 6)
    fingerprinter = Fingerprinter(lm, get_recipe('default', projection=SMALL))
    fingerprinter.fit(songs)
    found = list(fingerprinter.fingerprints(songs))[2]
    whole, parts = fingerprinter.query(songs[2].examples)
    torch.testing.assert_close(whole['P'], found.vectors['P'], atol=1e-5, rtol=0)
    assert parts['P'].shape == (len(songs[2].examples), 32)


def test_fingerprints_before_a_fit_say_what_to_do():
    lm = build_lm()
    with pytest.raises(LuminaError, match=r'fit\(songs\)'):
        list(Fingerprinter(lm, get_recipe('default')).fingerprints(build_songs(lm, 1)))


def test_spread_takes_equal_steps():
    assert spread(list(range(10)), 3) == [1, 5, 8] and spread([1, 2], 5) == [1, 2]


@pytest.mark.parametrize('width', [None, 6])
def test_the_bytes_said_before_a_pass_are_those_of_the_fit(width):
    lm = build_lm()
    fingerprinter = Fingerprinter(lm, get_recipe('default', projection={**SMALL, 'block_width': width}))
    said, rows_said = fingerprinter.fit_bytes(6)
    projections, windows = fingerprinter.fit(build_songs(lm, 6))
    sizes = [t.numel() * 4 for projection in projections.values() for t in projection.tensors().values()]
    assert said >= sum(sizes)  # a side that is no wider than block_width has no factor
    assert said <= 1.2 * sum(sizes) + 4 * sum(b.out_features ** 2 + b.in_features ** 2
                                              for b in fingerprinter.blocks.values())
    assert rows_said == 2 * sum(rows.numel() * 4 for window in windows for rows in window.rows.values())


def test_a_part_is_the_mean_of_its_encodings():
    """Chunks weigh by their valid frames, within a part and in the whole query."""
    lm = build_lm()
    songs = build_songs(lm, 6)
    fingerprinter = Fingerprinter(lm, get_recipe('default', projection=SMALL))
    projections, _ = fingerprinter.fit(songs)
    examples = songs[2].examples[:2] + songs[5].examples[:2]
    whole, parts = fingerprinter.query(examples, [0, 1, 0, 1])
    gradients = fingerprinter.gradients(examples, fingerprinter._reducers())
    for part in (0, 1):
        pair = [examples[part], examples[part + 2]]
        share = torch.tensor([e.weight for e in pair]) / sum(e.weight for e in pair)
        mixed = {name: (share[:, None, None] * g[[part, part + 2]]).sum(0)[None] for name, g in gradients.items()}
        torch.testing.assert_close(parts['P'][part], projections['P'](mixed)[0][0], atol=1e-5, rtol=0)
    assert parts['P'].shape[0] == 2
    torch.testing.assert_close(whole['P'], fingerprinter.query(examples)[0]['P'], atol=1e-6, rtol=0)
