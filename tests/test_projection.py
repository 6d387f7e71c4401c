"""Projections keep inner products, exactly where they promise to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_plugin.channels import Block
from lumina_plugin.projection import (
    BlockReducers,
    ChannelProjection,
    FittedProjection,
    RandomProjection,
    SparseSigns,
    unit_rows,
)


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
