"""TracIn is the sum of plain inner products; checkpoints and their rates are the run's."""


import numpy as np
import pytest
import torch

from lumina_plugin.models import load_musicgen
from lumina_plugin.validation.queries import Query
from lumina_plugin.validation.tracin import Checkpoint, TracIn, _rate, run_checkpoints

from .oracle import oracle
from .tiny import build_lm


def build_queries(count, family='songs', seed=0, prompt=0):
    """Queries of a card of 16; the first is shorter than the others."""
    generator = torch.Generator().manual_seed(seed)
    return [Query(f'{family}-{i}', family, torch.randint(0, 16, (4, 24 if i else 15), generator=generator), prompt,
                  f'song-{i}' if family == 'songs' else None, 'slow waltz' if i % 2 else None) for i in range(count)]


def build_checkpoints(count=2):
    return [Checkpoint(f'epoch-{i}', build_lm(seed=i).state_dict(), 0.1 * (i + 1)) for i in range(count)]


def plain(state, query, masked, objective='cross_entropy'):
    """One query's whole gradients by channel, [R], of plain autograd."""
    lm = build_lm()
    lm.load_state_dict(state)
    return by_channel(oracle(lm, query.example(lm, masked), objective))


def by_channel(gradients):
    """Gradients of the channels' weights joined, [R]."""
    return {'P': torch.cat([g.flatten() for name, g in gradients.items() if 'self_attn' in name]),
            'M': torch.cat([g.flatten() for name, g in gradients.items() if name.startswith('linears')])}


def products(songs, queries, checkpoints, masked=True):
    """Σ_c η_c ⟨∇L_c(song), ∇L_c(query)⟩ by channel, [Q, N]."""
    found = {'P': 0., 'M': 0.}
    for checkpoint in checkpoints:
        rows, columns = ([plain(checkpoint.state, one, mask) for one in some]
                         for some, mask in ((queries, masked), (songs, False)))
        for channel in found:
            first, second = (torch.stack([one[channel] for one in some]) for some in (rows, columns))
            found[channel] = found[channel] + checkpoint.rate * (first @ second.T).double().numpy()
    return found


def test_scores_are_sums_of_inner_products_of_autograds_gradients():
    songs, queries, checkpoints = build_queries(5), build_queries(3, 'continued', 1, prompt=6), build_checkpoints()
    method = TracIn(build_lm(), checkpoints, songs)
    scores = method.scores(queries, masked=True)
    for channel, expected in products(songs, queries, checkpoints).items():
        np.testing.assert_allclose(scores[channel], expected, rtol=1e-4, atol=1e-7)
    kept = sum(len(values) for values in plain(checkpoints[0].state, songs[0], False).values())
    assert method.cost().bytes_per_song == 2 * 4 * kept and method.cost().seconds_per_song > 0


def test_weights_before_a_training_count_nothing():
    songs, checkpoints = build_queries(3), build_checkpoints()
    start = Checkpoint('epoch-0000', build_lm(seed=7).state_dict(), 0.)
    first, second = (TracIn(build_lm(), some, songs).scores(songs, masked=False)
                     for some in (checkpoints, [start, *checkpoints]))
    np.testing.assert_array_equal(first['P'], second['P'])


def test_a_runs_checkpoints_come_with_their_rates(project):
    """The tiny run has 4 epochs and checkpoints after 2 and 4 of them."""
    import json
    run = project.folder()
    musicgen = load_musicgen(run)
    found = run_checkpoints(run, musicgen.lm)
    rates = [epoch['train']['lr'] for epoch in json.loads((run / 'history.json').read_text())]
    assert [one.name for one in found] == ['epoch-0002', 'epoch-0004']
    assert [one.rate for one in found] == pytest.approx([sum(rates[:2]), sum(rates[2:])])
    assert (_rate(run, 0, 0), _rate(run / 'nowhere', 0, 2)) == (0., 1.)  # before a training; without its history
    last = musicgen.lm.state_dict()
    assert all(torch.equal(found[-1].state[name], tensor) for name, tensor in last.items())


def test_a_run_without_a_store_has_its_last_model(tmp_path):
    lm = build_lm()
    (found,) = run_checkpoints(tmp_path, lm)
    assert (found.name, found.rate) == ('last', 1.) and set(found.state) == set(lm.state_dict())
