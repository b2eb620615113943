"""Fine-tuning: what is trained and scored, and that a stopped run ends as if it never was."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, TrainerCallback

from cag_utils.backbones import LANGUAGE_MODEL_ONLY, PROJECTIONS
from cag_utils.profiles import Lora, load_profile
from cag_utils.scores.entities import read_entities
from cag_utils.scores.rubric import truth_entities
from cag_utils.vlm import loading, lora, sft
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.lora import load_tuned, trainable_table
from cag_utils.vlm.sft import EpochGroups, last_checkpoint, make_job, make_trainer, run_job
from tests.vlm.world import NAMES, examples_of, job_for

LONG = {"epochs": 3.0}


def weights_of(job):
    return load_file(job.path / "adapter" / "adapter_model.safetensors")


def history_of(job, split="val"):
    return pd.read_csv(job.path / "history.csv").query("split == @split").sort_values("step")


def same_run(one, other):
    torch.testing.assert_close(weights_of(one), weights_of(other), rtol=0, atol=0)
    tables = [pd.read_csv(job.path / "history.csv") for job in (one, other)]
    pd.testing.assert_frame_equal(*(table[["step", "split", "loss"]] for table in tables))


@pytest.mark.parametrize("name", NAMES)
def test_only_lora_and_projector_train_and_come_back_exactly_or_merged(tuned, tmp_path, name):
    table = pd.read_csv(tuned[name].path / "trainable.csv")
    trained = table[table["method"] != "frozen"].set_index("part")
    assert set(trained.index) == {f"language model: {p}" for p in PROJECTIONS} | {"projector"}
    assert (trained["method"].drop("projector") == "LoRA").all()
    assert trained.loc["projector", "method"] == "full"
    # 4 layers of 160: q_proj is 160 -> 160, so A and B hold r x 160 each
    rank = 16 if name == "paligemma2" else 8
    assert trained.loc["language model: q_proj", "parameters"] == 4 * rank * (160 + 160)
    tower = table[table["part"] == "image tower"]
    assert list(tower["method"]) == ["frozen"] and tower["parameters"].item() > 1e6
    job, part = tuned[name], "multi_modal_projector."
    base, processor = load_backbone(name, "tiny", device="cpu")
    saved, before = weights_of(job), base.state_dict()
    assert not any("vision_tower" in key for key in saved)
    assert all(v.abs().max() > 0 for k, v in saved.items() if "lora_B" in k)
    moved = {f"model.{k[k.index(part) :]}": v for k, v in saved.items() if part in k}
    assert len(moved) == 2 and not any(torch.equal(before[k], v) for k, v in moved.items())
    assert sft.reload_difference(job) == 0
    live = load_file(job.path / "probe.safetensors")["logits"]
    assert (sft.probe(job, base, processor) - live).abs().max() > 1e-3
    assert sft.merge_adapter(job, tmp_path) < 1e-4 and not list(tmp_path.glob("adapter*"))
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    changed = [key for key, values in merged.items() if not torch.equal(values, before[key])]
    assert changed and not any("vision_tower" in k or "embed_tokens" in k for k in changed)


def test_a_plain_list_of_projections_would_hit_the_tower(twins):
    model, _ = load_backbone("gemma3", "tiny", device="cpu")
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    hit = [n for n in names if re.fullmatch(LANGUAGE_MODEL_ONLY, n)]
    assert len(hit) == 7 * 4 and not any("vision" in n for n in hit)
    assert any("vision" in n for n in names if n.endswith(PROJECTIONS))
    counted = trainable_table(model)["parameters"].sum()
    assert counted == sum(p.numel() for p in model.parameters())


def test_the_loss_falls_and_answers_are_marked_and_logged(tuned):
    for job in tuned.values():
        val = history_of(job)["loss"].tolist()
        assert val[-1] < val[0] and not (job.path / "checkpoints").exists()
        marks = pd.read_csv(job.path / "eval_history.csv")
        assert marks["step"].tolist() == [0, 2] and list(marks.columns[2:]) == list(sft.SCORES)
        assert marks["segment"].between(0, 1).all()
        log = EventAccumulator(str(job.path / "tensorboard")).Reload()
        assert {"train/loss", "eval/answers_segment"} <= set(log.Tags()["scalars"])
        logged = [event.value for event in log.Scalars("eval/loss")]
        assert logged == pytest.approx(val, rel=1e-5)
    card = (tuned["gemma3"].path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    assert '"cag_utils/weights/gemma3"' in card  # no path of this machine


@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_a_bfloat16_base_trains_its_projector_in_float32(world, tmp_path, monkeypatch, name):
    """The GPU's precision, here on the CPU, at a learning rate below bfloat16's step."""
    for room in (sft, lora):
        monkeypatch.setattr(room, "load_backbone", partial(load_backbone, dtype=torch.bfloat16))
    changes = {"max_steps": 1, "learning_rate": 1e-5, "projector_rate": 0.0, "warmup_share": 0.0}
    job = job_for(world, tmp_path, name, **changes)
    trainer = make_trainer(job)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32} and trainer.optimizer is None
    before = {n: p.detach().clone() for n, p in trained.items()}
    monkeypatch.setattr(sft, "make_trainer", lambda *_: trainer)
    run_job(job)
    moved = [n for n, p in trained.items() if "projector" in n and not torch.equal(p, before[n])]
    assert trainer.args.bf16 and len(moved) == 2
    assert sft.reload_difference(job) == 0


def test_loras_matrices_and_the_projector_have_their_own_rates(world, tmp_path):
    trainer = make_trainer(job_for(world, tmp_path, learning_rate=0.02, projector_rate=1e-3))
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    matrices, rest = trainer.optimizer.param_groups
    assert (matrices["lr"], rest["lr"]) == (0.02, 1e-3)
    assert all("lora_" in names[id(p)] for p in matrices["params"])
    assert all("projector" in names[id(p)] for p in rest["params"])
    trained = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert trained == {id(p) for group in (matrices, rest) for p in group["params"]}


def test_trl_defaults_that_bite_are_set_and_the_papers_numbers_reach_the_trainer(world, tmp_path):
    job = job_for(world, tmp_path, warmup_share=0.5)
    config = sft.training_config(job, n_train=12, bfloat16=False)
    assert config.max_length is None and config.report_to == [] and config.use_cpu
    assert not config.bf16 and not config.gradient_checkpointing
    assert not config.load_best_model_at_end  # without patience the last epoch counts
    assert config.learning_rate == job.finetune.learning_rate and config.warmup_steps == 3
    real = sft.Job(**(job.__dict__ | {"size": "real"}))
    assert sft.training_config(real, 12, bfloat16=False).gradient_checkpointing
    settings = load_profile("paper").finetune
    job = make_job(settings, "paligemma2", "ja", world, tmp_path, seed=0)
    config = sft.training_config(job, n_train=889, bfloat16=False)
    assert (config.num_train_epochs, config.learning_rate) == (5.0, 1e-5)
    assert config.optim == "adamw_torch" and job.size == "real" and settings.projector_rate == 0
    assert (job.lora.rank, job.lora.alpha) == (16, 16)
    other = settings.model_copy(update={"lora": {"paligemma2": Lora(rank=4, alpha=8)}})
    job = make_job(other, "paligemma2", "ja", world, tmp_path, seed=0)
    assert (job.lora.rank, job.lora.alpha) == (4, 8)


@pytest.mark.parametrize(("changes", "match"), [
    ({"backbone": "gema3"}, "did you mean 'gemma3'"),
    ({"language": "fr"}, "unknown language 'fr'"),
    ({"size": "huge"}, "unknown size 'huge'"),
    ({"epochs": -1.0}, "epochs must be > 0"),
])  # fmt: skip
def test_a_bad_job_is_refused_before_anything_starts(world, tmp_path, changes, match):
    plain = {"backbone": "gemma3", "language": "en"} | changes
    with pytest.raises(ValueError, match=match):
        make_job(load_profile("smoke").finetune, pairs=world, folder=tmp_path, seed=0, **plain)


def test_a_run_on_a_folder_of_ones_own_names_it_and_comes_back(world, tmp_path):
    folder = shutil.copytree(loading.WEIGHTS / "gemma3", tmp_path / "my_gemma")
    changes = {"size": "real", "checkpoints": {"gemma3": str(folder)}, "max_steps": 1}
    job = job_for(world, tmp_path / "run", **changes)
    assert job.source == {"checkpoint": str(folder), "tower_checkpoint": ""}
    run_job(job)
    assert sft.reload_difference(job) == 0
    card = (job.path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    assert '"my_gemma"' in card and str(tmp_path) not in card
    with pytest.raises(ValueError, match="names .'medgemma'., which are not tuned"):
        job_for(world, tmp_path, checkpoints={"medgemma": "x"})


@pytest.mark.parametrize("text, marks", [  # of segment, grade, laterality, plan
    ("LCX #11 shows 75% stenosis. Consider PCI.", [1, 1, 1, 1]),
    ("LCX #11 shows 90% stenosis. Consider PCI.", [1, 1, 1, 1]),  # one AHA step
    ("LCX #11 shows 99% stenosis. Consider PCI.", [1, 0, 1, 1]),  # two
    ("LCX #13 shows 75% stenosis. Consider PCI.", [0, 0, 1, 1]),
    ("RCA #1 shows 75% stenosis.", [0, 0, 0, 0]),
    ("la la la", [0, 0, 0, 0]),
])  # fmt: skip
def test_marks_by_hand_and_none_of_an_unknown_truth(text, marks):
    said = read_entities(text, "en")
    found = sft.mark(said, truth_entities("LCA", [{"segment": 11, "percent": 75}], "pci"))
    assert tuple(found) == sft.SCORES and list(found.values())[:4] == marks
    unknown = sft.mark(said, read_entities("Hello.", "en"))
    assert unknown["segment"] is None and unknown["grade"] is None and unknown["plan"] is None


def test_a_model_that_says_the_truth_gets_full_marks(world, tmp_path, monkeypatch):
    model, processor = load_backbone("gemma3", "tiny", "cpu")
    scorer = sft.AnswerScorer(job_for(world, tmp_path, eval_cases=2), processor)
    told = examples_of(world).set_index("image")["answer"]
    monkeypatch.setattr(sft, "generate_answers", lambda _, __, at, *___: {"output": told[at]})
    found = scorer(model.train())
    assert model.training
    assert found["segment"] == found["laterality"] == found["grade"] == 1
    assert set(scorer.cases["split"]) == {"val"} and len(scorer.cases) == 2
    greedy = sft.AnswerScorer(job_for(world, tmp_path, eval_cases=9), processor)
    assert greedy.n_cases == 3 and greedy.cases["case_id"].is_unique  # no more than there are


def test_histories_have_a_row_a_measurement_and_what_is_unknown_is_missing():
    log = [
        {"step": 0, "epoch": 0.0, "eval_loss": 3.0, "eval_runtime": 1.0},
        {"step": 0, "epoch": 0.0, "eval_answers_segment": 0.0, "eval_answers_overall": 1.0},
        {"step": 1, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-3},
        {"step": 2, "epoch": 1.0, "eval_loss": 1.5},
        {"step": 2, "epoch": 1.0, "eval_answers_segment": 0.5, "eval_answers_overall": 4.0},
        {"step": 2, "epoch": 1.0, "train_runtime": 9.0},
    ]
    table = sft.loss_history(log)
    assert table["loss"].tolist() == [3.0, 2.0, 1.5]
    assert table["split"].tolist() == ["val", "train", "val"]
    answers = sft.answer_history(log)
    assert answers["step"].tolist() == [0, 2] and answers["segment"].tolist() == [0.0, 0.5]
    assert answers["plan"].isna().all() and sft.answer_history(log[:1]).empty


@pytest.mark.parametrize(("n", "size"), [(1, 4), (50, 4), (203, 8)])
def test_an_epoch_has_every_case_once_and_neighbours_alike_and_comes_back(n, size):
    lengths = [(37 * i) % 101 for i in range(n)]
    groups = EpochGroups(lengths, size, seed=1)
    first = list(groups)
    assert sorted(first) == list(range(n)) and len(groups) == n
    groups.set_epoch(1)
    if n > size:
        batches = [[lengths[i] for i in first[k : k + size]] for k in range(size, n, size)]
        assert sum(max(b) - min(b) for b in batches) / len(batches) < 35  # by chance about 60
        assert first != list(groups) and first != list(EpochGroups(lengths, size, seed=2))
    groups.set_epoch(0)
    assert list(groups) == first == list(EpochGroups(lengths, size, 1))


# A run that hangs while it writes the second checkpoint: its model is there, its optimiser not.
SCRIPT = """
import sys, time
from pathlib import Path
import torch
from cag_utils.vlm import loading, sft
from cag_utils.study import read_json
loading.WEIGHTS = Path(sys.argv[2])
torch.set_num_threads(1)
write = sft.CaseTrainer._save_optimizer_and_scheduler

