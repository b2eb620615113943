"""What the trainer is fed: cases as tokens, once made, and their pictures when their turn comes.

How a case becomes tokens is TRL's and the processors' business (`plain_collator`). It is done once
a case; afterwards a batch is a matter of padding (`CaseCollator`).
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import datasets
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BatchFeature, PaliGemmaProcessor, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from cag_utils.corpus.examples import open_picture, picture_side, prompt_style

FORWARD_NAME = "tower_features"  # of the tokens among a batch's tensors
KEY_DIGITS = 16


class FeatureStore:
    """Tower tokens on disk, one file a picture.

    The folder is named by all that tokens depend on (`tower_key`), a file by its picture's content.
    So nothing stale is ever read, and twins that share a tower share its tokens. One picture costs
    0.1 MB for a twin (196 x 128, float32), 9.4 MB for Gemma3 (4,096 x 1,152, bfloat16).
    """

    def __init__(self, root: str | Path, model: PreTrainedModel, processor: ProcessorMixin):
        """Find or make the folder of the model's tower below `root`; an adapter is no matter."""
        self.tower = next(m for n, m in model.named_modules() if n.endswith("vision_tower"))
        self.processor = processor
        self.dtype = model.dtype
        self.folder = Path(root) / tower_key(self.tower, processor, self.dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, Path] = {}

    def fill(self, images: Sequence[str], batch_size: int = 16) -> int:
        """Compute what is missing, `batch_size` pictures a pass, and return how many that were.

        Several processes may fill one store: each file appears whole or not at all.
        """
        for path in images:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:KEY_DIGITS]
            self.files[path] = self.folder / f"{digest}.safetensors"
        lost = [path for path in dict.fromkeys(images) if not self.files[path].is_file()]
        # each process in its own order: of two that fill one store each does about a half
        random.Random(os.getpid()).shuffle(lost)
        n_computed = 0
        for start in range(0, len(lost), batch_size):
            batch = lost[start : start + batch_size]
            part = [path for path in batch if not self.files[path].is_file()]
            n_computed += len(part)
            for path, tokens in zip(part, self._encode(part), strict=True) if part else ():
                half_made = self.files[path].with_suffix(f".{os.getpid()}")
                save_file({FORWARD_NAME: tokens.contiguous()}, half_made)
                half_made.replace(self.files[path])
        return n_computed

    def read(self, images: Sequence[str]) -> torch.Tensor:
        """Return the tokens of some pictures: (pictures, patches, width), the run's number type.

        Raises:
            ValueError: A picture was never given to `fill`.
        """
        if strays := [path for path in images if path not in self.files]:
            raise ValueError(f"no tower features of {strays[0]}: call fill() with it first")
        return torch.stack([load_file(self.files[path])[FORWARD_NAME] for path in images])

    @torch.no_grad()
    def _encode(self, images: Sequence[str]) -> torch.Tensor:
        weight = next(self.tower.parameters())
        pixels = prepare_pixels(images, self.processor).to(weight.device)
        half = self.dtype == torch.bfloat16  # as training does, which autocasts a bfloat16 base
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=half):
            tokens = self.tower(pixel_values=pixels.to(self.dtype)).last_hidden_state
        return tokens.to(self.dtype).cpu()


def prepare_pixels(images: Sequence[str], processor: ProcessorMixin) -> torch.Tensor:
    """Return the pictures as the tower reads them: (pictures, 3, side, side), normalised."""
    pictures = [open_picture(path, processor) for path in images]
    return processor.image_processor(pictures, return_tensors="pt")["pixel_values"]


def tower_key(tower: torch.nn.Module, processor: ProcessorMixin, dtype: torch.dtype) -> str:
    """Return a hash of all that tokens depend on but the picture: weights, settings, type."""
    settings = processor.image_processor.to_dict()
    shape = {k: v for k, v in tower.config.to_dict().items() if not k.startswith(("_", "transf"))}
    digest = hashlib.sha256(json.dumps([settings, shape, str(dtype)], default=str).encode())
    for name, values in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:KEY_DIGITS]


def accept_features(model: PreTrainedModel) -> None:
    """Let a backbone take `tower_features` in place of `pixel_values`.

    The projector is trained, so it is called inside the forward pass: under the trainer's mixed
    precision and wrappers, with gradients, and through PEFT's trained copy of it.
    """

    def feed(module, args, kwargs):
        tokens = kwargs.pop(FORWARD_NAME, None)
        return args, kwargs | (project(module, tokens) if tokens is not None else {})

    core_of(model).register_forward_pre_hook(feed, with_kwargs=True)


