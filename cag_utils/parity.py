"""Does a saved model say what the trained one said? Reloaded and merged models, by their logits."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

from cag_utils.adapters import load_tuned, save_merged
from cag_utils.examples import encode_prompts, open_picture, read_examples
from cag_utils.jobs import Job

PROBES = 4  # validation cases whose next-token logits are compared


def probe(job: Job, model: torch.nn.Module, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
    """Return the logits of the first answer token for a few validation cases, (cases, tokens)."""
    examples = read_examples(job.pairs, job.language, job.outputs)
    few = examples[examples["split"] == "val"].head(PROBES)
    pictures = [open_picture(path, processor) for path in few["image"]]
    batch = encode_prompts(processor, pictures, list(few["prompt"])).to(model.device)
    with torch.inference_mode():
        logits = model(**batch, logits_to_keep=1).logits[:, -1]
    return {"logits": logits.float().cpu().contiguous()}


def reload_difference(job: Job) -> float:
    """Load base and adapter afresh and compare with the live model's logits.

    Returns:
        The largest absolute difference: 0 on one machine in float32, a rounding step or two in
        bfloat16, though the parameters are the same.
    """
    quantise = job.finetune.quantise
    where = {"quantise": quantise} | job.source
    model, processor = load_tuned(job.backbone, job.size, job.path / "adapter", **where)
    live = load_file(job.path / "probe.safetensors")["logits"]
    return _difference(probe(job, model, processor), {"logits": live})


def merge_adapter(job: Job, folder: str | Path) -> float:
    """Write a finished run as one plain model, and check that it says the same.

    LoRA is added to the base's weights and the projector put in the base's place. The folder needs
    neither PEFT nor this package: `AutoModelForImageTextToText` and `transformers serve` read it.

    Args:
        job: A finished run. A 4-bit run is merged into the full base, not the quantised one.
        folder: For the model and its processor; made if missing.

    Returns:
        The largest absolute difference of a logit between the model read back from the folder and
        base plus adapter: rounding, below 1e-4 in float32.

    Raises:
        FileNotFoundError: The run has no adapter yet.
    """
    tuned, processor = load_tuned(job.backbone, job.size, job.path / "adapter", **job.source)
    before, dtype = probe(job, tuned, processor), tuned.dtype
    device = tuned.device
    save_merged(tuned, processor, folder)
    merged = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()
    return _difference(probe(job, merged, AutoProcessor.from_pretrained(folder)), before)


def _difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return float((one["logits"] - other["logits"]).abs().max())
