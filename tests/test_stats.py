import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.stats import cluster_bootstrap, mean_interval, paired_difference

rows_st = st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), min_size=1, max_size=20)


def mean(values, groups, n_resamples=50, seed=0, level=0.95):
    data = pd.DataFrame({"x": np.asarray(values, float), "patient": groups})
    return mean_interval(data, "patient", "x", n_resamples, seed, level)


def difference(a, b, groups):
    data = pd.DataFrame({"a": a, "b": b, "patient": groups})
    return paired_difference(data, "patient", "a", "b", 100, 0)


def test_two_groups_and_one_worked_by_hand():
    # four equally likely draws: AA -> 0, AB, BA -> 1, BB -> 2; so the interval spans 0 to 2
    assert mean([0, 0, 2, 2], list("aabb"), 500) == (1.0, 0.0, 2.0)
    # one group or a constant difference leaves nothing to resample
    assert mean([1, 3], "aa") == (2, 2, 2)
    assert difference([3, 5, 9.0], [1, 3, 7.0], [0, 1, 2]) == (2, 2, 2)


def test_whole_groups_are_drawn_so_the_interval_is_wider_than_by_rows():
    x = np.repeat(np.random.default_rng(0).normal(size=20), 10)  # ten copies of a patient's value
    by_patient, by_row = mean(x, np.repeat(range(20), 10), 500, 1), mean(x, range(200), 500, 1)
    assert by_patient.high - by_patient.low > 2 * (by_row.high - by_row.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    found = [mean(rng.normal(size=40), range(40), 200, trial) for trial in range(100)]
    assert 85 <= sum(x.low <= 0 <= x.high for x in found) <= 100


@settings(max_examples=30, deadline=None)
@given(rows_st)
def test_sums_of_drawn_groups_are_the_plain_bootstrap_of_their_rows(rows):
    groups, x = map(np.array, zip(*rows, strict=True))
    names = np.unique(groups)
    draws = np.random.default_rng(4).integers(len(names), size=(30, len(names)))
    means = [np.concatenate([x[groups == names[k]] for k in draw]).mean() for draw in draws]
    found = mean(x, groups, 30, 4)
    assert found.value == pytest.approx(x.mean())
    wanted = np.quantile(means, [0.025, 0.975])
    wanted = [min(wanted[0], x.mean()), max(wanted[1], x.mean())]  # widened to hold the value
    np.testing.assert_allclose(found[1:], wanted, atol=1e-12)
    assert found.low <= found.value <= found.high and found == mean(x, groups, 30, 4)


def test_several_figures_of_one_draw_what_is_undefined_and_what_widens_an_interval():
    # a's mean, b's mean, their difference: undefined wherever only one of the two is drawn
    values = np.array([[3.0, 1, 0, 0], [0, 0, 7, 1]])

    def figures(sums):
        a, b = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
        return np.stack([a, b, a - b, np.full_like(a, np.nan)], -1)

    a, b, gap, nothing = cluster_bootstrap(["a", "b"], values, figures, 100, 0)
    assert (a, b, gap) == ((3, 3, 3), (7, 7, 7), (-4, -4, -4))
    assert np.isnan(nothing).all()
    # the smaller of two sums is 1 when both groups are drawn, 0 when one is drawn twice
    values = np.array([[0.0, 1.0], [1.0, 0.0]])
    [found] = cluster_bootstrap(list("ab"), values, lambda s: s.min(-1), 50, 0)
    assert (found.value, found.low, found.high) == (1, 0, 1)
    # so does a higher level
    narrow, wide = (mean(np.arange(30.0) ** 2, range(30), 500, 0, level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@pytest.mark.parametrize("call, match", [
    (lambda: mean([], []), "no rows"),
    (lambda: mean([1, 2], ["a", None]), "1 rows have no group"),
    (lambda: mean([1, np.nan], "ab"), "1 rows have no x"),
    (lambda: difference([1.0, 2], [np.nan, 1], [1, 2]), "1 rows have no a - b"),
])  # fmt: skip
def test_bad_input_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
