"""Every check that needs a GPU, in under 25 minutes on one card: `make gpu`.

Run: `python tests/benchmarks/gpu.py [--out outputs/reference/gpu.md]`. Weights and data are random,
so nothing is downloaded; sizes are the published ones (`REAL`), and parameters: the tests run the
same code on a CPU with tiny configurations of the same classes.

Floating-point operations of a LoRA step are counted as 2 x parameters of the language model a token
forwards, as many for the gradient of activations (LoRA's own weights are half a per cent), once
more for gradient checkpointing, and where the tower runs in the step, 2 x its parameters a patch.

exit codes: 0 all checks ran, 1 one failed (its row says why), 3 no CUDA device here
"""

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

from cag_utils.keyframes.network import autocast, build_model, prepare, probabilities
from cag_utils.study import provenance, root
from cag_utils.vlm.data import FORWARD_NAME, accept_features
from cag_utils.vlm.loading import quantisation
from cag_utils.vlm.lora import lora_config, raise_trained_to_float32

LIMIT_S = 25 * 60.0
NO_GPU = 3
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16, dense, data sheets


@dataclass(frozen=True)
class Sizes:
    """What is built, and how much of it is fed."""

    cnn: str = "convnext_base.fb_in22k_ft_in1k"  # the paper's, as its profile names it
    cnn_px: int = 224
    cnn_batch: int = 128
    text: dict = field(default_factory=lambda: GEMMA3_4B_TEXT)
    vision: dict = field(default_factory=lambda: GEMMA3_4B_VISION)
    image_tokens: int = 256
    cases: int = 4
    length: int = 640  # tokens a case: a picture, a report, an answer
    scored: int = 100  # of them, the answer's
    steps: int = 12  # the first three are not timed

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2


GEMMA3_4B_TEXT = dict(  # the published config.json of google/gemma-3-4b-it
    hidden_size=2560,
    intermediate_size=10240,
    num_hidden_layers=34,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    sliding_window=1024,
)
GEMMA3_4B_VISION = dict(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=896,
    patch_size=14,
    vision_use_head=False,
)
REAL = Sizes()


def real_config(sizes: Sizes) -> Gemma3Config:
    """Return a Gemma3 configuration of these sizes."""
    return Gemma3Config(
        text_config=AutoConfig.for_model("gemma3_text", **sizes.text),
        vision_config=AutoConfig.for_model("siglip_vision_model", **sizes.vision),
        mm_tokens_per_image=sizes.image_tokens,
    )


def real_model(sizes: Sizes, device: str, quantise: str = "none") -> nn.Module:
    """Return Gemma3 with random weights in bfloat16 and the paper's adapter, ready to train."""
    packed = quantisation(quantise, device)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Gemma3ForConditionalGeneration(real_config(sizes))
    finally:
        torch.set_default_dtype(torch.float32)
    if packed:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            del model
            release(device)
            kind = Gemma3ForConditionalGeneration
            model = kind.from_pretrained(folder, dtype=torch.bfloat16, **packed)
    model = get_peft_model(model, lora_config(8, 8))
    raise_trained_to_float32(model)
    accept_features(model)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model.train()


def real_batch(sizes: Sizes, device: str, has_features: bool) -> dict[str, torch.Tensor]:
    """Return random tokens of as many cases; of the picture its pixels, or what a tower made."""
    image = real_config(sizes).image_token_index
    ids = torch.randint(1000, 200_000, (sizes.cases, sizes.length), device=device)
    ids[:, 4 : 4 + sizes.image_tokens] = image
    labels = ids.clone()
    labels[:, : -sizes.scored] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    batch["token_type_ids"] = (ids == image).long()
    shape = (sizes.patches, sizes.vision["hidden_size"])
    side = sizes.vision["image_size"]
    name, shape = (FORWARD_NAME, shape) if has_features else ("pixel_values", (3, side, side))
    values = torch.randn(sizes.cases, *shape, device=device, dtype=torch.bfloat16)
    return batch | {name: values}


def count_weights(module: nn.Module) -> int:
    """Count what every token passes: without embeddings, and packed weights as they were."""
    kept = [p for name, p in module.named_parameters() if "embed" not in name]
    return sum(math.prod(getattr(getattr(p, "quant_state", p), "shape", p.shape)) for p in kept)


