"""Projections keep inner products, exactly where they promise to."""

import typing as tp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_plugin.capture import TwoSided, full_gradient
from lumina_plugin.channels import Block
from lumina_plugin.fingerprint import Fingerprinter
from lumina_plugin.projection import (
    BlockReducers,
    ChannelProjection,
    FittedProjection,
    RandomProjection,
    SparseSigns,
    random_factor,
    unit_rows,
)
from lumina_plugin.recipe import get_recipe

from .tiny import build_lm, build_songs


def rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return unit_rows(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


def test_random_projection_shows_the_theoretical_noise_floor():
    """Cosines of unrelated vectors spread by 1/√D (4.4 % at D = 512); inner products are unbiased."""
    x = rows(200, 6000)
    cosines = RandomProjection(6000, 512, 0)(x)
    cosines = cosines @ cosines.T
    noise = (cosines - x @ x.T)[~torch.eye(200, dtype=torch.bool)]
    assert abs(float(noise.std()) - 512 ** -0.5) < 0.004
    assert abs(float(noise.mean())) < 0.002


def test_random_projection_is_linear_and_seeded():
    x = rows(4, 300)
    one, same, other = RandomProjection(300, 64, 1), RandomProjection(300, 64, 1), RandomProjection(300, 64, 2)
    torch.testing.assert_close(one.project(x[:1] + 2 * x[1:2]), one.project(x[:1]) + 2 * one.project(x[1:2]))
    assert torch.equal(one.project(x), same.project(x)) and not torch.equal(one.project(x), other.project(x))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 5))
def test_sparse_signs_have_rows_of_unit_length(in_dim, dim, seed):
    matrix = SparseSigns(in_dim, dim, seed)(torch.eye(in_dim))
    torch.testing.assert_close(matrix.norm(dim=1), torch.ones(in_dim))


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 30), st.integers(0, 5), st.booleans())
def test_fitted_projection_is_exact_on_the_songs_it_saw(count, seed, center):
    x = rows(count, 200, seed)
    fitted = FittedProjection.fit(x, dim=64, residual_dim=8, center=center, seed=0)
    projected, centred = fitted.project(x), x - (x.mean(0) if center else 0)
    assert fitted.rank == count - center
    torch.testing.assert_close(projected @ projected.T, centred @ centred.T, atol=2e-4, rtol=0)


def test_fitted_projection_keeps_a_strangers_products_and_length():
    """A query outside the songs' span: products with songs stay exact, its length is kept up to the residual's
    noise."""
    songs, query = rows(40, 2000), rows(20, 2000, seed=9)
    fitted = FittedProjection.fit(songs, dim=512, residual_dim=64, center=True, seed=0)
    mean = songs.mean(0)
    torch.testing.assert_close(fitted.project(query) @ fitted.project(songs).T, (query - mean) @ (songs - mean).T,
                               atol=2e-4, rtol=0)
    lengths = fitted.project(query).norm(dim=1) / (query - mean).norm(dim=1)
    assert (lengths - 1).abs().max() < 0.15


def test_fitted_projection_leaves_room_for_the_residual():
    fitted = FittedProjection.fit(rows(100, 500), dim=64, residual_dim=16, center=True, seed=0)
    assert fitted.rank == 48 and fitted.project(rows(1, 500)).shape == (1, 64)


def test_fit_survives_identical_songs():
    same = rows(1, 50).expand(6, -1)
    projected = FittedProjection.fit(same, dim=16, residual_dim=4, center=True, seed=0)(same)
    assert torch.isfinite(projected).all()


def test_fit_is_deterministic():
    x = rows(30, 300)
    one, two = (FittedProjection.fit(x, 64, 8, True, 0) for _ in range(2))
    assert torch.equal(one.basis, two.basis)


def test_channel_projection_survives_a_round_trip():
    block = Block('w', 6, 5, 'w')
    factors = {'w.in': torch.linalg.qr(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))[0]}
    gradients = {'w': torch.randn(20, 6, 3, generator=torch.Generator().manual_seed(1))}
    reducers = BlockReducers([block], factors, block_norm=True)
    joined, norms = reducers.join(gradients)
    torch.testing.assert_close(norms, gradients['w'].flatten(1).norm(dim=1))
    projection = ChannelProjection(reducers, FittedProjection.fit(joined, 16, 4, True, 3))
    loaded = ChannelProjection.load([block], projection.tensors(), projection.facts(), block_norm=True)
    assert torch.equal(loaded(gradients)[0], projection(gradients)[0])


