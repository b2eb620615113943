import numpy as np
import pandas as pd
import pytest

from cag_utils.audits.power import (
    Design,
    difference_sd,
    exam_sd,
    exams_needed,
    measure_pairs,
    power_of,
    simulate_power,
)

HALF = Design(gap=0.5, case_sd=1.0, agreement=1.0, cases=1, exam_share=1.0)


def draw_marks(n=200, seed=0):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, n))
    return pd.DataFrame({"patient_id": range(n), "first": first, "second": second})


def of_one_reader(exams, first, second):
    table = pd.DataFrame({"patient_id": list(exams), "first": first, "second": second})
    return table.assign(case_id=range(len(table)), reader="r")


def test_the_closed_form_is_the_books():
    # Cohen 1988: a paired effect of .5 needs 34 pairs for 80 % at 5 % two-sided, 44 for 90 %
    assert (exams_needed(HALF, 1), exams_needed(HALF, 1, power=0.9)) == (34, 44)
    assert power_of(HALF, 33, 1) < 0.8 <= power_of(HALF, 34, 1)
    none = Design(gap=0.0, case_sd=1.0, agreement=1.0, cases=1, exam_share=1.0)
    assert exams_needed(none, 1) is None and power_of(none, 50, 1) == pytest.approx(0.05)


def test_spreads_by_hand():
    assert difference_sd(3.0, 4.0, 0.5) ** 2 == pytest.approx(9 + 16 - 12)
    found = Design(gap=1.0, case_sd=13**0.5, agreement=0.75, cases=4, exam_share=0.4)
    # shared 13 x .75 x .4 = 3.9 by exam; own 13 x .25 / (2 readers x 4 cases) = .40625
    assert exam_sd(found, 2) ** 2 == pytest.approx(3.9 + 0.40625)
    # exams differ by 2 and -2, their two cases not: the exams' variance is 8, the cases' 16 / 3
    marks = of_one_reader("aabb", [5, 5, 3, 4], [3, 3, 5, 6])
    rho, sd, agreement, share = measure_pairs(marks)
    assert rho == pytest.approx(np.corrcoef(marks["first"], marks["second"])[0, 1]) and share == 1
    assert sd**2 == pytest.approx(16 / 3) and np.isnan(agreement)
    # differences 2, -2, -1, 2: exam means 0 and .5, variance .125; the cases' is 12.75 / 3
    apart = of_one_reader("aabb", [2, 0, 0, 2], [0, 2, 1, 0])
    assert measure_pairs(apart).exam_share == pytest.approx(0.125 / 4.25)
    with pytest.raises(ValueError, match="do not vary"):
        measure_pairs(marks.assign(second=marks["first"]))


def test_what_readers_share_is_told_from_their_own_errors_and_their_tastes():
    # two readers' differences (2, 0), (-2, 0), the second 3 points fonder of one model: shared
    # rows 1 and -1, own +-1: MS of cases 4, of the rest 4, so nothing is shared
    one = of_one_reader("ab", [2, 0], [0, 2])
    two = of_one_reader("ab", [3, 3.5], [0, 0.5]).assign(reader="s")
    assert measure_pairs(pd.concat([one, two])).agreement == 0
    # made with known parts: exam 2, case 1, reader 1.5 squared; both tastes are worth 3 points
    rng = np.random.default_rng(0)
    exam = np.repeat(rng.normal(0, 2, 2000), 2)
    true = exam + rng.normal(0, 1, 4000)
    made = []
    for taste in (0, 3):
        marked = true + taste + rng.normal(0, 1.5, 4000)
        one = of_one_reader(np.arange(4000) // 2, marked, rng.normal(0, 1e-9, 4000))
        made.append(one.assign(reader=str(taste)))
    found = measure_pairs(pd.concat(made))
    assert found.case_sd**2 == pytest.approx(4 + 1 + 2.25, rel=0.05)
    assert found.agreement == pytest.approx(5 / 7.25, abs=0.03)
    assert found.exam_share == pytest.approx(4.5 / 5, abs=0.05)  # an exam's mean keeps half of 1


@pytest.mark.parametrize("exams, readers", [(20, 1), (40, 1), (20, 5)])
def test_simulation_of_bell_curves_is_the_closed_form(exams, readers):
    design = Design(gap=0.5, case_sd=1.2, agreement=0.6, cases=2, exam_share=0.8)
    rng = np.random.default_rng(1)
    found = simulate_power(draw_marks(), design, exams, readers, rng, 2000)
    assert found == pytest.approx(power_of(design, exams, readers), abs=0.05)  # Wilcoxon, not t


def test_without_a_gap_there_is_one_false_alarm_in_forty_also_where_marks_are_skewed():
    skewed = draw_marks().assign(first=lambda x: x["first"] ** 4)
    none = Design(gap=0.0, case_sd=1.0, agreement=0.9, cases=1, exam_share=1.0)
    found = simulate_power(skewed, none, 60, 1, np.random.default_rng(2), 4000)
    assert found == pytest.approx(0.025, abs=0.01)
