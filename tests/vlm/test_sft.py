"""Fine-tuning: what is trained, what is masked, and that a stopped run ends as if it never was."""

import functools
from contextlib import nullcontext

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cag_utils.backbones import LANGUAGE_MODEL_ONLY, PROJECTIONS
from cag_utils.corpus.examples import encode_prompts, open_picture, read_examples
from cag_utils.making.twins import IMAGE_PX
from cag_utils.profiles import Lora, load_profile
from cag_utils.vlm import lora, sft
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.lora import load_tuned, probe, reload_difference, trainable_table
from cag_utils.vlm.sft import (
    Job,
    answers_scored_only,
    make_job,
    make_trainer,
    probe,
    reload_difference,
    run_job,
    training_config,
)
from tests.vlm.sft_world import NAMES, batch_of, examples_of, job_for, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twins on disk and a corpus; yields the path of `pairs.csv`."""
    yield from make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """One finished run of each backbone."""
    jobs = {}
    for name in NAMES:
        jobs[name] = job_for(world, tmp_path_factory.mktemp(name), name, epochs=1.0)
        run_job(jobs[name])
    return jobs


def test_examples_carry_prompt_and_answer_of_one_language(world):
    english, japanese = examples_of(world), examples_of(world, "ja")
    assert english["case_id"].is_monotonic_increasing and len(english) == 13
    first = english.iloc[0]
    assert "left coronary" in first["prompt"] and first["prompt"].endswith(first["report"])
    assert "左冠動脈" in japanese["prompt"][0] and japanese["answer"][0].startswith("LCX #11")
    with pytest.raises(ValueError, match="unknown language 'fr'"):
        examples_of(world, "fr")


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("findings_en", " ", "case-0002 has an empty answer"),
        ("report_en", "", "case-0002 has an empty report"),
        ("split", "tests", "did you mean 'test'"),
    ],
)
def test_bad_pairs_are_named(world, tmp_path, column, value, match):
    table = pd.read_csv(world)
    table.loc[2, column] = value
    table.to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(ValueError, match=match):
        read_examples(tmp_path / "pairs.csv", "en", world.parents[2])


def test_a_lost_picture_is_named(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="and 12 more pictures"):
        read_examples(world, "en", tmp_path)


def test_pictures_are_shrunk_never_enlarged(world):
    _, processor = load_backbone("gemma3", "tiny", device="cpu")
    path = examples_of(world)["image"][0]
    assert open_picture(path, processor).size == (IMAGE_PX, IMAGE_PX)  # from 256
    processor.image_processor.size = {"height": 896, "width": 896}
    picture = open_picture(path, processor)
    assert (picture.size, picture.mode) == ((256, 256), "RGB")


@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_only_the_answer_is_scored(world, name):
    _, processor, batch = batch_of(name, world)
    for row, labels in zip(examples_of(world).head(3).itertuples(), batch["labels"], strict=True):
        scored = processor.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)
        assert scored.strip().removesuffix("<end_of_turn>").strip() == row.answer
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    last = [int(row[row >= 0][-1]) for row in batch["labels"]]
    # the end of the answer is learnt too: a model that never learnt to stop never stops
    ends = processor.tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    last = last if name == "paligemma2" else [int(r[r >= 0][-2]) for r in batch["labels"]]
    assert set(last) <= set(ends)


@pytest.mark.parametrize("name", NAMES)
def test_training_and_generation_see_the_same_prompt(world, name):
    _, processor, batch = batch_of(name, world, n=1)
    row = examples_of(world).iloc[0]
    asked = encode_prompts(processor, [open_picture(row["image"], processor)], [row["prompt"]])
    n = asked["input_ids"].shape[1]
    assert torch.equal(asked["input_ids"][0], batch["input_ids"][0, :n])
    assert torch.equal(asked["pixel_values"], batch["pixel_values"])
    assert torch.equal(asked["token_type_ids"][0], batch["token_type_ids"][0, :n])
    assert (batch["labels"][0, :n] == -100).all() and batch["labels"][0, n] >= 0


@pytest.mark.parametrize("name", NAMES)
def test_only_language_model_lora_and_projector_train(tuned, name):
    table = pd.read_csv(tuned[name].path / "trainable.csv")
    trained = table[table["method"] != "frozen"].set_index("part")
    want = {f"language model: {p}" for p in PROJECTIONS} | {"projector"}
    assert set(trained.index) == want
    assert (trained["method"].drop("projector") == "LoRA").all()
    assert trained.loc["projector", "method"] == "full"
    # 4 layers of 160: q_proj is 160 -> 160, so A and B hold r x 160 each
    rank = 16 if name == "paligemma2" else 8
    assert trained.loc["language model: q_proj", "parameters"] == 4 * rank * (160 + 160)
    tower = table[table["part"] == "image tower"]
    assert list(tower["method"]) == ["frozen"] and tower["parameters"].item() > 1e6


def test_a_plain_list_of_projections_would_hit_the_tower(world):
    import re

    model, _ = load_backbone("gemma3", "tiny", device="cpu")
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    hit = [n for n in names if re.fullmatch(LANGUAGE_MODEL_ONLY, n)]
    plain = [n for n in names if n.endswith(PROJECTIONS)]
    assert len(hit) == 7 * 4 and not any("vision" in n for n in hit)
    assert any("vision" in n for n in plain)


@pytest.mark.parametrize("name", NAMES)
def test_weights_moved_where_they_should_and_nowhere_else(tuned, name):
    base = load_backbone(name, "tiny", device="cpu")[0].state_dict()
    saved = load_file(tuned[name].path / "adapter" / "adapter_model.safetensors")
    assert not any("vision_tower" in key for key in saved)
    assert all(v.abs().max() > 0 for k, v in saved.items() if "lora_B" in k)
    projector = {
        k.split("multi_modal_projector.")[1]: v
        for k, v in saved.items()
        if "proj" in k and "multi_modal_projector" in k
    }
    assert len(projector) == 2
    for key, value in projector.items():
        assert not torch.equal(base[f"model.multi_modal_projector.{key}"], value)


@pytest.mark.parametrize("name", NAMES)
def test_a_reloaded_adapter_answers_exactly_as_the_live_model(tuned, name):
    job = tuned[name]
    assert reload_difference(job) == 0
    base, processor = load_backbone(name, "tiny", device="cpu")
    live = load_file(job.path / "probe.safetensors")["logits"]
    assert (probe(job, base, processor)["logits"] - live).abs().max() > 1e-3


def test_the_loss_falls_on_train_and_val(tuned):
    for job in tuned.values():
        history = pd.read_csv(job.path / "history.csv")
        val = history[history["split"] == "val"].sort_values("step")["loss"]
        assert val.iloc[-1] < val.iloc[0]
        assert history["loss"].notna().all() and not (job.path / "checkpoints").exists()
        assert "/" not in history.columns and (job.path / "job.json").is_file()


def test_the_adapters_card_names_no_path_of_this_machine(tuned):
    text = (tuned["gemma3"].path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    assert '"cag_utils/weights/gemma3"' in text


@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_a_bfloat16_base_trains_its_projector_in_float32(world, tmp_path, monkeypatch, name):
    """The GPU's precision, here on the CPU, at a learning rate below bfloat16's step."""
    half = functools.partial(load_backbone, dtype=torch.bfloat16)
    monkeypatch.setattr(sft, "load_backbone", half)
    monkeypatch.setattr(lora, "load_backbone", half)
    job = job_for(
        world, tmp_path, name, max_steps=2, learning_rate=1e-5, projector_rate=0.0, warmup_share=0.0
    )
    trainer = make_trainer(job)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    before = {n: p.detach().clone() for n, p in trained.items()}
    monkeypatch.setattr(sft, "make_trainer", lambda *_: trainer)
    run_job(job)
    moved = [n for n, p in trained.items() if "projector" in n and not torch.equal(p, before[n])]
    assert trainer.args.bf16 and len(moved) == 2
    assert reload_difference(job) == 0


def test_loras_matrices_and_the_projector_have_their_own_rates(world, tmp_path):
    trainer = make_trainer(job_for(world, tmp_path, learning_rate=0.02, projector_rate=1e-3))
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    lora, rest = trainer.optimizer.param_groups
    assert (lora["lr"], rest["lr"]) == (0.02, 1e-3)
    assert all("lora_" in names[id(p)] for p in lora["params"])
    assert all("projector" in names[id(p)] for p in rest["params"])
    trained = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert trained == {id(p) for group in (lora, rest) for p in group["params"]}
    assert make_trainer(job_for(world, tmp_path, projector_rate=0.0)).optimizer is None


def test_trl_defaults_that_bite_are_set(world, tmp_path):
    job = job_for(world, tmp_path, warmup_share=0.5)
    config = training_config(job, n_train=12, bfloat16=False)
    assert config.max_length is None and config.report_to == [] and config.use_cpu
    assert not config.bf16 and not config.gradient_checkpointing
    assert config.learning_rate == job.finetune.learning_rate and config.warmup_steps == 3
    real = Job(**(job.__dict__ | {"size": "real"}))
    assert training_config(real, 12, bfloat16=False).gradient_checkpointing


def test_the_papers_numbers_reach_the_trainer(world, tmp_path):
    settings = load_profile("paper").finetune
    job = make_job(settings, "paligemma2", "ja", world, tmp_path, seed=0)
    config = training_config(job, n_train=889, bfloat16=False)
    assert (config.num_train_epochs, config.learning_rate) == (5.0, 1e-5)
    assert config.optim == "adamw_torch" and job.size == "real" and settings.projector_rate == 0
    assert (job.lora.rank, job.lora.alpha) == (16, 16)
    other = settings.model_copy(update={"lora": {"paligemma2": Lora(rank=4, alpha=8)}})
    job = make_job(other, "paligemma2", "ja", world, tmp_path, seed=0)
    assert (job.lora.rank, job.lora.alpha) == (4, 8)


@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_scoring_answers_only_changes_neither_loss_nor_gradients(world, tmp_path, name):
    trainer = make_trainer(job_for(world, tmp_path, name, dropout=0.0))
    batch = trainer.data_collator([dict(trainer.train_dataset[i]) for i in range(3)])
    found = []
    for context in (nullcontext(), answers_scored_only()):
        trainer.model.zero_grad()
        with context:
            loss = trainer.compute_loss(trainer.model, dict(batch))
            loss.backward()
        grads = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
        found.append((loss.item(), grads))
    (one, first), (two, second) = found
    assert one == pytest.approx(two, rel=1e-5) and len(first) == len(second) > 50
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"backbone": "gema3"}, "did you mean 'gemma3'"),
        ({"language": "fr"}, "unknown language 'fr'"),
        ({"size": "huge"}, "unknown size 'huge'"),
        ({"epochs": -1.0}, "epochs must be > 0"),
    ],
)
def test_a_bad_job_is_refused_before_anything_starts(world, tmp_path, changes, match):
    plain = {"backbone": "gemma3", "language": "en"} | changes
    with pytest.raises(ValueError, match=match):
        make_job(load_profile("smoke").finetune, pairs=world, folder=tmp_path, seed=0, **plain)


def test_tuning_comes_before_loading(tmp_path):
    with pytest.raises(FileNotFoundError, match="04_finetune with -p backbone gemma3"):
        load_tuned("gemma3", "tiny", tmp_path)


def test_trainable_table_counts_every_parameter(world):
    model, _ = load_backbone("gemma3", "tiny", device="cpu")
    table = trainable_table(model)
    assert table["parameters"].sum() == sum(p.numel() for p in model.parameters())


def test_a_run_on_a_folder_of_ones_own_names_it_and_comes_back(world, tmp_path):
    folder = tmp_path / "my_gemma"
    model, processor = load_backbone("gemma3", "tiny", device="cpu")
    lora.save_merged(model, processor, folder)
    settings = load_profile("smoke").finetune.model_copy(
        update={"size": "real", "checkpoints": {"gemma3": str(folder)}, "max_steps": 1}
    )
    job = make_job(settings, "gemma3", "en", world, tmp_path / "run", seed=0)
    assert job.source == {"checkpoint": str(folder), "tower_checkpoint": ""}
    run_job(job)
    assert reload_difference(job) == 0
    card = (job.path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    assert '"my_gemma"' in card and str(tmp_path) not in card


def test_checkpoints_of_a_backbone_that_is_not_tuned_are_refused():
    settings = load_profile("smoke").finetune.model_dump()
    with pytest.raises(ValueError, match="names .'medgemma'., which are not tuned"):
        type(load_profile("smoke").finetune).model_validate(
            settings | {"checkpoints": {"medgemma": "x"}}
        )
