"""What ships: whole, small, and with a card each."""

import pytest

from cag_utils.shipped import (
    LARGEST_MB,
    WEIGHTS,
    changed_weights,
    shipped_mb,
    write_card,
    write_checksums,
)

NETWORKS = sorted(path.parent for path in WEIGHTS.rglob("*.safetensors"))


def test_every_shipped_file_is_what_its_checksum_says():
    assert len(NETWORKS) >= 7 and changed_weights() == []


def test_all_networks_together_are_small():
    assert shipped_mb() < LARGEST_MB


@pytest.mark.parametrize("folder", NETWORKS, ids=lambda p: p.name)
def test_each_network_has_a_card_that_names_the_phantom(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0") and f"# {folder.name}" in card
    assert "digital phantom" in card and "not a medical device" in card


def test_a_changed_lost_or_new_file_is_noticed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    assert write_checksums(tmp_path)["a.safetensors"].startswith("ca978112ca1bbdca")  # sha256 of a
    assert changed_weights(tmp_path) == []
    (tmp_path / "a.safetensors").write_bytes(b"x")
    (tmp_path / "b.safetensors").unlink()
    (tmp_path / "c.safetensors").write_bytes(b"c")
    assert changed_weights(tmp_path) == ["a.safetensors", "b.safetensors", "c.safetensors"]


def test_a_card_by_hand(tmp_path):
    path = write_card(tmp_path, "A twin.", "notebook A4", 1234567, {"side": 0.98765})
    text = path.read_text(encoding="utf-8")
    assert "1,234,567" in text and "| side | 0.988 |" in text
    with pytest.raises(ValueError, match="at least one held-out measure"):
        write_card(tmp_path, "A twin.", "notebook A4", 1, {})