def lora_step(sizes: Sizes, device: str, has_features: bool, quantise: str = "none") -> dict:
    """Train Gemma3 of random weights on random tokens; return its figures."""
    model, batch = real_model(sizes, device, quantise), real_batch(sizes, device, has_features)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()}")

    seconds = time_steps(step, sizes.steps, device)
    core = model.get_base_model().model
    n_tokens = batch["input_ids"].numel()
    operations = 6 * count_weights(core.language_model) * n_tokens
    if not has_features:
        operations += 2 * count_weights(core.vision_tower) * sizes.cases * sizes.patches
    return {"tokens_per_second": n_tokens / seconds} | card_figures(device, operations / seconds)


def cnn_training(sizes: Sizes, device: str) -> dict:
    """Train the key-frame network on random pictures; return its figures."""
    model = build_model(sizes.cnn, pretrained=False).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pictures, targets = cnn_batch(sizes, device)

    def step() -> None:
        cnn_loss(model, sizes, pictures, targets).backward()
        optimiser.step()
        optimiser.zero_grad()

    rate = sizes.cnn_batch / time_steps(step, sizes.steps, device)
    return {"images_per_second": rate} | card_figures(device)


def cnn_prediction(sizes: Sizes, device: str) -> dict:
    """Predict random pictures through the study's own `probabilities`; return its figures."""
    model = build_model(sizes.cnn, pretrained=False).to(device).eval()
    pictures, place = cnn_batch(sizes, device)[0].cpu(), torch.device(device)

    def step() -> None:
        list(probabilities(model, sizes.cnn, pictures, sizes.cnn_batch, place))

    rate = sizes.cnn_batch / time_steps(step, sizes.steps, device)
    return {"images_per_second": rate} | card_figures(device)


