"""What ships: whole, small, and with a card each."""

import pytest

from cag_utils import shipped
from cag_utils.phantom import streams
from cag_utils.shipped import CHECKSUMS, PHANTOM, WEIGHTS, check_phantom, checksums, seal_weights
from cag_utils.study import read_json

NETWORKS = sorted(path.parent for path in WEIGHTS.rglob("*.safetensors"))


def test_networks_are_as_sealed_small_hold_for_the_phantom_as_it_is_and_have_a_card_each():
    assert len(NETWORKS) >= 7 and checksums() == read_json(WEIGHTS / CHECKSUMS)
    megabytes = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) / 1e6
    assert megabytes < 40  # so that a clone stays light
    assert set(read_json(WEIGHTS / PHANTOM)) == {folder.name for folder in NETWORKS}
    assert [check_phantom(folder) for folder in NETWORKS] == NETWORKS
    for folder in NETWORKS:
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlicense: apache-2.0") and f"# {folder.name}" in card
        assert "digital phantom" in card and "not a medical device" in card


def test_a_changed_phantom_is_noticed_until_weights_are_made_anew(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes(name.encode())
    assert check_phantom(tmp_path / "a") == tmp_path / "a"  # nothing is known: not one of ours
    now = streams.VERSION
    seal_weights("a", "b", folder=tmp_path)
    sums = read_json(tmp_path / CHECKSUMS)
    assert sums["a/w.safetensors"].startswith("ca978112ca1bbdca")  # sha256 of the letter a
    monkeypatch.setattr("cag_utils.phantom.streams.VERSION", now + 1)
    with pytest.raises(RuntimeError, match=f"holds for {now}, not for {now + 1}. `make twins`"):
        check_phantom(tmp_path / "a")
    seal_weights("a", folder=tmp_path)  # made anew
    assert check_phantom(tmp_path / "a") and read_json(tmp_path / PHANTOM)["b"]["made_with"] == now
    with pytest.raises(RuntimeError, match="made with"):
        check_phantom(tmp_path / "b")
    with pytest.raises(ValueError, match="with a date"):
        shipped.confirm(" ", tmp_path)
    monkeypatch.setattr(shipped.confirm, "__defaults__", (tmp_path,))
    shipped.main(["--holds", "reference run of 2026-11-27"])
    assert f"b: made with {now}, holds for {now}, {now + 1}" in capsys.readouterr().out
    assert check_phantom(tmp_path / "b")
    holds = read_json(tmp_path / PHANTOM)["b"]["holds_for"]
    assert holds[str(now + 1)] == "reference run of 2026-11-27"


def test_a_card_by_hand(tmp_path):
    shipped.write_card(tmp_path, "A twin.", "notebook A4", 1234567, {"side": 0.98765})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "1,234,567" in text and "| side | 0.988 |" in text
    assert shipped.read_card(tmp_path) == {"side": 0.988}
    with pytest.raises(ValueError, match="at least one held-out measure"):
        shipped.write_card(tmp_path, "A twin.", "notebook A4", 1, {})
