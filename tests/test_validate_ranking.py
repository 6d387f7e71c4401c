"""Ranks, NDCG, intervals and kept work of the suite: worked examples, formulas by hand, faults."""

import json
import math

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lumina_plugin.errors import LuminaError
from lumina_plugin.validation.lds import Interval
from lumina_plugin.validation.ranking import chance, ndcg, ranks, ranks_of, row_spearman, top_agrees
from lumina_plugin.validation.results import Panel, dots, kept_each, kept_parts, save, table, wilson


def test_equal_scores_share_the_mean_of_their_ranks():
    np.testing.assert_array_equal(ranks([[3., 1., 3., 2.], [0., 0., 0., 0.]]), [[1.5, 4, 1.5, 3], [2.5] * 4])
    np.testing.assert_array_equal(ranks_of([[3., 1., 3., 2.], [9., 1., 3., 2.]], [2, 0]), [1.5, 1.])


def test_ndcg_of_a_worked_example():
    """Relevances 3, 2, 3, 0, 1, 2 in the order in which they are found: DCG 6.861, ideal 7.141."""
    gains = np.array([[3., 2., 3., 0., 1., 2.]])
    assert ndcg(np.arange(6.)[None, ::-1], gains)[0] == pytest.approx(6.861 / 7.141, abs=1e-4)
    assert ndcg(gains, gains)[0] == pytest.approx(1.)


def test_ndcg_of_equal_scores_is_its_mean_over_their_orders():
    gains = np.array([[5., 0., 1.]])
    discounts = 1 / np.log2([2, 3, 4])
    best = 5 * discounts[0] + discounts[1]
    assert ndcg([[1., 1., 1.]], gains)[0] == pytest.approx(6 * discounts.mean() / best)
    assert ndcg([[1., 1., 0.]], gains)[0] == pytest.approx((5 * discounts[:2].mean() + discounts[2]) / best)


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_ndcg_is_the_formula_and_knows_neither_order_nor_scale(seed, columns):
    rng = np.random.default_rng(seed)
    scores, gains = rng.normal(size=(1, columns)), rng.normal(size=(1, columns))
    kept, order = np.maximum(gains[0], 0), np.argsort(-scores[0])
    best = sum(gain / math.log2(2 + i) for i, gain in enumerate(sorted(kept, reverse=True)))
    found = ndcg(scores, gains)
    if best == 0:
        assert np.isnan(found[0])
        return
    assert found[0] == pytest.approx(sum(kept[c] / math.log2(2 + i) for i, c in enumerate(order)) / best)
    mixed = rng.permutation(columns)
    np.testing.assert_allclose(ndcg(3 + scores[:, mixed], 7 * gains[:, mixed]), found)


def test_agreement_at_the_top_needs_one_winner():
    truth = [[1., 5., 2.]] * 3
    np.testing.assert_array_equal(top_agrees([[0., 1., 0.], [1., 1., 0.], [1., 0., 0.]], truth), [1, 0, 0])


@given(st.integers(0, 10_000))
def test_row_spearman_is_scipys(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, 7)), rng.normal(size=(2, 7))
    for row in range(2):
        assert row_spearman(first, second)[row] == pytest.approx(stats.spearmanr(first[row], second[row])[0])


def test_guessing_reaches_what_it_must():
    truth = np.random.default_rng(0).normal(size=(60, 8))
    top, correlation, gain = (chance(measure, truth) for measure in (top_agrees, row_spearman, ndcg))
    assert top.mean == pytest.approx(1 / 8, abs=.01) and top.low < 1 / 8 < top.high
    assert correlation.mean == pytest.approx(0., abs=.01) and correlation.low < 0 < correlation.high
    level = [np.maximum(row, 0).mean() * (1 / np.log2(2 + np.arange(8))).sum()
             / (np.sort(np.maximum(row, 0))[::-1] / np.log2(2 + np.arange(8))).sum() for row in truth]
    assert gain.mean == pytest.approx(np.mean(level), abs=.01)


@pytest.mark.parametrize('count, total, low, high', [(0, 10, 0., .2775), (10, 10, .7225, 1.), (5, 10, .2366, .7634),
                                                     (1, 100, .0018, .0545)])
def test_wilson_is_the_published_interval(count, total, low, high):
    found = wilson(count, total)
    assert found == pytest.approx((count / total, low, high), abs=1e-4)