def cnn_batch(sizes: Sizes, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures (n, 1, px, px) uint8 and targets (n,), the same each time."""
    rng = torch.Generator().manual_seed(0)
    shape = (sizes.cnn_batch, 1, sizes.cnn_px, sizes.cnn_px)
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    targets = torch.randint(0, 6, (sizes.cnn_batch,), generator=rng)
    return pictures.to(device), targets.to(device)


def cnn_loss(model: nn.Module, sizes: Sizes, pictures, targets) -> torch.Tensor:
    """Mean cross-entropy, as in training: bfloat16 on a GPU."""
    with autocast(pictures.device):
        scores = model(prepare(pictures, sizes.cnn))
    return nn.functional.cross_entropy(scores.float(), targets)


def two_processes(sizes: Sizes, device: str) -> dict:
    """Let two processes share a batch of the CNN's; their gradient must be that of one alone."""
    alone = cnn_gradient(sizes, device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = (asdict(sizes), device, str(folder))
        torch.multiprocessing.spawn(half_of_a_batch, arguments, nprocs=2)
        found = torch.load(folder / "found.pt", weights_only=True)
    gap = ((found["gradient"] - alone).norm() / alone.norm()).item()
    if gap > (0.05 if device.startswith("cuda") else 1e-4):  # bfloat16 on a GPU
        raise ValueError(f"the gradient of two processes is {gap:.1%} off that of one")
    figures = {"images_per_second": sizes.cnn_batch / found["seconds"], "gradient_gap": gap}
    return figures | {"cards": min(2, torch.cuda.device_count())}


def cnn_gradient(sizes: Sizes, device: str) -> torch.Tensor:
    """Return the gradient of the whole batch in one process, one long vector."""
    torch.manual_seed(0)
    model = build_model(sizes.cnn, pretrained=False).to(device).eval()
    cnn_loss(model, sizes, *cnn_batch(sizes, device)).backward()
    return torch.cat([p.grad.flatten().cpu() for p in model.parameters()])


def half_of_a_batch(rank: int, sizes: dict, device: str, folder: str) -> None:
    """One of two processes: NCCL if each has a card, gloo if they share one, or a CPU."""
    sizes, n_cards = Sizes(**sizes), torch.cuda.device_count()
    backend = "nccl" if device.startswith("cuda") and n_cards > 1 else "gloo"
    own = f"cuda:{rank % n_cards}" if device.startswith("cuda") else device
    torch.distributed.init_process_group(
        backend, init_method=f"file://{folder}/met", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(
        build_model(sizes.cnn, pretrained=False).to(own).eval()
    )
    pictures, targets = (x[rank::2] for x in cnn_batch(sizes, own))

    def step() -> None:
        model.zero_grad()
        cnn_loss(model, sizes, pictures, targets).backward()

    found = {"seconds": time_steps(step, sizes.steps, own)}
    if rank == 0:
        found["gradient"] = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
        torch.save(found, Path(folder) / "found.pt")
    torch.distributed.destroy_process_group()


def marked_tests(sizes: Sizes, device: str) -> dict:
    """Run the tests that are marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--durations=0", "-o", "addopts=-q"]
    done = subprocess.run(command, cwd=root(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"pytest -m gpu: exit code {done.returncode}: {done.stdout[-200:]}")
    return {"tests": done.stdout.strip().splitlines()[-1]}


def time_steps(step: Callable[[], None], n_steps: int, device: str) -> float:
    """Return the median seconds of a step, without the first three (at least one is timed)."""
    seconds = []
    for _ in range(n_steps):
        wait_for(device)
        start = time.perf_counter()
        step()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[min(3, n_steps - 1) :])


def wait_for(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def release(device: str) -> None:
    """Give memory back, and count its peak anew."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def card_figures(device: str, operations_per_second: float = 0.0) -> dict:
    """Return the peak memory (GiB) and the share of the card's peak; nothing of a CPU."""
    if not device.startswith("cuda"):
        return {}
    found = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    peak = next((v for k, v in PEAK_FLOPS.items() if k in torch.cuda.get_device_name()), None)
    if peak and operations_per_second:
        found["share_of_peak"] = operations_per_second / peak
    return found


CHECKS: dict[str, Callable[[Sizes, str], dict]] = {
    "CNN, training": cnn_training,
    "CNN, prediction": cnn_prediction,
    "LoRA step, cached features": lambda sizes, device: lora_step(sizes, device, True),
    "LoRA step, tower in each step": lambda sizes, device: lora_step(sizes, device, False),
    "LoRA step over 4 bits": lambda sizes, device: lora_step(sizes, device, True, "4bit"),
    "CNN, two processes": two_processes,
    "tests marked gpu": marked_tests,
}


def run_checks(sizes: Sizes, device: str, names: list[str], limit_s: float = LIMIT_S) -> list[dict]:
    """Run checks one after the other; one that fails, or has no time left, says so in its row."""
    began, rows = time.monotonic(), []
    for name in names:
        start = time.monotonic()
        if name == "LoRA step over 4 bits" and find_spec("bitsandbytes") is None:
            row = {"state": "not run: bitsandbytes is not installed"}
        elif start - began > limit_s - max([0.0, *(r["seconds"] for r in rows)]):
            row = {"state": "not run: no time left"}
        else:
            release(device)
            try:
                row = {"state": "ok"} | CHECKS[name](sizes, device)
            except Exception as error:  # the others still tell something
                traceback.print_exc()
                row = {"state": f"FAILED: {type(error).__name__}: {str(error)[:200]}"}
        rows.append({"check": name} | row | {"seconds": time.monotonic() - start})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def write_report(rows: list[dict], sizes: Sizes, card: str, out: Path) -> None:
    """Write the checks as a table with the card, the sizes, the commit and the versions."""
    table = pd.DataFrame(rows).round({"tokens_per_second": 0, "images_per_second": 0, "seconds": 0})
    shown = table.map(
        lambda x: "" if pd.isna(x) else f"{x:.3g}" if isinstance(x, float) and x < 100 else x
    )
    text = (
        f"# GPU checks on {card}\n\nRandom weights and data: `python tests/benchmarks/gpu.py`.\n\n"
        f"{shown.to_markdown(index=False)}\n\n"
        f"Commit {provenance()['commit']}, torch {torch.__version__}. CNN: {sizes.cnn}, batch "
        f"{sizes.cnn_batch} of {sizes.cnn_px} px. LoRA: Gemma3, {sizes.cases} cases of "
        f"{sizes.length} tokens, {sizes.image_tokens} of a picture of {sizes.patches} patches.\n"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run every check on the card that is here."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    at = root() / "outputs" / "reference" / "gpu.md"
    parser.add_argument("--out", type=Path, default=at, help="Markdown to write")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.exit(NO_GPU, "no CUDA device here: the GPU checks need one, nothing was run\n")
    rows = run_checks(REAL, "cuda", list(CHECKS))
    write_report(rows, REAL, torch.cuda.get_device_name(), chosen.out)
    return int(any(row["state"].startswith("FAILED") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
