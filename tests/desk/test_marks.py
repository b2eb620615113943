"""A reader's sheet on the disk: what was acknowledged is there, whatever happened since."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cag_utils.desk.marks import (
    HEAD,
    MarkLog,
    SheetInUse,
    first_marks,
    read_all_marks,
    read_marks,
    reading_order,
)
from cag_utils.tables import disarm, rearm


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr("cag_utils.desk.marks.WAIT_S", 0.05)


def test_marks_stand_until_they_are_changed_or_undone_and_come_back_as_they_were(tmp_path):
    log = MarkLog(tmp_path, "ab", ["label", "comment"])
    log.append("x", 0, "mark", 1.26, {"label": "LCA_bad", "comment": "=1+1\nsecond line, 狭窄"})
    log.append("y", 0, "mark", 2, {"label": "RCA_bad", "comment": ""})
    log.append("x", 1, "mark", 3, {"label": "LCA_other", "comment": "'-"})
    log.append("y", 0, "undo", 0, {})
    found = read_marks(log.path)
    assert found[["item", "repeat", "seconds", "label", "comment"]].to_numpy().tolist() == [
        ["x", "0", "1.3", "LCA_bad", "=1+1 second line, 狭窄"],
        ["x", "1", "3", "LCA_other", "'-"],
    ]
    assert set(found["reader"]) == {"AB"} and len(first_marks(found)) == 1
    text = log.path.read_text(encoding="utf-8")
    assert "\"'=1+1" in text and text.count("\n") == 5  # no formula; all four rows are kept
    assert log.path.stat().st_mode & 0o777 == 0o600
    log.append("y", 0, "mark", 2, {"label": "RCA_other"})
    assert read_marks(log.path)["label"].tolist()[-1] == "RCA_other"
    other = MarkLog(tmp_path, "CD", ["label", "comment"])  # another reader, another sheet
    other.append("x", 0, "mark", 1, {"label": "RCA_bad"})
    assert read_all_marks(tmp_path)["reader"].tolist() == ["AB", "AB", "AB", "CD"]
    assert list(read_all_marks(tmp_path / "none", ["label"])) == [
        *(name for name in HEAD if name != "action"), "label",
    ]  # fmt: skip


def test_a_second_window_is_refused_and_one_that_slept_may_not_write_over_it(tmp_path):
    first = MarkLog(tmp_path, "ab", ["label"])
    with pytest.raises(SheetInUse, match="open in another window"):
        MarkLog(tmp_path, "AB", ["label"])
    first.release()  # the lease ran out
    first.append("x", 0, "mark", 1, {"label": "a"})  # nobody else came: it goes on
    first.release()
    second = MarkLog(tmp_path, "AB", ["label"])
    with pytest.raises(SheetInUse, match="another window"):
        first.append("y", 0, "mark", 1, {"label": "b"})
    second.append("z", 0, "mark", 1, {"label": "c"})
    second.release()
    with pytest.raises(SheetInUse, match="reload"):
        first.append("y", 0, "mark", 1, {"label": "b"})
    assert read_marks(first.path)["item"].tolist() == ["x", "z"]


@pytest.mark.parametrize("reader", ["", "a", "../etc", "a b", "x" * 13])
def test_initials_that_are_none_are_refused(tmp_path, reader):
    with pytest.raises(ValueError, match="2 to 12 letters"):
        MarkLog(tmp_path, reader, ["label"])


def test_a_sheet_of_other_columns_is_refused_and_let_go(tmp_path):
    MarkLog(tmp_path, "ab", ["label"]).release()
    for _ in range(2):  # the second time it would be in use
        with pytest.raises(ValueError, match="has the columns"):
            MarkLog(tmp_path, "ab", ["overall"])


def test_a_killed_writer_loses_nothing_and_a_half_written_line_is_cut_off(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from cag_utils.desk.marks import MarkLog\n"
        "log = MarkLog(Path(sys.argv[1]), 'ab', ['label'])\n"
        "for i in range(5): log.append(f'x{i}', 0, 'mark', 1, {'label': 'a'})\n"
        "print('done', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"done\n"
        os.kill(writer.pid, signal.SIGKILL)
    with (tmp_path / "AB.csv").open("a", encoding="utf-8") as file:
        file.write("2026-11-28T00:00:00+00:00,AB,x5,0,ma")
    assert read_marks(tmp_path / "AB.csv")["item"].tolist() == [f"x{i}" for i in range(5)]
    log = MarkLog(tmp_path, "ab", ["label"])  # the kernel's lock died with its process
    log.append("x6", 0, "mark", 1, {"label": "b"})
    assert read_marks(log.path)["item"].tolist() == [*(f"x{i}" for i in range(5)), "x6"]


@given(st.lists(st.integers(1, 4), max_size=12), st.integers(0, 3), st.floats(0, 1 / 3))
def test_each_reader_reads_all_in_his_own_order_groups_together_repeats_far_apart(
    sizes, seed, share
):
    groups = {f"g{i}": [f"g{i}-{j}" for j in range(n)] for i, n in enumerate(sizes)}
    order = reading_order(groups, "ab", seed, share)
    assert order == reading_order(groups, "AB", seed, share)
    once = [item for item, repeat in order if not repeat]
    assert sorted(once) == sorted(item for items in groups.values() for item in items)
    heads = [item.split("-")[0] for item in once]
    assert sum(a != b for a, b in zip(heads, heads[1:], strict=False)) == max(0, len(sizes) - 1)
    again = [item for item, repeat in order if repeat]
    assert len(set(again)) == len(again) <= len(once) // 3 + 1
    third = len(once) // 3
    assert all(order.index((x, 1)) - order.index((x, 0)) >= third for x in again)


def test_orders_differ_between_readers_and_a_share_above_a_third_is_refused():
    groups = {str(i): [str(i)] for i in range(30)}
    one, two = (reading_order(groups, reader, 0, 0.1) for reader in ("AB", "CD"))
    assert one != two and sum(repeat for _, repeat in one) == 3
    with pytest.raises(ValueError, match="0 to 1/3"):
        reading_order(groups, "AB", 0, 0.5)


@given(st.text(alphabet="'=+-@a1,"))
def test_no_text_becomes_a_formula_and_all_come_back(text):
    assert not disarm(text).startswith(("=", "+", "-", "@")) and rearm(disarm(text)) == text
