"""Songs spread over processes are scored and judged as in one: by real ranks of gloo, and the merging alone as
properties, wherever the songs are cut."""

import threading
import typing as tp
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from lumina_plugin import calibration, joint, statistics
from lumina_plugin.calibration import Null
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
    'a sample for the noise': dict(method='cosine', shards=[1800] * 3, width=8, gate=Gate(0.8)),
    'calibrated': dict(method='cosine', outside=70, rate=0.2),
    'calibrated, float16, two checkpoints': dict(method='kernel', checkpoints=2, dtype=torch.float16, outside=80),
    'calibrated, one shard, processes without songs': dict(method='kernel', shards=[500], outside=64),
    'a second opinion': dict(method='cosine', outside=64, calibrated=False)}


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


def outside_of(case: Case) -> tp.Optional[tp.List[np.ndarray]]:
    """Per checkpoint the same outside songs."""
    generator = torch.Generator().manual_seed(1)
    return None if 'outside' not in case else [
        (torch.randn(case['outside'], case.get('width', 32), generator=generator) + 0.2).numpy()
        for _ in range(case.get('checkpoints', 1))]


def asked_together(workers: Workers, case: Case) -> tp.List[Answer]:
    shards, queries = songs_of(case)
    own = [StackedRows(consecutive(parts, workers.rank, workers.count), parts[0].shape[1]) for parts in shards]
    options = {key: case[key] for key in ('method', 'ridge', 'gate', 'noise', 'rate', 'calibrated') if key in case}
    return DistributedScorer(workers, own, outside=outside_of(case), **options).answer(queries, K)


def asked_alone(case: Case) -> tp.List[statistics.ChannelStatistics]:
    """The route of one process."""
    shards, queries = songs_of(case)
    rows = [StackedRows(parts, parts[0].shape[1]) for parts in shards]
    names = list(dict.fromkeys(['cosine', case['method']]))
    scorers = [fit_scorers(names, each, case.get('ridge', 0.01)) for each in rows]
    mean, floor = case.get('noise') or measured_noise(rows)
    null, outside = None, outside_of(case)
    if outside is not None:
        null = Null(mean_scores(scorers, outside, case['method'])[1])
    options = {key: case[key] for key in ('rate', 'calibrated') if key in case}
    return [channel_statistics(cosine, score, floor, case.get('gate'), mean, null=null, **options)
            for cosine, score in zip(*mean_scores(scorers, queries, case['method']), strict=True)]


def expect_same(found: Answer, whole: statistics.ChannelStatistics, k: int = K) -> None:
    order = np.argsort(-whole.score, kind='stable')[:k]
    assert found.index.tolist() == order.tolist()
    for name in ARRAYS:
        values, expected = getattr(found.statistics, name), getattr(whole, name)[order]
        np.testing.assert_allclose(values.astype(float), expected.astype(float), rtol=1e-9, atol=1e-12, err_msg=name)
    assert found.statistics.unattributed == pytest.approx(whole.unattributed, rel=1e-9, abs=1e-12)
    assert (found.statistics.chance is None) == (whole.chance is None)
    if whole.chance is not None:
        assert found.statistics.chance.p.tolist() == whole.chance.p[order].tolist()  # counts, which are right or wrong
        assert found.statistics.chance.q.tolist() == whole.chance.q[order].tolist()
        assert found.statistics.chance.passes.tolist() == whole.chance.passes[order].tolist()
        assert found.statistics.calibrated == whole.calibrated
        assert found.totals.passing_calibrated == whole.chance.passes.sum()
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
    """What every process of two jobs is told, one of two processes and one of three."""
    answers = []
    for count in (2, 3):
        folder = tmp_path_factory.mktemp('job')
        multiprocessing.spawn(process, (count, str(folder)), nprocs=count)
        answers += [torch.load(Path(folder, f'{rank}.pt'), weights_only=False) for rank in range(count)]
    return answers


@pytest.mark.parametrize('name', CASES)
def test_one_two_and_three_processes_answer_as_one_that_holds_all_songs(
        told: tp.List[tp.Dict[str, tp.List[Answer]]], name: str) -> None:
    expected = asked_alone(CASES[name])
    assert any(whole.qualified.any() for whole in expected) and len(expected) == 6
    if 'outside' in CASES[name]:
        passing = [whole.chance.passes.sum() for whole in expected if whole.chance is not None]
        assert len(passing) == 6 and 0 < sum(passing) and passing[-1] == 0  # the last one is silent
    for answers in (*(one[name] for one in told), asked_together(Workers(), CASES[name])):
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


