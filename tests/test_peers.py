"""Other libraries' methods against the formulas of their papers, on gradients of plain autograd."""

import importlib.util

import numpy as np
import pytest
import torch

from lumina_plugin.errors import LuminaError
from lumina_plugin.validation.methods import BOTH
from lumina_plugin.validation.peers import LoGra, Trak, peer_methods

from .oracle import gradients_of
from .test_tracin import build_checkpoints, build_queries, by_channel, plain
from .tiny import build_lm

SONGS, QUERIES = build_queries(9), build_queries(3, 'continued', 1, prompt=6)  # 9: the last of a batch of 8 and 1


def rows_of(queries, checkpoint, channel, objective, masked=False):
    """Whole gradients [n, R]."""
    return torch.stack([plain(checkpoint.state, one, masked, objective)[channel] for one in queries]).double()


def lacking(song, checkpoint):
    """1 - the mean probability of a song's codes: what TRAK's Q says of it."""
    lm = build_lm().eval()
    lm.load_state_dict(checkpoint.state)
    example = song.example(lm, False)
    with torch.no_grad():
        out = lm.compute_predictions(song.codes[None], [example.attributes])
    right = out.logits.softmax(-1).gather(-1, song.codes[None, ..., None])[..., 0]
    return 1 - float(torch.stack([row[mask].mean() for row, mask in zip(right[0], out.mask[0], strict=True)]).mean())


@pytest.mark.parametrize('count', [1, 2])
def test_trak_of_whole_gradients_is_its_formula(peers, count):
    """Mean over checkpoints of φ_q (ΦᵀΦ + λ)⁻¹ Φᵀ, times the mean of Q (Park et al. 2023, equation 17)."""
    checkpoints = build_checkpoints(count)
    method = Trak(build_lm(), checkpoints, SONGS, projection='identity')
    scores = method.scores(QUERIES, masked=True)
    for channel in ('P', 'M'):
        features = [tuple(rows_of(some, one, channel, 'margin', masked) for some, masked in
                          ((SONGS, False), (QUERIES, True))) for one in checkpoints]
        scale = features[0][0].shape[1] ** .5  # dattri divides by it
        ridge = 0.01 * np.mean([float(((songs / scale) ** 2).sum(1).mean()) for songs, _ in features])
        assert method._attributors[channel].regularization == pytest.approx(ridge, rel=1e-4)
        expected = 0.
        for songs, queries in features:
            phi = songs / scale
            inverse = torch.linalg.inv(phi.T @ phi + ridge * torch.eye(phi.shape[1]))
            expected = expected + queries / scale @ inverse @ phi.T / count
        weights = np.mean([[lacking(song, one) for song in SONGS] for one in checkpoints], axis=0)
        np.testing.assert_allclose(scores[channel], expected.numpy() * weights, rtol=0.02, atol=2e-3)


def test_trak_keeps_no_more_than_asked(peers):
    method = Trak(build_lm(), build_checkpoints(), SONGS, dim=16)
    scores = method.scores(QUERIES, masked=False)
    assert set(scores) == {'P', 'M', BOTH} and scores[BOTH].shape == (3, 9)
    assert method.cost().bytes_per_song == 2 * 2 * 16 * 4


def test_logra_is_its_formula_on_projected_gradients(peers):
    """Σ over layers of ĝ_q (ĜᵀĜ / N + λ)⁻¹ ĝ, of gradients projected as dattri projects those of single entries."""
    checkpoint = build_checkpoints()[-1]
    method = LoGra(build_lm(), build_checkpoints(), SONGS, dim=64)
    scores = method.scores(QUERIES, masked=True)
    for channel in ('P', 'M'):
        attributor, expected = method._attributors[channel][0], 0.
        songs, queries = (rows_of(some, checkpoint, channel, 'cross_entropy', masked)
                          for some, masked in ((SONGS, False), (QUERIES, True)))
        at = 0
        for compressor, name in zip(attributor.compressors, attributor.layer_names, strict=True):
            o, i = attributor.model.get_submodule(name).weight.shape
            outer, inner = torch.eye(o).repeat_interleave(i, 0), torch.eye(i).repeat(o, 1)
            with torch.compiler.set_stance('force_eager'):
                matrix = compressor.forward(outer, inner).double() / (o * i)  # it multiplies by the size of a batch
            phi, psi = songs[:, at:at + o * i] @ matrix, queries[:, at:at + o * i] @ matrix
            second = phi.T @ phi / len(phi)
            damping = 0.1 * second.trace() / len(second)
            expected = expected + psi @ torch.linalg.inv(second + damping * torch.eye(len(second))) @ phi.T
            at += o * i
        np.testing.assert_allclose(scores[channel], expected.numpy(), rtol=2e-3, atol=2e-3)
    assert method.cost().bytes_per_song == 2 * 64 * 4


def summed(state, query, masked):
    """Whole gradients by channel, [R], of the cross entropy summed over valid codes."""
    lm = build_lm()
    lm.load_state_dict(state)
    example = query.example(lm, masked)

    def value():
        out = lm.compute_predictions(query.codes[None], [example.attributes])
        nats = -out.logits.log_softmax(-1).gather(-1, query.codes[None, ..., None])[..., 0]
        return nats[out.mask & (torch.arange(query.codes.shape[-1]) >= example.start)].sum()
    return by_channel(gradients_of(lm, value))


def test_ekfac_without_its_factors_is_an_inner_product(peers):
    from lumina_plugin.validation.ekfac import EKFAC
    checkpoints = build_checkpoints()
    scores = EKFAC(build_lm(), checkpoints, SONGS, strategy='identity').scores(QUERIES, masked=True)
    songs, queries = ([summed(checkpoints[-1].state, one, masked) for one in some]
                      for some, masked in ((SONGS, False), (QUERIES, True)))
    for channel in ('P', 'M'):
        expected = torch.stack([one[channel] for one in queries]) @ torch.stack([one[channel] for one in songs]).T
        np.testing.assert_allclose(scores[channel], expected, rtol=1e-3, atol=1e-3)


def test_ekfac_finds_songs_by_themselves(peers):
    from lumina_plugin.validation.ekfac import EKFAC
    method = EKFAC(build_lm(), build_checkpoints(), SONGS)
    scores = method.scores(SONGS, masked=False)
    for channel in ('P', 'M'):
        np.testing.assert_allclose(scores[channel], scores[channel].T, rtol=1e-3, atol=1e-3 * scores[channel].max())
        assert scores[channel].argmax(1).tolist() == list(range(len(SONGS)))
    assert method.cost().bytes_per_song == pytest.approx(2 * 4 * (15 + 8 * 24) / 9)


def test_what_is_not_installed_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(LuminaError, match=r'dattri and kronfluence.*pip install'):
        peer_methods(build_lm(), build_checkpoints(), SONGS)
