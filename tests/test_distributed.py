"""Songs spread over processes are scored as in one: by two real ranks of gloo, and the merging alone as a property."""

import typing as tp
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from lumina_plugin import statistics
from lumina_plugin.distributed import Answer, DistributedScorer, consecutive, highest, joined, part_of_answer
from lumina_plugin.scoring import StackedRows, fit_scorers, mean_scores
from lumina_plugin.statistics import Gate, channel_statistics, joint_spread, measured_noise, spread_of
from lumina_plugin.workers import Workers

ARRAYS = ('cosine', 'score', 'z', 'confidence', 'sts', 'lip', 'lip_percent', 'passes_gate', 'qualified', 'weight',
          'share')
K = 20
Case = tp.Dict[str, tp.Any]
CASES: tp.Dict[str, Case] = {
    'cosine': dict(method='cosine'), 'kernel': dict(method='kernel', ridge=0.3),
    'float16, two checkpoints': dict(method='kernel', checkpoints=2, dtype=torch.float16),
    'printed gate': dict(method='cosine', gate=Gate(0.9, 'one_sided'), noise=(0., statistics.noise_floor(32))),
    'one shard, one process without songs': dict(method='kernel', shards=[500]),
    'fewer songs than are asked for': dict(method='cosine', shards=[7, 4]),
    'a sample for the noise': dict(method='cosine', shards=[1800] * 3, width=8, gate=Gate(0.8))}


def songs_of(case: Case) -> tp.Tuple[tp.List[tp.List[torch.Tensor]], tp.List[np.ndarray]]:
    """Per checkpoint its shards and the queries, some of them near a song, one of them nothing."""
    sizes, width = case.get('shards', [130, 64, 1, 205, 100]), case.get('width', 32)
    generator = torch.Generator().manual_seed(sum(sizes))
    shards, queries = [], []
    for _ in range(case.get('checkpoints', 1)):
        rows = torch.randn(sum(sizes), width, generator=generator) + 0.4
        rows[3] = 0  # a silent song
        asked = torch.randn(6, width, generator=generator)
        asked[:3] = rows[[0, 5, sum(sizes) - 1]] + 0.3 * asked[:3]
        asked[5] = 0
        shards.append(list(rows.to(case.get('dtype', torch.float32)).split(sizes)))
        queries.append(asked.double().numpy())
    return shards, queries


def asked_together(workers: Workers, case: Case) -> tp.List[Answer]:
    shards, queries = songs_of(case)
    own = [StackedRows(consecutive(parts, workers.rank, workers.count), parts[0].shape[1]) for parts in shards]
    options = {key: case[key] for key in ('method', 'ridge', 'gate', 'noise') if key in case}
    return DistributedScorer(workers, own, **options).answer(queries, K)


def asked_alone(case: Case) -> tp.List[statistics.ChannelStatistics]:
    """The route of one process."""
    shards, queries = songs_of(case)
    rows = [StackedRows(parts, parts[0].shape[1]) for parts in shards]
    names = list(dict.fromkeys(['cosine', case['method']]))
    scorers = [fit_scorers(names, each, case.get('ridge', 0.01)) for each in rows]
    mean, floor = case.get('noise') or measured_noise(rows)
    return [channel_statistics(cosine, score, floor, case.get('gate'), mean)
            for cosine, score in zip(*mean_scores(scorers, queries, case['method']), strict=True)]


def expect_same(found: Answer, whole: statistics.ChannelStatistics, k: int = K) -> None:
    order = np.argsort(-whole.score, kind='stable')[:k]
    assert found.index.tolist() == order.tolist()
    for name in ARRAYS:
        values, expected = getattr(found.statistics, name), getattr(whole, name)[order]
        np.testing.assert_allclose(values.astype(float), expected.astype(float), rtol=1e-9, atol=1e-12, err_msg=name)
    assert found.statistics.unattributed == whole.unattributed
    assert found.statistics.noise_floor == whole.noise_floor and found.statistics.noise_mean == whole.noise_mean
    assert found.statistics.gate == whole.gate
    assert found.totals[:3] == (len(whole.score), whole.passes_gate.sum(), whole.qualified.sum())
    assert found.totals.weight == pytest.approx(whole.weight[whole.qualified].sum(), rel=1e-9)


def process(rank: int, count: int, folder: str) -> None:
    """One rank of a job: what it is told, for every case."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=count,
                                   timeout=timedelta(seconds=120))
    with Workers.here() as workers:
        torch.save({name: asked_together(workers, case) for name, case in CASES.items()}, f'{folder}/{rank}.pt')
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def told(tmp_path_factory: pytest.TempPathFactory) -> tp.List[tp.Dict[str, tp.List[Answer]]]:
    folder = tmp_path_factory.mktemp('job')
    multiprocessing.spawn(process, (2, str(folder)), nprocs=2)
    return [torch.load(Path(folder, f'{rank}.pt'), weights_only=False) for rank in range(2)]


@pytest.mark.parametrize('name', CASES)
def test_two_processes_answer_as_one(told: tp.List[tp.Dict[str, tp.List[Answer]]], name: str) -> None:
    expected = asked_alone(CASES[name])
    assert any(whole.qualified.any() for whole in expected) and len(expected) == 6
    for answers in (told[0][name], told[1][name], asked_together(Workers(), CASES[name])):
        for found, whole in zip(answers, expected, strict=True):
            expect_same(found, whole)


@given(st.lists(st.tuples(st.integers(-30, 30), st.integers(-100, 100)), min_size=1, max_size=40),
       st.lists(st.integers(0, 40), max_size=4), st.integers(0, 45), st.floats(1e-100, 1e100))
def test_parts_merge_to_the_whole(pairs: tp.List[tp.Tuple[int, int]], cuts: tp.List[int], k: int, scale: float) -> None:
    """Wherever the songs are cut, with ties, empty parts, and scores of any size."""
    cosines, scores = np.array(pairs, dtype=float).T
    cosines, scores = cosines / 30, scores / 100 * scale
    bounds = sorted({0, len(pairs), *(min(cut, len(pairs)) for cut in cuts)})
    bounds.insert(1, bounds[1])  # an empty part
    ranges = list(zip(bounds, bounds[1:], strict=False))
    spread = joint_spread([spread_of(scores[first:end]) for first, end in ranges])
    values = [channel_statistics(cosines[first:end], scores[first:end], 0.2, None, 0.05, spread)
              for first, end in ranges]
    parts = [part_of_answer(each, k, first) for each, (first, _) in zip(values, ranges, strict=True)]
    expect_same(joined(parts, k), channel_statistics(cosines, scores, 0.2, None, 0.05), k)


@given(st.lists(st.integers(-5, 5), max_size=30), st.integers(0, 35))
def test_the_highest_are_those_of_a_stable_sort(scores: tp.List[int], k: int) -> None:
    values = np.array(scores, dtype=float)
    assert highest(values, k).tolist() == np.argsort(-values, kind='stable')[:k].tolist()


@given(st.integers(0, 50), st.integers(1, 9))
def test_consecutive_runs_make_up_the_whole(size: int, count: int) -> None:
    runs = [consecutive(range(size), rank, count) for rank in range(count)]
    assert [item for run in runs for item in run] == list(range(size))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