def each_with(parts: tp.Sequence[tp.Any], function: tp.Callable[[tp.Any, joint.Gather], tp.Any]) -> tp.List[tp.Any]:
    """What a function gives for each part, run together as by processes that hear what the others give."""
    heard: tp.List[tp.Any] = [None] * len(parts)
    found: tp.List[tp.Any] = [None] * len(parts)
    barrier = threading.Barrier(len(parts), timeout=60)

    def run(rank: int) -> None:
        def gather(value: tp.Any) -> tp.List[tp.Any]:
            heard[rank] = value
            barrier.wait()
            everything = list(heard)
            barrier.wait()
            return everything
        try:
            found[rank] = function(parts[rank], gather)
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def cut(array: np.ndarray, cuts: tp.Sequence[int]) -> tp.List[np.ndarray]:
    """The columns in parts, one of them perhaps empty."""
    return np.split(array, sorted(min(place, array.shape[1]) for place in cuts), axis=1)


CUTS = st.lists(st.integers(0, 40), max_size=3)


@given(st.lists(st.integers(-4, 4) | st.floats(-1e9, 1e9), max_size=40), CUTS, st.sampled_from([2, 3, 1024]),
       st.sampled_from([np.float32, np.float64]))
def test_medians_of_parts_are_those_of_the_whole(values: tp.List[float], cuts: tp.List[int], places: int,
                                                 dtype: tp.Any) -> None:
    rows = np.array([values, values[::-1], np.square(values)], dtype=dtype)
    expected = np.median(rows, axis=1) if values else np.zeros(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, 'PLACES', places)  # few, so that what lies between them must be asked for
        for found in each_with(cut(rows, cuts), joint.medians):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(joint.medians(rows), expected)


@given(st.lists(st.integers(1, 60), max_size=40), CUTS)
def test_adjusted_p_values_of_parts_are_those_of_the_whole(counts: tp.List[int], cuts: tp.List[int]) -> None:
    p = np.array([counts, counts[::-1]]) / 60
    found = np.concatenate(each_with(cut(p, cuts), joint.q_values), axis=1)
    np.testing.assert_array_equal(found, [calibration.q_values(row) for row in p])


@pytest.mark.parametrize('exact', [10 ** 6, 1000])
@pytest.mark.parametrize('cuts', [[], [40], [0, 13, 60]])
def test_a_null_from_parts_is_that_of_the_whole(exact: int, cuts: tp.List[int], monkeypatch: pytest.MonkeyPatch
                                                ) -> None:
    """A pool that is too large to keep is exact at its upper end, and elsewhere never too small by more than a step."""
    for name, value in (('EXACT_POOL', exact), ('EXACT_TAIL', 300), ('STEPS', 50)):
        monkeypatch.setattr(calibration, name, value)
    rng = np.random.default_rng(7)
    spread = 0.1 + rng.random(61)
    scores, queries = (spread * rng.normal(size=(count, 61)) + rng.normal(size=(count, 1)) for count in (66, 400))

    def judged(part: np.ndarray, gather: joint.Gather) -> np.ndarray:
        null = Null(part[:66], gather)
        assert null.smallest == 1 / (1 + 66 * 61) and null.outside == 66
        return null.p_values(null.z(part[66:], joint.medians(part[66:], gather)[:, None], gather=gather))
    found = np.concatenate(each_with(cut(np.concatenate([scores, queries]), cuts), judged), axis=1)
    whole = Null(scores)
    one = whole.p_values(whole.z(queries))
    monkeypatch.setattr(calibration, 'EXACT_POOL', 10 ** 6)
    whole = Null(scores)
    p = whole.p_values(whole.z(queries))
    if exact > 1000:
        np.testing.assert_array_equal(found, p)
    assert (found >= p).all() and (found - p).max() < 1.5 / 50 and (one - p).max() < 1.5 / 50
    np.testing.assert_array_equal(found[p < 200 / 4000], p[p < 200 / 4000])


@given(st.lists(st.integers(-5, 5), max_size=30), st.integers(0, 35))
def test_the_highest_are_those_of_a_stable_sort(scores: tp.List[int], k: int) -> None:
    values = np.array(scores, dtype=float)
    assert highest(values, k).tolist() == np.argsort(-values, kind='stable')[:k].tolist()


@given(st.integers(0, 50), st.integers(1, 9))
def test_consecutive_runs_make_up_the_whole(size: int, count: int) -> None:
    runs = [consecutive(range(size), rank, count) for rank in range(count)]
    assert [item for run in runs for item in run] == list(range(size))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