def project(core: torch.nn.Module, tokens: torch.Tensor) -> dict:
    """Return tokens of `FeatureStore.read` as what `forward` and `generate` take for a picture."""
    seen = core.multi_modal_projector(tokens)
    image = BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=seen)
    return {"mm_encoder_outputs": {"image": image}}


def core_of(model: PreTrainedModel) -> torch.nn.Module:
    """Return the module that holds tower, projector and language model, adapted or not."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model


PADDING = {"input_ids": None, "attention_mask": 0, "token_type_ids": 0, "labels": -100}


def collate_prefixes(processor: PaliGemmaProcessor, examples: Sequence[Mapping]) -> BatchFeature:
    """Make a batch with labels (-100 on prefix and padding) of prompts and completions.

    TRL's own collator cannot feed PaliGemma prompt-completion data, and with chat messages it
    leaves `token_type_ids` at 0: every answer token would see the ones it is to predict. Here the
    prefix (picture and prompt) is bidirectional, the suffix causal, and only the suffix is scored.
    """
    batch = processor(
        images=[[e["images"][0]] for e in examples],
        text=[f"<image>{e['prompt'][-1]['content']}" for e in examples],
        suffix=[e["completion"][-1]["content"] for e in examples],
        return_tensors="pt",
        padding=True,
        padding_side="right",
    )
    batch["labels"][batch["attention_mask"] == 0] = -100
    return batch


def plain_collator(processor: ProcessorMixin) -> Callable[[Sequence[Mapping]], BatchFeature]:
    """Return what turns conversations with pictures into a batch whose answers alone are scored.

    TRL's own for the chat style, ours for the prefix style.
    """
    if prompt_style(processor) == "prefix":
        return partial(collate_prefixes, processor)
    return DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)


def to_cases(
    examples: pd.DataFrame, processor: ProcessorMixin, batch_size: int = 32
) -> datasets.Dataset:
    """Make tokens of all cases of `examples.read_examples`, once, `batch_size` a pass.

    The tokens do not depend on the picture, only on how many image tokens the processor spends, so
    a blank one stands in for all.

    Returns:
        Columns image (path), input_ids, token_type_ids, labels (-100 but for the answer), length.
    """
    collate, side = plain_collator(processor), picture_side(processor)
    blank = Image.new("RGB", (side, side))
    rows = []
    for start in range(0, len(examples), batch_size):
        part = examples.iloc[start : start + batch_size].itertuples()
        rows += _unpad(collate([conversation(blank, case.prompt, case.answer) for case in part]))
    for row, image in zip(rows, examples["image"], strict=True):
        row["image"] = image
    return datasets.Dataset.from_list(rows)


class CaseCollator:
    """Pads cases of `to_cases` on the right, and adds their pictures.

    The batch is the plain collator's, but for the picture: with a store it is `tower_features`,
    without one `pixel_values`.
    """

    def __init__(self, processor: ProcessorMixin, store: FeatureStore | None = None):
        self.processor, self.store = processor, store

    def __call__(self, cases: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        """Return input_ids, attention_mask, token_type_ids, labels, each (B, T), and pictures."""
        width = max(len(case["input_ids"]) for case in cases)
        batch = {}
        for name, filler in PADDING.items():
            filler = self.processor.tokenizer.pad_token_id if filler is None else filler
            rows = [
                [1] * len(case["input_ids"]) if name == "attention_mask" else list(case[name])
                for case in cases
            ]
            batch[name] = torch.tensor([row + [filler] * (width - len(row)) for row in rows])
        images = [case["image"] for case in cases]
        if self.store is None:
            return batch | {"pixel_values": prepare_pixels(images, self.processor)}
        return batch | {FORWARD_NAME: self.store.read(images)}


def _unpad(batch: Mapping[str, torch.Tensor]) -> list[dict]:
    """Rows of a batch without its padding."""
    rows = []
    for i, kept in enumerate(batch["attention_mask"].bool()):
        names = ("input_ids", "token_type_ids", "labels")
        rows.append({name: batch[name][i][kept].tolist() for name in names})
        rows[-1]["length"] = int(kept.sum())
    return rows


def conversation(picture: Image.Image | str, prompt: str, answer: str) -> dict:
    """Return one case as TRL's prompt and completion, each a list of one message."""
    return {
        "images": [picture],
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": answer}],
    }
