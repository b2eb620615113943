"""Batches of like length: every case once, the same again by seed and epoch, little padding."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.length_buckets import LengthBuckets, padding_share
from cag_utils.pairs import prompt
from cag_utils.phantom.clinic import decide_plan, draw_record, write_findings, write_report
from cag_utils.segments import AHA_SEGMENTS, laterality_of
from cag_utils.sft_data import to_cases
from cag_utils.twins import make_processor

BATCH = 8


def draw_cases(n: int, language: str) -> pd.DataFrame:
    """Prompts and answers of phantom patients, none to three lesions each."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(n):
        side = str(rng.choice(["LCA", "RCA"]))
        segments = [s for s in AHA_SEGMENTS if laterality_of(s) == side]
        chosen = rng.choice(segments, size=int(rng.integers(0, 4)), replace=False)
        lesions = [{"segment": int(s), "percent": int(rng.choice([50, 75, 90]))} for s in chosen]
        record = draw_record(rng, lesions, str(rng.choice(["M", "F"])))
        plan = decide_plan(record, lesions)
        report = write_report(rng, record)[language]
        answer = write_findings(lesions, side, plan)[language]
        rows.append({"image": "x.png", "prompt": prompt(side, report, language), "answer": answer})
    return pd.DataFrame(rows)


@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=200),
    batch=st.integers(1, 9),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_case_comes_once_an_epoch(lengths, batch, seed):
    sampler = LengthBuckets(lengths, batch, seed)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) and len(sampler) == len(lengths)
    assert list(LengthBuckets(lengths, batch, seed)) == order
    assert 0 <= padding_share([lengths[i] for i in order], batch) < 1


def test_epochs_and_seeds_differ_and_come_back():
    sampler = LengthBuckets(range(64), 4, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first != list(LengthBuckets(range(64), 4, seed=2))


def test_padding_share_by_hand():
    assert padding_share([4, 2, 3, 3, 1], 2) == pytest.approx(1 - 13 / 15)  # 8 + 6 + 1 filled


@pytest.mark.parametrize(("kind", "language"), [("gemma3", "en"), ("paligemma2", "ja")])
def test_less_than_a_tenth_of_a_phantom_batch_is_padding(kind, language):
    cases = to_cases(draw_cases(240, language), make_processor(kind))
    lengths = np.array(cases["length"])
    assert lengths.std() > 5  # there is something to sort
    sampler = LengthBuckets(lengths, BATCH, seed=0)
    shares = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        shares.append(padding_share(lengths[list(sampler)].tolist(), BATCH))
    by_chance = np.random.default_rng(0).permutation(lengths).tolist()
    assert max(shares) < 0.10 and max(shares) < 0.7 * padding_share(by_chance, BATCH)


def test_text_alone_is_padded_little_too():
    """Without image tokens, which are the same for all, lengths differ most."""
    lengths = np.random.default_rng(0).integers(40, 400, 600)
    order = list(LengthBuckets(lengths, BATCH, seed=0))
    assert padding_share(lengths[order].tolist(), BATCH) < 0.10


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        LengthBuckets([1, 2], 0, seed=0)
    with pytest.raises(ValueError, match="no lengths"):
        padding_share([], 4)
