import re
import stat

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cag_utils.deident import PREFIXES, pseudonym, save_links
from cag_utils.study import keyed_hash


def test_worked_by_hand():
    assert pseudonym("video", "1.2.3", b"key") == "vi-" + keyed_hash("video:1.2.3", b"key")


@given(st.text(min_size=1, max_size=30), st.sampled_from(sorted(PREFIXES)), st.binary(min_size=1))
def test_stable_keyed_and_opaque(value, kind, key):
    got = pseudonym(kind, value, key)
    assert got == pseudonym(kind, value, key) != pseudonym(kind, value, key + b"x")
    assert re.fullmatch(r"(pt|ex|vi|fi)-[0-9a-f]{12}", got)


def test_kinds_do_not_share_ids():
    ids = {pseudonym(kind, "7", b"k").split("-")[1] for kind in PREFIXES}
    assert len(ids) == len(PREFIXES)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="did you mean 'patient'"):
        pseudonym("patent", "7", b"k")
    with pytest.raises(ValueError, match="empty patient id"):
        pseudonym("patient", "", b"k")


def test_links_are_private(tmp_path, monkeypatch):
    monkeypatch.setenv("CAG_ROOT", str(tmp_path))
    path = save_links("demo", pd.DataFrame({"video_id": ["vi-1"], "path": ["a/b.dcm"]}))
    assert path == tmp_path / "data" / "private" / "demo.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pd.read_csv(path)["path"].tolist() == ["a/b.dcm"]
