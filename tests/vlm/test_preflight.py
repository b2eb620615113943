"""Memory by hand, checks with injected machines, and what the published configurations count."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma3Config, PaliGemmaConfig

from cag_utils.backbones import BACKBONES, GEMMA3, PALIGEMMA2
from cag_utils.vlm import preflight as checks
from cag_utils.vlm.preflight import Machine, check_machine, footprint, preflight, training_gb

# The published configurations, from memory of their model cards: what they add up to is checked.
TOWER = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27)
TOWER |= dict(num_attention_heads=16, patch_size=14, vision_use_head=False)
HEADS = dict(num_attention_heads=8, num_key_value_heads=4, head_dim=256)
GEMMA3_TEXT = dict(hidden_size=2560, num_hidden_layers=34, intermediate_size=10240)
GEMMA2_TEXT = dict(hidden_size=2304, num_hidden_layers=26, intermediate_size=9216)
PARTS = dict(text_config=HEADS | GEMMA3_TEXT | {"vocab_size": 262208})
PARTS |= dict(vision_config=TOWER | {"image_size": 896})
GEMMA3_4B = Gemma3Config(**PARTS, mm_tokens_per_image=256)
PARTS = dict(text_config=HEADS | GEMMA2_TEXT | {"vocab_size": 257216, "model_type": "gemma2"})
PARTS |= dict(vision_config=TOWER | {"image_size": 448})
PALIGEMMA2_3B = PaliGemmaConfig(**PARTS, projection_dim=2304, hidden_size=2304)
COUNTS = dict(parameters=10**9, packable=8 * 10**8, adapter_sides=10**5, projector=10**6)
COUNTS |= dict(language=checks.Stack(layers=10, width=1000, inner=4000))
COUNTS |= dict(tower=checks.Stack(layers=5, width=100, inner=400))
SMALL = checks.Footprint(**COUNTS, patches=100, image_tokens=24)
ROOMY = Machine("cuda", "A GPU", memory_gb=80, disk_gb=500, bfloat16=True)


def test_memory_by_hand():
    # weights 1e9 x 2 B; trained (8 x 1e5 + 1e6) x 16 B; a case keeps
    # 100 tokens x (10 x 1000 + 8 x 1000 + 4 x 4000) + 100 patches x (5 x 100 + 8 x 100 + 4 x 400)
    # = 3.69e6 numbers of 2 B, two cases; all x 1.2
    by_hand = (2.0 + 0.0288 + 0.01476) * 1.2
    assert training_gb(SMALL, 2, 8, 2, 76) == pytest.approx(by_hand, rel=1e-12)
    # without checkpointing each of the 10 (5) layers keeps its 24,000 (2,400) numbers a token
    kept = 2 * (100 * 10 * 24_000 + 100 * 5 * 2_400) * 2 / 1e9
    got = training_gb(SMALL, 2, 8, 2, 76, checkpointing=False)
    assert got == pytest.approx((2.0 + 0.0288 + kept) * 1.2, rel=1e-12)
    # 4 bits pack the language model alone
    assert checks.weights_gb(SMALL, 2) == 2.0
    by_hand = 0.8 * 4.127 / 8 + 0.2 * 2  # 4 bits and 0.127 bits of constants a parameter
    assert checks.weights_gb(SMALL, 2, "4bit") == pytest.approx(by_hand, rel=1e-12)


@given(st.integers(1, 64), st.integers(1, 4096), st.sampled_from(["none", "4bit"]))
def test_more_cases_and_longer_texts_never_need_less(batch, tokens, quantise):
    gb = training_gb(SMALL, 2, 8, batch, tokens, quantise)
    assert checks.weights_gb(SMALL, 2, quantise) < gb
    assert gb <= training_gb(SMALL, 2, 8, batch + 1, tokens, quantise)
    assert gb <= training_gb(SMALL, 2, 8, batch, tokens + 1, quantise)


@pytest.mark.parametrize(("config", "entry", "sides", "tokens"), [
    # a layer: q, o 2560 + 2048, k, v 2560 + 1024, three of 2560 + 10240
    (GEMMA3_4B, GEMMA3, 34 * (2 * 4608 + 2 * 3584 + 3 * 12800), 256),
    (PALIGEMMA2_3B, PALIGEMMA2, 26 * (2 * 4352 + 2 * 3328 + 3 * 11520), 1024),
])  # fmt: skip
def test_the_registrys_sizes_are_the_published_configurations(config, entry, sides, tokens):
    assert footprint(config, image_tokens=81).image_tokens == 81  # of a tower to be swapped in
    found = footprint(config)
    assert found.parameters == pytest.approx(entry.parameters, rel=0.005)
    assert found.adapter_sides == sides and found.image_tokens == tokens
    assert 0.6 < found.packable / found.parameters < 0.8
    assert found.projector < 4e6
    # their weights alone take 8.6 and 6.1 GB; 80 GB train both, at the paper profile's batch
    assert 1.2 * 2 * entry.parameters / 1e9 < training_gb(found, 2, 16, 4, 768) < 40


def test_every_failed_check_is_named_with_its_fix():
    poor = Machine("cuda", "Old GPU", memory_gb=8, disk_gb=5, bfloat16=False)
    with pytest.raises(RuntimeError, match="GPU memory: needs 12.1 GB") as caught:  # CUDA takes 0.6
        check_machine(poor, download_gb=8.6, memory_gb=11.5, dtype="bfloat16")
    for part in ("8.6 GB", "5.0 GB", "HF_HOME", "Old GPU", "batch_size", "4bit", "-p size tiny"):
        assert part in str(caught.value)
    rich = check_machine(ROOMY, 8.6, 11.5, "bfloat16")
    assert list(rich["check"]) == ["free disk", "GPU memory", "bfloat16"] and rich["ok"].all()
    # a CPU is asked for memory and not for bfloat16
    cpu = Machine("cpu", "CPU", memory_gb=12, disk_gb=5, bfloat16=True)
    table = check_machine(cpu, 0, 11.5, "bfloat16").set_index("check")
    assert table["ok"].all() and table["needed"]["memory"] == "11.5 GB"
    with pytest.raises(RuntimeError, match="memory: needs 12.5 GB, there is 12.0 GB"):
        check_machine(cpu, 0, 12.5, "bfloat16")


def test_the_machine_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(checks.constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = checks.read_machine()
    assert (here.device, here.bfloat16) == ("cpu", True)
    assert 0 < here.memory_gb < 1e5 and here.disk_gb > 0
    free = [(8_000_000_000, 9), (6_000_000_000, 9)]
    told = {"is_available": True, "device_count": 2, "get_device_name": "Two GPUs"}
    for name, value in (told | {"is_bf16_supported": False}).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value, **_: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: free[i])
    gpu = checks.read_machine()
    assert (gpu.device, gpu.name, gpu.memory_gb, gpu.bfloat16) == ("cuda", "Two GPUs", 6.0, False)


@pytest.mark.parametrize("name", BACKBONES)
def test_twins_pass_every_check(twins, name):
    table = preflight(name, "tiny", batch_size=8)
    assert list(table.columns) == ["check", "needed", "present", "ok"] and table["ok"].all()
    assert table["check"].str.startswith("access").sum() == (2 if "conceptclip" in name else 1)


def test_folders_are_checked_like_published_models_and_no_access_says_why(twins, monkeypatch):
    parts = {"checkpoint": str(twins / "gemma3"), "tower_checkpoint": str(twins / "conceptclip")}
    table = preflight("conceptclip_gemma3", "real", machine=ROOMY, **parts)
    assert list(table["check"])[:2] == ["access: gemma3", "access: conceptclip"]
    assert table.set_index("check")["needed"]["free disk"] == "0.0 GB"
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        preflight("gemma3", "tiny", machine=replace(ROOMY, device="cpu"), quantise="4bit")
    small = replace(ROOMY, memory_gb=0.1, bfloat16=False)
    with pytest.raises(RuntimeError, match=r"(?s)GPU memory: .*bfloat16: needs bfloat16"):
        preflight("gemma3", "real", machine=small, checkpoint=parts["checkpoint"])
    # the record names what was loaded and no folder of this machine
    tiny = checks.sources_table("conceptclip_gemma3")
    assert list(tiny["part"]) == ["model", "image tower"]
    assert list(tiny["source"]) == ["gemma3", "conceptclip"]
    real = checks.sources_table("gemma3", "real", checkpoint=parts["checkpoint"])
    assert real["commit"][0] == tiny["commit"][0] and len(real) == 1
    assert str(twins) not in real.to_csv() + tiny.to_csv()
    monkeypatch.setattr("cag_utils.hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(ConnectionError, match=r"(?s)huggingface.co/google.*hf auth login"):
        preflight("gemma3", "real", machine=ROOMY)
