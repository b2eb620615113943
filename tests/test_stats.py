import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from cag_utils.stats import (
    agreement,
    cluster_bootstrap,
    compare_models,
    holm,
    mean_interval,
    mixed_model,
    paired_difference,
    rank_correlation,
)

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


def long(wide, columns, copies=1):
    """Rows by exam, case and model of a table of one row an exam, each of them `copies` times."""
    rows = pd.DataFrame(wide, columns=columns, dtype=float).rename_axis("exam").reset_index()
    rows = pd.concat([rows.assign(case_id=i) for i in range(copies)])
    return rows.melt(["exam", "case_id"], var_name="model", value_name="x")


# Conover, Practical Nonparametric Statistics, 1999: twelve home owners rank four grasses (5.8,
# T1 = 8.097); three sportsmen foretell twelve games (4.6, Cochran's Q = 2.8).
GRASSES = [
    (4, 3, 2, 1), (4, 2, 3, 1), (3, 1.5, 1.5, 4), (3, 1, 2, 4), (4, 2, 1, 3), (2, 2, 2, 4),
    (1, 3, 2, 4), (2, 4, 1, 3), (3.5, 1, 2, 3.5), (4, 1, 3, 2), (4, 2, 3, 1), (3.5, 1, 2, 3.5),
]  # fmt: skip
GAMES = ["111", "111", "010", "110", "000", "111", "111", "110", "001", "010", "111", "111"]


def test_models_and_flags_are_compared_by_exam_as_the_book_does():
    # an exam with five pictures counts once: every p-value is that of twelve blocks
    found = compare_models(long(GRASSES, list("abcd"), 5), "exam", "x", list("abcd"))
    first = found.iloc[0]
    assert (first.test, first["first"], first.exams) == ("Friedman", "all", 12)
    assert (first.statistic, first.p) == pytest.approx((8.097, 0.0440), abs=1e-3)
    assert list(found.test[1:]) == ["Wilcoxon signed-rank"] * 6
    assert found.difference[1] == pytest.approx((38 - 23.5) / 12)  # rank sums of a and b
    games = long([[int(x) for x in game] for game in GAMES], list("abc"), 3)
    found = compare_models(games, "exam", "x", list("abc"), flags=True)
    assert found.statistic[0] == pytest.approx(2.8) and found.test[0] == "Cochran's Q"
    # b foretold four games that c did not, c one that b did not
    last = found.iloc[3]
    assert (last["first"], last.second, last.test) == ("b", "c", "McNemar, exact")
    assert last.p == pytest.approx(2 * (1 + 5) / 2**5) and last.difference == 3 / 12
    # a wins all six times: 2 / 2^6
    won = long([(k, 0) for k in range(1, 7)], list("ab"))
    better = compare_models(won, "exam", "x", ["a", "b"])
    assert better.test.tolist() == ["Wilcoxon signed-rank"] and better.p[0] == 2 / 64
    for flags in (True, False):
        same = compare_models(long([(1, 1, 1)] * 4, list("abc")), "exam", "x", list("abc"), flags)
        assert (same.p == 1).all() and len(same) == 4
        without = games[games["model"] != "a"]
        assert compare_models(without, "exam", "x", list("abc"), flags).empty


def test_the_mixed_model_of_balanced_exams_is_the_paired_comparison():
    wide = np.array([[1.0, 2, 5], [2, 4, 5], [6, 6, 9], [7, 9, 9.5], [3, 3, 6]])
    found = mixed_model(long(wide, list("abc")), "exam", "x", list("abc")).set_index("first")
    assert found.difference["c"] == pytest.approx((wide[:, 2] - wide[:, 0]).mean())
    rest = wide - wide.mean(0) - wide.mean(1, keepdims=True) + wide.mean()
    mean_square = (rest**2).sum() / 8  # 4 x 2 degrees of freedom
    error = np.sqrt(2 * mean_square / 5)
    assert found.high["c"] - found.difference["c"] == pytest.approx(1.959964 * error, rel=1e-3)
    # the exam's share from the mean squares: (MS between - MS rest) / 3 against MS rest
    between = (3 * ((wide.mean(1) - wide.mean()) ** 2).sum() / 4 - mean_square) / 3
    assert found.exam_share["b"] == pytest.approx(between / (between + mean_square), rel=1e-3)
    assert mixed_model(long([(1, 1)] * 5, list("ab")), "exam", "x", ["a", "b"]).empty


