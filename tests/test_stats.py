import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.stats import bootstrap_interval, mean_interval, paired_difference


def mean(rows):
    return rows["x"].mean()


def table(values, groups):
    return pd.DataFrame({"x": np.asarray(values, float), "patient": groups})


def test_two_groups_worked_by_hand():
    # four equally likely draws: AA -> 0, AB, BA -> 1, BB -> 2; so the interval spans 0 to 2
    got = bootstrap_interval(table([0, 0, 2, 2], list("aabb")), "patient", mean, 500, seed=0)
    assert got == (1.0, 0.0, 2.0)


def test_whole_groups_are_drawn_so_the_interval_is_wider_than_by_rows():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=20), 10)  # ten copies of each patient's value
    by_patient = bootstrap_interval(table(x, np.repeat(range(20), 10)), "patient", mean, 500, 1)
    by_row = bootstrap_interval(table(x, range(200)), "patient", mean, 500, 1)
    assert by_patient.high - by_patient.low > 2 * (by_row.high - by_row.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(100):
        x = rng.normal(size=40)
        got = mean_interval(table(x, range(40)), "patient", "x", 200, seed=trial)
        hits += got.low <= 0 <= got.high
    assert 85 <= hits <= 100


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), min_size=1, max_size=20))
def test_the_estimate_lies_in_its_interval_and_repeats(rows):
    groups, x = zip(*rows, strict=True)
    first = bootstrap_interval(table(x, groups), "patient", mean, 30, seed=4)
    assert first.low <= first.value == np.mean(x) <= first.high
    assert first == bootstrap_interval(table(x, groups), "patient", mean, 30, seed=4)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), min_size=1, max_size=20))
def test_the_fast_mean_is_the_bootstrap_of_a_mean(rows):
    groups, x = zip(*rows, strict=True)
    fast = mean_interval(table(x, groups), "patient", "x", 30, seed=4)
    slow = bootstrap_interval(table(x, groups), "patient", mean, 30, seed=4)
    np.testing.assert_allclose(fast, slow, atol=1e-12)


def test_samples_without_a_value_are_left_out():
    # the mean over group a alone: undefined whenever only b is drawn, else always 3
    def of_a(rows):
        return rows.loc[rows["patient"] == "a", "x"].mean()

    assert bootstrap_interval(table([3, 7], list("ab")), "patient", of_a, 100, 0) == (3, 3, 3)


def test_a_wider_level_gives_a_wider_interval():
    data = table(np.arange(30.0) ** 2, range(30))
    narrow, wide = (mean_interval(data, "patient", "x", 500, 0, level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_one_group_has_nothing_to_resample():
    assert bootstrap_interval(table([1, 3], "aa"), "patient", mean, 50, 0) == (2, 2, 2)


def test_a_constant_difference_is_certain():
    data = pd.DataFrame({"a": [3, 5, 9.0], "b": [1, 3, 7.0], "patient": [0, 1, 2]})
    assert paired_difference(data, "patient", "a", "b", 100, 0) == (2, 2, 2)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        bootstrap_interval(table([], []), "patient", mean, 50, 0)
    with pytest.raises(ValueError, match="1 rows have no patient"):
        bootstrap_interval(table([1, 2], ["a", None]), "patient", mean, 50, 0)
    with pytest.raises(ValueError, match="needs both"):
        rows = pd.DataFrame({"a": [1.0], "b": [np.nan], "patient": [1]})
        paired_difference(rows, "patient", "a", "b", 50, 0)
    with pytest.raises(ValueError, match="1 rows have no x"):
        mean_interval(table([1, np.nan], "ab"), "patient", "x", 50, 0)
    with pytest.raises(ValueError, match="n_resamples must be 1 or more, got 0"):
        mean_interval(table([1, 2], "ab"), "patient", "x", 0, 0)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        bootstrap_interval(table([1, 2], "ab"), "patient", mean, 50, 0, level=95)
    with pytest.raises(ValueError, match="statistic of all rows is nan"):
        bootstrap_interval(table([1, 2], "ab"), "patient", lambda rows: np.nan, 50, 0)
