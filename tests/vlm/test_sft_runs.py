"""Whole runs: killed, stopped early, in two processes, with a head start, merged."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, TrainerCallback

from cag_utils.vlm import loading, lora, sft
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.lora import load_tuned
from cag_utils.vlm.sft import (
    FSDP,
    SEAL,
    last_checkpoint,
    make_trainer,
    run_job,
    seal,
    share_of_batch,
    start_folder,
    training_config,
)
from tests.vlm.sft_world import NAMES, job_for, make_world

# A run that hangs while it writes the second checkpoint: its model is there, its optimiser not.
SCRIPT = """
import sys, time
from pathlib import Path
import torch
from cag_utils.vlm import loading, sft
from cag_utils.vlm.sft import Job
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
sft.train(Job(**read_json(Path(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    yield from make_world(tmp_path_factory.mktemp("world"), val=3)


@pytest.fixture
def one_thread():
    """As in the script: another number of threads adds up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(job):
    return load_file(job.path / "adapter" / "adapter_model.safetensors")


def same_run(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    columns = ["step", "split", "loss"]
    tables = [pd.read_csv(job.path / "history.csv")[columns] for job in (one, other)]
    pd.testing.assert_frame_equal(*tables)


def test_kill_9_while_a_checkpoint_is_written_and_resume_end_the_same(world, tmp_path, one_thread):
    whole, broken = (job_for(world, tmp_path / name) for name in ("whole", "broken"))
    run_job(whole)
    start_folder(broken)
    reached = tmp_path / "reached"
    arguments = [str(broken.path / "job.json"), str(loading.WEIGHTS), str(reached)]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.DEVNULL
    )
    while not reached.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work
    assert (broken.path / "checkpoints" / "checkpoint-4" / "optimizer.pt").is_file()
    assert last_checkpoint(broken).endswith("checkpoint-2")  # two steps an epoch
    run_job(broken)
    same_run(whole, broken)


class Kill(TrainerCallback):
    """Stops a run as a crash would, after so many steps."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(world, tmp_path):
    whole, broken = (job_for(world, tmp_path / name, epochs=3.0) for name in ("whole", "broken"))
    run_job(whole)
    start_folder(broken)
    with pytest.raises(KeyboardInterrupt):
        sft.train(broken, [Kill(step=5)])  # in the third epoch of two steps
    newest = broken.path / "checkpoints" / "checkpoint-4"
    assert last_checkpoint(broken) == str(newest) and newest.with_name("checkpoint-2").is_dir()
    for name in sorted(path.name for path in newest.iterdir()):  # the seal itself is one of them
        kept = (newest / name).read_bytes()
        for damaged in (None, kept[: len(kept) // 2], kept[:-1] + bytes([kept[-1] ^ 1])):
            (newest / name).unlink()
            if damaged is not None and name != SEAL:
                (newest / name).write_bytes(damaged)
            assert last_checkpoint(broken).endswith("checkpoint-2"), name
            (newest / name).write_bytes(kept)
    (newest / "optimizer.pt").write_bytes(b"half")
    run_job(broken)
    same_run(whole, broken)


def test_checkpoints_of_another_job_are_not_continued(world, tmp_path):
    job = job_for(world, tmp_path)
    start_folder(job)
    folder = tmp_path / "checkpoints" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "model").touch()
    seal(folder)
    start_folder(job)
    assert last_checkpoint(job) == str(folder)
    start_folder(job_for(world, tmp_path, learning_rate=1e-4))
    assert last_checkpoint(job) is None and not folder.exists()


# --- patience ----------------------------------------------------------------------------------


class Spoil(TrainerCallback):
    """Breaks the model after the first epoch, so that the validation loss gets worse."""

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        for name, values in model.named_parameters():
            if "lora_B" in name and state.epoch >= 1:
                values.data.add_(0.5)


def spoilt(world, folder):
    """A run of at most four epochs that stops after one without a better loss."""
    job = job_for(world, folder, epochs=4.0, patience=1, dropout=0.0)
    start_folder(job)
    return job


def test_patience_stops_and_keeps_the_best(world, tmp_path):
    job = spoilt(world, tmp_path / "patient")
    sft.train(job, [Spoil()])
    history = pd.read_csv(job.path / "history.csv")
    val = history[(history["split"] == "val") & (history["step"] > 0)].set_index("step")["loss"]
    assert val.index.tolist() == [2, 4] and val[4] > val[2]  # of 8: two steps an epoch
    # the adapter is that of the best epoch: its loss is measured again
    model, _ = load_tuned(job.backbone, job.size, job.path / "adapter")
    trainer = make_trainer(job)
    trainer.model.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "lora_" in k or "modules_to_save" in k},
        strict=False,
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(val[2], rel=1e-4)


def test_patience_that_ran_out_before_a_kill_has_run_out_after_it(world, tmp_path, monkeypatch):
    whole, broken = (spoilt(world, tmp_path / name) for name in ("whole", "broken"))
    sft.train(whole, [Spoil()])

    class Die(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft.train(broken, [Spoil(), Die()])
    assert last_checkpoint(broken).endswith("checkpoint-4")
    monkeypatch.setattr(sft.CaseTrainer, "train", lambda *_, **__: pytest.fail("trains again"))
    run_job(broken)
    same_run(whole, broken)


def test_without_patience_the_last_epoch_counts(world, tmp_path):
    config = training_config(job_for(world, tmp_path), 8, bfloat16=False)
    assert not config.load_best_model_at_end


# --- the projector's head start ----------------------------------------------------------------


def test_the_projector_learns_alone_first_also_after_a_kill(world, tmp_path):
    whole = job_for(world, tmp_path / "whole", warmup_projector_steps=3)
    broken = job_for(world, tmp_path / "broken", warmup_projector_steps=3)
    seen = {}

    class LookAndDie(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            lora = [p for n, p in model.named_parameters() if "lora_B" in n]
            seen[state.global_step] = max(float(p.detach().abs().max()) for p in lora)
            if state.global_step == 3:
                raise KeyboardInterrupt

    start_folder(broken)
    with pytest.raises(KeyboardInterrupt):
        sft.train(broken, [LookAndDie()])
    assert seen == {1: 0.0, 2: 0.0, 3: 0.0}  # B starts at zero and stays there
    run_job(broken)
    run_job(whole)
    same_run(whole, broken)
    assert all(v.abs().max() > 0 for k, v in weights(whole).items() if "lora_B" in k)


# --- several processes -------------------------------------------------------------------------


def test_two_processes_share_a_batch_and_leave_one_adapter(world, tmp_path, monkeypatch):
    job = job_for(world, tmp_path / "two", dropout=0.0, epochs=1.0)
    watch = tmp_path / "sitecustomize.py"
    watch.write_text(_watcher(loading.WEIGHTS))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path.cwd()}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_job(job, processes=2)
    found = sorted(path.name for path in tmp_path.glob("rank*"))
    assert found == ["rank0_of2_batch2", "rank1_of2_batch2"]
    load_tuned(job.backbone, job.size, job.path / "adapter")
    alone = job_for(world, tmp_path / "one", dropout=0.0, epochs=1.0)
    run_job(alone)
    # the same cases a step, so the same losses but for rounding
    one, two = (pd.read_csv(j.path / "history.csv") for j in (alone, job))
    assert one["step"].tolist() == two["step"].tolist()
    one, two = (table.loc[table["split"] == "train", "loss"].tolist() for table in (one, two))
    assert two == pytest.approx(one, rel=1e-3)


def _watcher(weights_folder):
    """Runs in each process before all else: the twins' folder, and a note of who took part."""
    return f"""
import os, sys
if "RANK" in os.environ and "cag_utils.vlm.sft" in " ".join(sys.orig_argv):
    from pathlib import Path
    from trl import SFTConfig
    from cag_utils.vlm import loading
    loading.WEIGHTS = Path({str(weights_folder)!r})
    start = SFTConfig.__init__
    def noted(self, *args, **kwargs):
        start(self, *args, **kwargs)
        each = self.per_device_train_batch_size
        name = f"rank{{os.environ['RANK']}}_of{{os.environ['WORLD_SIZE']}}_batch{{each}}"
        (Path(__file__).parent / name).touch()
    SFTConfig.__init__ = noted
"""


def test_a_batch_that_cannot_be_shared_is_refused(world, tmp_path):
    assert share_of_batch(8, 4) == 2
    with pytest.raises(ValueError, match="batch_size 4 cannot be shared by 3 processes"):
        run_job(job_for(world, tmp_path), processes=3)
    assert not (tmp_path / "job.json").exists()


def test_a_failed_process_is_reported(world, tmp_path, monkeypatch):
    monkeypatch.setattr(sft.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="training on 2 processes failed"):
        run_job(job_for(world, tmp_path), processes=2)


def test_the_settings_for_sharding_are_read_by_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FSDP))
    assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2


# --- merged, and quantised ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_merged_model_says_the_same_without_peft(world, tmp_path, name):
    job = job_for(world, tmp_path / "run", name, epochs=1.0)
    run_job(job)
    difference = merge_adapter(job, tmp_path / "merged")
    print(f"{name}: largest difference of a logit after merging {difference:g}")
    assert difference < 1e-4
    assert not list((tmp_path / "merged").glob("adapter*"))
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    base, _ = load_backbone(name, "tiny", "cpu")
    moved = [
        key
        for key, values in merged.state_dict().items()
        if not torch.equal(values, base.state_dict()[key])
    ]
    assert moved and not any("vision_tower" in key or "embed_tokens" in key for key in moved)


def test_nothing_is_merged_before_training(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter"):
        merge_adapter(job_for(world, tmp_path), tmp_path / "merged")


def test_four_bits_need_a_gpu_and_are_asked_for_by_name(world, tmp_path, monkeypatch):
    job = job_for(world, tmp_path, quantise="4bit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="4bit needs a CUDA GPU"):
        make_trainer(job)
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(sft, "load_backbone", lambda *a, **k: asked.append(k) or _die())
    monkeypatch.setattr(lora, "load_backbone", lambda *a, **k: asked.append(k) or _die())
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(job)
    with pytest.raises(KeyboardInterrupt):
        load_tuned("gemma3", "real", tmp_path, quantise="4bit")
    assert [one["quantise"] for one in asked] == ["4bit"] * 2


def _die():
    raise KeyboardInterrupt