def test_block_norm_makes_blocks_count_the_same():
    blocks = [Block('a', 2, 2, 'a'), Block('b', 2, 2, 'b')]
    gradients = {'a': torch.randn(3, 2, 2), 'b': 1000 * torch.randn(3, 2, 2)}
    joined, _ = BlockReducers(blocks, {}, block_norm=True).join(gradients)
    torch.testing.assert_close(joined[:, :4].norm(dim=1), joined[:, 4:].norm(dim=1))
    joined, _ = BlockReducers(blocks, {}, block_norm=False).join(gradients)
    assert (joined[:, :4].norm(dim=1) < 0.1).all()


def test_zero_rows_stay_zero():
    assert torch.equal(unit_rows(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_projection_of_another_model_is_refused():
    from lumina_plugin.errors import LuminaError
    projection = ChannelProjection(BlockReducers([Block('w', 4, 4, 'w')], {}, False), RandomProjection(16, 8, 0))
    with pytest.raises(LuminaError, match='fingerprint again'):
        ChannelProjection.load([Block('w', 4, 5, 'w')], projection.tensors(), projection.facts(), False)


# --- random two-sided factors -----------------------------------------------------------------------------------------

def blockwise(count: int, blocks: tp.Sequence[Block], steps: int = 6) -> tp.Dict[str, torch.Tensor]:
    """Gradients [n, o, i] that are sums over a few steps, so that they are of low rank, and share what songs share."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def gradient(block: Block) -> torch.Tensor:
        delta = draw(1, steps, block.out_features) + draw(count, steps, block.out_features)
        inputs = draw(1, steps, block.in_features) + draw(count, steps, block.in_features)
        return torch.einsum('nto,nti->noi', delta, inputs)
    return {block.name: gradient(block) for block in blocks}


def two_sided(gradients: tp.Mapping[str, torch.Tensor], reducers: BlockReducers) -> tp.Dict[str, torch.Tensor]:
    """What the capture would have kept of whole gradients [n, o, i]: [n, o', i']."""
    out = dict(gradients)
    for name, reducer in reducers.reducers().items():
        if isinstance(reducer, TwoSided):
            left = out[name] if reducer.u_out is None else reducer.u_out.T @ out[name]
            out[name] = left if reducer.u_in is None else left @ reducer.u_in
    return out


BLOCKS = [Block('a', 48, 32, 'a'), Block('b', 96, 32, 'b'), Block('c', 16, 16, 'c')]


@pytest.mark.parametrize('size, width', [(96, 16), (40, 32)])
def test_a_random_factor_keeps_inner_products_in_expectation_with_the_predicted_error(size, width):
    """The squared length of the image of a unit vector is 1 ± √(2 (size - width) / (width (size + 2))) (a Beta law)."""
    x = unit_rows(torch.randn(1, size, generator=torch.Generator().manual_seed(0)))
    lengths = torch.stack([(x @ random_factor(size, width, seed, 'w.in')).square().sum() for seed in range(2000)])
    spread = (2 * (size - width) / (width * (size + 2))) ** 0.5
    assert abs(float(lengths.mean()) - 1) < 4 * spread / 2000 ** 0.5
    assert float(lengths.std()) == pytest.approx(spread, rel=0.08)
    factor = random_factor(size, width, 0, 'w.in')
    torch.testing.assert_close(factor.T @ factor, torch.eye(width) * size / width, atol=1e-5, rtol=0)


def test_two_sided_random_factors_keep_cosines_of_more_songs_than_numbers():
    """At D = 64, with three times as many songs: unbiased, and the errors of both stages add as those of independent
    draws; wider factors err less."""
    gradients = blockwise(200, BLOCKS)
    whole, _ = BlockReducers(BLOCKS, {}, True).join(gradients)
    pairs = ~torch.eye(200, dtype=torch.bool)

    def errors(width: int, seed: int, dim: tp.Optional[int] = None) -> torch.Tensor:
        reducers = BlockReducers.random(BLOCKS, width, seed, True)
        joined, _ = reducers.join(two_sided(gradients, reducers))
        if dim is not None:
            joined = RandomProjection(joined.shape[1], dim, seed)(joined)
        return (joined @ joined.T - whole @ whole.T)[pairs]
    wide, narrow, both = (torch.cat([errors(*what, dim) for what in [(w, seed) for seed in range(8)]])
                          for w, dim in ((24, None), (8, None), (24, 64)))
    sizes = [float(x.square().mean().sqrt()) for x in (wide, narrow, both)]
    assert all(abs(float(x.mean())) < 0.02 for x in (wide, narrow, both))
    assert sizes[0] < 0.6 * sizes[1]
    floor = float(torch.cat([(lambda v: (v @ v.T - whole @ whole.T)[pairs])(RandomProjection(
        whole.shape[1], 64, seed)(whole)) for seed in range(8)]).square().mean().sqrt())
    assert floor == pytest.approx(64 ** -0.5, rel=0.15)
    assert sizes[2] == pytest.approx((sizes[0] ** 2 + floor ** 2) ** 0.5, rel=0.1)


def test_random_factors_come_from_their_seed_and_name_alone():
    forwards, backwards = (BlockReducers.random(blocks, 8, 3, True).factors for blocks in (BLOCKS, BLOCKS[::-1]))
    other = BlockReducers.random(BLOCKS, 8, 4, True).factors
    assert forwards.keys() == {f'{name}.{side}' for name in 'abc' for side in ('in', 'out')}
    for name, factor in forwards.items():
        assert torch.equal(factor, backwards[name]) and not torch.equal(factor, other[name])
    assert not torch.equal(forwards['a.in'], forwards['b.in'])  # of one shape
    alone = BlockReducers.random(BLOCKS[:1], 8, 3, True).factors
    assert torch.equal(alone['a.in'], forwards['a.in'])


def test_a_side_no_wider_than_the_width_is_kept_whole():
    reducers = BlockReducers.random(BLOCKS, 32, 0, True)
    assert reducers.factors.keys() == {'a.out', 'b.out'} and reducers.dim == 32 * 32 + 32 * 32 + 16 * 16
    assert reducers.reducers()['c'] is full_gradient


@pytest.mark.parametrize('kind', ['random', 'fitted'])
def test_random_factors_are_made_again_and_never_stored(kind):
    reducers = BlockReducers.random(BLOCKS, 8, 5, True)
    gradients = two_sided(blockwise(40, BLOCKS), reducers)
    joined, _ = reducers.join(gradients)
    last = RandomProjection(reducers.dim, 64, 5) if kind == 'random' else FittedProjection.fit(joined, 64, 8, False, 5)
    projection = ChannelProjection(reducers, last)
    assert projection.tensors().keys() == ({'projection.mean', 'projection.basis'} if kind == 'fitted' else set())
    loaded = ChannelProjection.load(BLOCKS, projection.tensors(), projection.facts(), block_norm=True)
    assert torch.equal(loaded(gradients)[0], projection(gradients)[0])
    assert loaded.reducers.factors.keys() == reducers.factors.keys()
    for name, factor in reducers.factors.items():
        assert torch.equal(loaded.reducers.factors[name], factor)
    assert loaded.facts() == projection.facts()


def test_the_capture_yields_what_random_factors_make_of_whole_gradients():
    """Through a real language model, `kind: random` with a block width: nothing is fitted and no song is looked at."""
    lm = build_lm()
    songs = build_songs(lm, 5)
    recipe = get_recipe('paper', projection={'dim': 32, 'block_width': 6})
    fingerprinter = Fingerprinter(lm, recipe)
    projections, windows = fingerprinter.fit([])
    assert not windows and all(not projection.tensors() for projection in projections.values())
    whole, _ = fingerprinter.song_gradients([song.examples for song in songs],
                                            {name: full_gradient for name in fingerprinter.blocks})
    for index, found in enumerate(fingerprinter.fingerprints(songs)):
        for channel, projection in projections.items():
            expected, _ = projection(two_sided({name: g[index:index + 1] for name, g in whole.items()},
                                               projection.reducers))
            torch.testing.assert_close(found.vectors[channel], expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize('factors', ['random', 'fitted'])
@pytest.mark.parametrize('kind', ['random', 'fitted'])
def test_factors_and_projection_are_chosen_apart(kind, factors):
    lm = build_lm()
    songs = build_songs(lm, 6)
    fingerprinter = Fingerprinter(lm, get_recipe('default', projection={
        'kind': kind, 'block_factors': factors, 'block_width': 6, 'dim': 32, 'residual_dim': 8}))
    projections, _ = fingerprinter.fit(songs)
    said, _ = fingerprinter.fit_bytes(len(songs))
    for projection in projections.values():
        stored = projection.tensors().keys()
        assert any(name.startswith('factor.') for name in stored) == (factors == 'fitted')
        assert ('projection.basis' in stored) == (kind == 'fitted')
        assert all(max(gradient) <= 6 for gradient in (f.shape[1:] for f in projection.reducers.factors.values()))
    assert said >= 4 * sum(t.numel() for projection in projections.values() for t in projection.tensors().values())
    assert (said == 0) == (kind == 'random' and factors == 'random')


@pytest.mark.parametrize('center', [False, True])
def test_without_signs_a_vector_is_as_long_as_its_gradient_lies_inside(center):
    """So that inner products of songs of the fit are the cosines of their whole gradients while N is at most D."""
    songs, query = unit_rows(rows(20, 200)), unit_rows(rows(1, 200, seed=9))
    fitted = FittedProjection.fit(songs, dim=32, residual_dim=0, center=center, seed=0)
    centred, asked = songs - fitted.mean, query - fitted.mean
    found, length = fitted(songs), fitted(query).norm()
    assert found.shape == (20, 32) and not found[:, fitted.rank:].any()
    torch.testing.assert_close(found @ found.T, unit_rows(centred) @ unit_rows(centred).T, atol=1e-5, rtol=0)
    torch.testing.assert_close(fitted(query) @ found.T, unit_rows(asked) @ unit_rows(centred).T, atol=1e-5, rtol=0)
    assert 0.1 < length < 0.9
    again = ChannelProjection.load([Block('w', 10, 20, 'w')], ChannelProjection(
        BlockReducers([Block('w', 10, 20, 'w')], {}, True), fitted).tensors(), fitted.facts(), True)
    assert torch.equal(again.projection(query), fitted(query))


def test_principal_directions_err_less_than_signs_on_songs_of_a_language_model_that_no_fit_saw():
    """More songs than D, half of D left to the residual: queries of a real model that the fit never saw, against songs
    that it saw. How far this carries, and where it does not, is in docs/projection.md."""
    lm = build_lm(dim=32)
    songs = build_songs(lm, 120)
    fingerprinter = Fingerprinter(lm, get_recipe('default'), batch_size=16)
    join = {channel: BlockReducers(blocks, {}, True) for channel, blocks in fingerprinter.channels.items()}
    whole = {name: full_gradient for name in fingerprinter.blocks}
    gradients, _ = fingerprinter.song_gradients([song.examples for song in songs], whole)
    for channel, one in join.items():
        x, _ = one.join(gradients)
        seen, unseen = x[:90], x[90:]
        rms = {}
        for name, make in (('random', lambda seed, seen=seen: RandomProjection(seen.shape[1], 64, seed)),
                           ('fitted', lambda seed, seen=seen: FittedProjection.fit(seen, 64, 32, False, seed)),
                           ('lengths', lambda seed, seen=seen: FittedProjection.fit(seen, 64, 0, False, seed))):
            error = torch.stack([p(unseen) @ p(seen).T - unseen @ seen.T for p in map(make, range(4))])
            rms[name] = float(error.square().mean().sqrt())
        assert rms['fitted'] < 0.8 * rms['random'] and rms['lengths'] < 0.5 * rms['fitted'], (channel, rms)
        assert rms['random'] < 1.3 * 64 ** -0.5


def test_left_open_signs_fill_what_the_songs_leave_and_no_less_than_enough():
    """A song that comes after the fit is found by its own recording while there is room for signs."""
    songs, added = unit_rows(rows(40, 500)), unit_rows(rows(1, 500, seed=9))
    few = FittedProjection.fit(songs, dim=128, residual_dim=None, center=False, seed=0)
    torch.testing.assert_close(few(songs) @ few(songs).T, songs @ songs.T, atol=1e-5, rtol=0)
    assert float(few(added) @ few(added).T) == pytest.approx(1, abs=1e-5)
    assert float(few(added) @ few(added).T) > float((few(added) @ few(songs).T).max()) + 0.5
    many = FittedProjection.fit(unit_rows(rows(100, 500)), dim=128, residual_dim=None, center=False, seed=0)
    assert many.rank == 100 and float(many(added).norm()) < 0.8 and not many(added)[:, 100:].any()