def test_holm_multiplies_the_least_first_and_each_family_alone():
    tests = pd.DataFrame({"p": [0.01, 0.04, 0.03, np.nan, 0.02], "test": list("aaaab")})
    assert holm(tests)["p_holm"].tolist()[:3] == pytest.approx([0.04, 0.06, 0.06])
    family = holm(tests, ["test"])["p_holm"]
    assert family.dropna().tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(family[3])


# Shrout and Fleiss 1979, Table 2: six targets, four judges; ICC(2,1) = .29 (their Table 4).
JUDGES = [(9, 2, 5, 8), (6, 1, 3, 2), (8, 4, 6, 8), (7, 1, 2, 6), (10, 5, 6, 9), (6, 2, 4, 7)]


def test_readers_agree_as_in_the_book_and_as_sklearn_says():
    rows = long(JUDGES, list("pqrs")).rename(columns={"model": "reader", "x": "score"})
    found = agreement(rows.assign(model="m"), "exam", ["score"], 200, 0)
    icc = found.iloc[-2]
    assert (icc.statistic, icc.readers) == ("ICC(2,1)", "p and q and r and s")
    assert icc.value == pytest.approx(0.29, abs=0.005) and icc.low < icc.value < icc.high
    kappas, marks = found[:-2].set_index("readers"), np.array(JUDGES)
    assert len(kappas) == 6
    for pair, (i, j) in {"p and q": (0, 1), "r and s": (2, 3)}.items():
        wanted = cohen_kappa_score(*marks[:, [i, j]].T, labels=range(11), weights="quadratic")
        assert kappas.value[pair] == pytest.approx(wanted)
    # two of four flags alike, by chance two of four: no agreement beyond it
    flags = long([(0, 0), (0, 1), (1, 0), (1, 1)], ["r", "s"]).rename(columns={"model": "reader"})
    assert agreement(flags.assign(model="m"), "exam", ["x"], 50, 0).value[0] == 0
    assert agreement(rows[rows["reader"] == "p"].assign(model="m"), "exam", ["score"], 9, 0).empty


def test_alpha_is_that_of_krippendorffs_own_example_where_marks_are_missing():
    # Krippendorff 2011, section C: four observers, twelve units, squared distances: .849
    marks = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    table = [(u, r, float(x)) for r, row in enumerate(marks) for u, x in enumerate(row) if x != "."]
    data = pd.DataFrame(table, columns=["case_id", "reader", "x"]).assign(model="m")
    found = agreement(data.assign(exam=data["case_id"]), "exam", ["x"], 100, 0).iloc[-1]
    assert found["statistic"] == "Krippendorff's alpha" and found["texts"] == 11
    assert found["value"] == pytest.approx(0.849, abs=5e-4) and found["low"] < found["value"]
    alike = data[data["reader"] < 2].assign(exam="e", x=1.0)
    assert np.isnan(agreement(alike, "exam", ["x"], 10, 0)["value"].iloc[-1])


def test_ranks_are_correlated_over_all_rows_or_inside_each_model():
    data = pd.DataFrame({"exam": list("aabbccdd"), "model": list("mn") * 4})
    data["x"], data["y"] = [1, 9, 2, 8, 3, 7, 4, 6], [1, 9, 2, 8, 3, 7, 4, 6]
    assert rank_correlation(data, "exam", "x", "y", 50, 0) == pytest.approx((1, 1, 1))
    data["y"] = [4, 9, 3, 8, 2, 7, 1, 6]  # n above m, and inside m the other way round
    found = rank_correlation(data, "exam", "x", "y", 50, 0)
    assert found.value == pytest.approx(spearmanr(data.x, data.y).statistic) and found.low < 1
    assert rank_correlation(data, "exam", "x", "y", 50, 0, within="model").value == pytest.approx(0)
    assert np.isnan(rank_correlation(data.assign(y=1), "exam", "x", "y", 50, 0)).all()
    assert np.isnan(rank_correlation(data.assign(y=np.nan), "exam", "x", "y", 50, 0)).all()


@pytest.mark.parametrize("call, match", [
    (lambda: mean([], []), "no rows"),
    (lambda: mean([1, 2], ["a", None]), "1 rows have no group"),
    (lambda: mean([1, np.nan], "ab"), "1 rows have no x"),
    (lambda: difference([1.0, 2], [np.nan, 1], [1, 2]), "1 rows have no a - b"),
])  # fmt: skip
def test_bad_input_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
