"""The GPU checks' own code, on a CPU: tiny configurations of the same classes."""

import gpu
import pytest
import torch

TINY = gpu.Sizes(
    cnn="convnext_twin", cnn_px=32, cnn_batch=4,
    text=dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=16,
    ),
    vision=dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=7, vision_use_head=False,
    ),
    image_tokens=4, cases=2, length=24, scored=6, steps=2,
)  # fmt: skip


def test_every_check_but_the_cards_own_runs_on_a_cpu_and_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda name: True)  # as if bitsandbytes were there
    names = [name for name in gpu.CHECKS if name != "tests marked gpu"]
    rows = gpu.run_checks(TINY, "cpu", names)
    states = {row["check"]: row["state"] for row in rows}
    assert states.pop("LoRA step over 4 bits").startswith("FAILED: ValueError: quantise 4bit needs")
    assert set(states.values()) == {"ok"}, states
    figures = {row["check"]: row for row in rows}
    assert all(figures[name].get("images_per_second", 1) > 0 for name in states)
    assert figures["CNN, two processes"]["gradient_gap"] < 1e-4
    gpu.write_report(rows, TINY, "a CPU", tmp_path / "new" / "gpu.md")
    text = (tmp_path / "new" / "gpu.md").read_text(encoding="utf-8")
    assert text.startswith("# GPU checks on a CPU\n") and all(name in text for name in names)


def test_a_picture_costs_the_same_tokens_with_and_without_its_features():
    plain, cached = (gpu.real_batch(TINY, "cpu", has) for has in (False, True))
    assert (plain["input_ids"] == gpu.real_config(TINY).image_token_index).sum() == 2 * 4
    assert plain["pixel_values"].shape == (2, 3, 28, 28)
    assert cached["tower_features"].shape == (2, 16, 32)
    assert (cached["labels"] != -100).sum() == 2 * 6
    model = gpu.real_model(TINY, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        losses = [model(**batch, use_cache=False).loss for batch in (plain, cached)]
    assert all(torch.isfinite(loss) for loss in losses)
    core = model.get_base_model().model
    layers = core.language_model.layers
    assert gpu.count_weights(core.language_model) > 2 * sum(
        p.numel() for p in layers[0].mlp.parameters()
    )
    sizes = gpu.real_config(gpu.REAL)
    assert (sizes.text_config.num_hidden_layers, gpu.REAL.patches) == (34, 4096)


def test_a_check_that_fails_or_has_no_time_says_so_and_the_rest_runs(monkeypatch):
    def fails(sizes, device):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.CHECKS, "CNN, training", fails)
    rows = gpu.run_checks(TINY, "cpu", ["CNN, training", "CNN, prediction"])
    assert [row["state"][:6] for row in rows] == ["FAILED", "ok"]
    [row] = gpu.run_checks(TINY, "cpu", ["CNN, prediction"], limit_s=-1)
    assert row["state"] == "not run: no time left"


def test_without_a_card_there_is_one_clear_line_and_an_exit_code(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--out", str(tmp_path / "gpu.md")])
    assert stop.value.code == 3 and not (tmp_path / "gpu.md").exists()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("no CUDA device here")