def hang(trainer, folder):
    if trainer.state.global_step == 4:
        Path(folder, "optimizer.pt").write_bytes(b"half")
        Path(sys.argv[3]).touch()
        time.sleep(600)
    write(trainer, folder)

sft.CaseTrainer._save_optimizer_and_scheduler = hang
sft.train(sft.Job(**read_json(Path(sys.argv[1]))))
"""
# Runs in each process before all else: the twins' folder, and a note of who took part.
WATCHER = """
import os, sys
if "RANK" in os.environ and "cag_utils.vlm.sft" in " ".join(sys.orig_argv):
    from pathlib import Path
    from trl import SFTConfig
    from cag_utils.vlm import loading
    loading.WEIGHTS = Path({!r})
    start = SFTConfig.__init__
    def noted(self, *args, **kwargs):
        start(self, *args, **kwargs)
        who = os.environ["RANK"], os.environ["WORLD_SIZE"], self.per_device_train_batch_size
        Path(__file__).with_name("rank%s_of%s_batch%s" % who).touch()
    SFTConfig.__init__ = noted
"""


class Watch(TrainerCallback):
    """Notes how far LoRA's B has come after each step; stops a run as a crash would."""

    def __init__(self, step=0, save=0):
        self.step, self.save, self.seen = step, save, {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        matrices = [p.detach().abs().max() for n, p in model.named_parameters() if "lora_B" in n]
        self.seen[state.global_step] = float(max(matrices))
        if state.global_step == self.step:
            raise KeyboardInterrupt

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.save:
            raise KeyboardInterrupt


def break_off(job, *callbacks):
    sft.start_folder(job)
    with pytest.raises(KeyboardInterrupt):
        sft.train(job, callbacks)


@pytest.fixture
def whole(world, once):
    """A run of three epochs that nobody stopped, on one thread: more add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = once("whole", lambda folder: run_job(job_for(world, folder, **LONG)))
    yield job_for(world, folder, **LONG)
    torch.set_num_threads(before)


def test_kill_9_while_a_checkpoint_is_written_and_resume_end_the_same(world, whole, tmp_path):
    broken, reached = job_for(world, tmp_path / "broken", **LONG), tmp_path / "reached"
    sft.start_folder(broken)
    arguments = map(str, (broken.path / "job.json", loading.WEIGHTS, reached))
    command = [sys.executable, "-c", SCRIPT, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not reached.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work
    assert (broken.path / "checkpoints" / "checkpoint-4" / "optimizer.pt").is_file()
    assert last_checkpoint(broken).endswith("checkpoint-2")  # two steps an epoch
    run_job(broken)
    same_run(whole, broken)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(world, whole, tmp_path):
    broken = job_for(world, tmp_path, **LONG)
    break_off(broken, Watch(step=5))  # in the third epoch of two steps
    newest = broken.path / "checkpoints" / "checkpoint-4"
    assert last_checkpoint(broken) == str(newest) and newest.with_name("checkpoint-2").is_dir()
    for name in sorted(path.name for path in newest.iterdir()):  # the seal itself too
        kept = (newest / name).read_bytes()
        for damaged in (None, kept[: len(kept) // 2], kept[:-1] + bytes([kept[-1] ^ 1])):
            (newest / name).unlink()
            if damaged is not None and name != sft.SEAL:
                (newest / name).write_bytes(damaged)
            assert last_checkpoint(broken).endswith("checkpoint-2"), name
            (newest / name).write_bytes(kept)
    (newest / "optimizer.pt").write_bytes(b"half")
    run_job(broken)
    same_run(whole, broken)


def test_checkpoints_of_another_job_are_not_continued(world, tmp_path):
    job = job_for(world, tmp_path)
    sft.start_folder(job)
    folder = tmp_path / "checkpoints" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "model").touch()
    sft.seal(folder)
    sft.start_folder(job)
    assert last_checkpoint(job) == str(folder)
    sft.start_folder(job_for(world, tmp_path, learning_rate=1e-4))
    assert last_checkpoint(job) is None and not folder.exists()


class Spoil(TrainerCallback):
    """Breaks the model after the first epoch, so that the validation loss gets worse."""

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        for name, values in model.named_parameters():
            if "lora_B" in name and state.epoch >= 1:
                values.data.add_(0.5)


def test_patience_keeps_the_best_and_has_run_out_after_a_kill_too(world, tmp_path, monkeypatch):
    patient = {"epochs": 4.0, "patience": 1, "dropout": 0.0}
    whole, broken = (job_for(world, tmp_path / name, **patient) for name in ("whole", "broken"))
    sft.start_folder(whole)
    sft.train(whole, [Spoil()])
    val = history_of(whole).set_index("step")["loss"].drop(0)
    assert val.index.tolist() == [2, 4] and val[4] > val[2]  # of 8: two steps an epoch
    # the adapter is that of the best epoch: its loss is measured again
    trainer = make_trainer(whole)
    set_peft_model_state_dict(trainer.model, weights_of(whole))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(val[2], rel=1e-4)
    break_off(broken, Spoil(), Watch(save=4))
    assert last_checkpoint(broken).endswith("checkpoint-4")
    monkeypatch.setattr(sft.CaseTrainer, "train", lambda *_, **__: pytest.fail("trains again"))
    run_job(broken)
    same_run(whole, broken)


def test_the_projector_learns_alone_first_also_after_a_kill(world, tmp_path):
    first = {"warmup_projector_steps": 3}
    whole, broken = (job_for(world, tmp_path / name, **first) for name in ("whole", "broken"))
    watch = Watch(step=3)
    break_off(broken, watch)
    assert watch.seen == {1: 0.0, 2: 0.0, 3: 0.0}  # B starts at zero and stays there
    run_job(broken)
    run_job(whole)
    same_run(whole, broken)
    assert all(v.abs().max() > 0 for k, v in weights_of(whole).items() if "lora_B" in k)


def test_two_processes_share_a_batch_and_leave_one_adapter(world, tmp_path, monkeypatch):
    job = job_for(world, tmp_path / "two", dropout=0.0, epochs=1.0)
    (tmp_path / "sitecustomize.py").write_text(WATCHER.format(str(loading.WEIGHTS)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path.cwd()}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_job(job, processes=2)
    found = sorted(path.name for path in tmp_path.glob("rank*"))
    assert found == ["rank0_of2_batch2", "rank1_of2_batch2"]
    load_tuned(job.backbone, job.size, job.path / "adapter")
    alone = job_for(world, tmp_path / "one", dropout=0.0, epochs=1.0)
    run_job(alone)
    # the same cases a step, so the same losses but for rounding
    one, two = (history_of(j, "train")[["step", "loss"]] for j in (alone, job))
    pd.testing.assert_frame_equal(one, two, rtol=1e-3)


def test_a_batch_must_be_shared_and_no_process_may_fail(world, tmp_path, monkeypatch):
    assert sft.share_of_batch(8, 4) == 2
    with pytest.raises(ValueError, match="batch_size 4 cannot be shared by 3 processes"):
        run_job(job_for(world, tmp_path), processes=3)
    assert not (tmp_path / "job.json").exists()
    monkeypatch.setattr(sft.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="training on 2 processes failed"):
        run_job(job_for(world, tmp_path), processes=2)
    # the settings for sharding are read by accelerate
    config = load_config_from_file(str(sft.FSDP))
    assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2


def test_what_is_not_trained_or_has_no_gpu_for_4_bits_is_refused(world, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="04_finetune with -p backbone gemma3"):
        load_tuned("gemma3", "tiny", tmp_path)
    with pytest.raises(FileNotFoundError, match="no adapter"):
        sft.merge_adapter(job_for(world, tmp_path), tmp_path / "merged")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ValueError, match="4bit needs a CUDA GPU"):
        make_trainer(job_for(world, tmp_path, quantise="4bit"))
    with pytest.raises(ValueError, match="4bit needs a CUDA GPU"):
        load_tuned("gemma3", "real", tmp_path, quantise="4bit")