@given(st.integers(1, 500), st.data())
def test_wilson_solves_the_score_test(total, data):
    """Its ends are the fractions p at which (count/n - p)² = z²·p(1 - p)/n."""
    count = data.draw(st.integers(0, total))
    found = wilson(count, total)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    for end in (found.low, found.high):
        if 0 < end < 1:
            assert (count / total - end) ** 2 == pytest.approx(1.959964 ** 2 * end * (1 - end) / total, rel=1e-4,
                                                               abs=1e-9)


def test_a_fraction_of_nothing_is_unknown():
    assert math.isnan(wilson(0, 0).mean) and wilson(0, 0)[1:] == (0., 1.)
    with pytest.raises(ValueError, match='3 of 2'):
        wilson(3, 2)


# -- kept work ----------------------------------------------------------------------------------------------------

class Maker:
    """Squares numbers, and notes which; stops at `until`."""

    def __init__(self, until=None):
        self.seen, self.until = [], until

    def __call__(self, some):
        if self.until in some:
            raise KeyboardInterrupt
        self.seen += some
        return {'square': np.array([float(one) ** 2 for one in some])}


def test_a_stopped_command_goes_on(tmp_path):
    items, first, second = list(range(10)), Maker(until=5), Maker()
    with pytest.raises(KeyboardInterrupt):
        kept_parts(tmp_path, 'x', items, first, 'squares', part=2)
    found = kept_parts(tmp_path, 'x', items, second, 'squares', part=2)
    assert first.seen == [0, 1, 2, 3] and second.seen == [4, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(found['square'], np.square(np.arange(10.)))


def test_other_facts_and_damaged_files_are_made_again(tmp_path):
    items = [1, 2, 3]
    kept_parts(tmp_path, {'model': 'a'}, items, Maker(), 'squares', part=2)
    other = Maker()
    kept_parts(tmp_path, {'model': 'b'}, items, other, 'squares', part=2)
    assert other.seen == items
    for path in tmp_path.rglob('000002.safetensors'):
        path.write_bytes(b'damaged')
    again = Maker()
    np.testing.assert_array_equal(kept_parts(tmp_path, {'model': 'a'}, items, again, 'squares', part=2)['square'],
                                  [1, 4, 9])
    assert again.seen == [3]


def test_items_are_kept_one_by_one(tmp_path):
    """Whatever was asked for with them: what is missing is made together, and a stop costs one batch."""
    def asked(items, maker, facts='x'):
        return {key: float(found['square']) for key, found in kept_each(
            tmp_path, facts, {f'key {item}': item for item in items}, maker, 'squares', part=2).items()}
    first, second, third, other = Maker(), Maker(until=9), Maker(), Maker()
    assert asked([3, 1], first) == {'key 3': 9., 'key 1': 1.}
    with pytest.raises(KeyboardInterrupt):
        asked([1, 2, 3, 4, 9], second)
    assert asked([9, 3, 2, 4, 5, 1], third) == {f'key {item}': item ** 2. for item in (9, 3, 2, 4, 5, 1)}
    assert list(asked([2, 1], third)) == ['key 2', 'key 1']
    assert (first.seen, second.seen, third.seen) == ([3, 1], [2, 4], [9, 5])
    asked([1], other, facts='y')
    damaged = next(path for path in tmp_path.rglob('*.safetensors')
                   if safetensors.numpy.load_file(path)['square'] == 4)
    damaged.write_bytes(b'damaged')
    assert asked([1, 2], other)['key 2'] == 4. and other.seen == [1, 2]


def test_nothing_to_do_is_said(tmp_path):
    with pytest.raises(LuminaError, match='no query is left'):
        kept_parts(tmp_path, 'x', [], Maker(), 'squares')


def test_a_result_is_three_files_without_nan(tmp_path):
    one = Interval(.5, math.nan, math.inf)
    picture = dots(['a', 'b'], [Panel('x', [one, None], [.05]), Panel('y', [Interval(.1, 0., .2), None])], 'about')
    folder = save(tmp_path, 'thing', table(['a', 'b'], [[1, one]]), {'one': one, 'all': np.arange(2)}, picture)
    assert folder == tmp_path / 'thing' and (folder / 'thing.png').read_bytes().startswith(b'\x89PNG')
    assert (folder / 'thing.md').read_text().splitlines()[1:] == ['| --- | --- |', '| 1 | 0.500 [nan, inf] |']
    assert json.loads((folder / 'thing.json').read_text()) == {
        'one': {'mean': .5, 'low': None, 'high': None}, 'all': [0, 1]}
