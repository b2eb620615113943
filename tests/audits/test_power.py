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
    marks = pd.DataFrame(
        {"patient_id": list("aabb"), "first": [5, 5, 3, 4], "second": [3, 3, 5, 6]}
    )
    rho, share = measure_pairs(marks)
    assert rho == pytest.approx(np.corrcoef(marks["first"], marks["second"])[0, 1]) and share == 1
    apart = pd.DataFrame(
        {"patient_id": list("aabb"), "first": [2, 0, 0, 2], "second": [0, 2, 1, 0]}
    )
    # differences 2, -2, -1, 2: exam means 0 and .5, variance .125; the cases' is 12.75 / 3
    assert measure_pairs(apart)[1] == pytest.approx(0.125 / 4.25)
    with pytest.raises(ValueError, match="do not vary"):
        measure_pairs(marks.assign(second=marks["first"]))


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
