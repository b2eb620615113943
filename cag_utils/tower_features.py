"""The frozen image tower's tokens: computed once a picture, kept on disk, read by training.

The tower is not trained, so its output for a picture never changes. What is trained begins with
the projector; it therefore runs in every step, on tokens from here instead of from the tower.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cag_utils.examples import open_picture

FORWARD_NAME = "tower_features"  # of the tokens among a batch's tensors
KEY_DIGITS = 16


class FeatureStore:
    """Tower tokens on disk, one file a picture.

    A picture's file lies in a folder named by the tower's weights, what the processor does to
    pixels, and the number type; its own name is its content's hash. So nothing stale is ever read,
    and twins that share a tower share its tokens. One picture costs patches x width numbers: 0.1 MB
    for a twin (196 x 128, float32), 9.4 MB for Gemma3 (4,096 x 1,152, bfloat16).
    """

    def __init__(self, root: str | Path, model: PreTrainedModel, processor: ProcessorMixin):
        """Find or make this tower's folder below `root`.

        Args:
            root: Of all towers, e.g. `outputs/<profile>/04_finetune/tower_features`.
            model: A backbone, without or with an adapter.
            processor: Its processor.
        """
        self.tower = next(m for n, m in model.named_modules() if n.endswith("vision_tower"))
        self.processor = processor
        self.dtype = model.dtype
        self.folder = Path(root) / tower_key(self.tower, processor, self.dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, Path] = {}

    def fill(self, images: Sequence[str], batch_size: int = 16) -> int:
        """Compute what is missing.

        Several processes may fill one store: each file appears whole or not at all.

        Args:
            images: Paths of pictures.
            batch_size: Pictures a pass.

        Returns:
            How many were computed; the others were there.
        """
        self.files |= {path: self._file(path) for path in images}
        lost = [path for path in dict.fromkeys(images) if not self.files[path].is_file()]
        for start in range(0, len(lost), batch_size):
            part = lost[start : start + batch_size]
            for path, tokens in zip(part, self._encode(part), strict=True):
                half_made = self.files[path].with_suffix(f".{os.getpid()}")
                save_file({FORWARD_NAME: tokens.contiguous()}, half_made)
                half_made.replace(self.files[path])
        return len(lost)

    def read(self, images: Sequence[str]) -> torch.Tensor:
        """Return the tokens of some pictures: (pictures, patches, width), the run's number type.

        Raises:
            ValueError: A picture was never given to `fill`.
        """
        if strays := [path for path in images if path not in self.files]:
            raise ValueError(f"no tower features of {strays[0]}: call fill() with it first")
        return torch.stack([load_file(self.files[path])[FORWARD_NAME] for path in images])

    def _file(self, image: str) -> Path:
        digest = hashlib.sha256(Path(image).read_bytes()).hexdigest()[:KEY_DIGITS]
        return self.folder / f"{digest}.safetensors"

    @torch.no_grad()
    def _encode(self, images: Sequence[str]) -> torch.Tensor:
        weight = next(self.tower.parameters())
        pixels = prepare_pixels(images, self.processor).to(weight.device)
        half = self.dtype == torch.bfloat16  # as training does, which autocasts a bfloat16 base
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=half):
            tokens = self.tower(pixel_values=pixels.to(self.dtype)).last_hidden_state
        return tokens.to(self.dtype).cpu()


def prepare_pixels(images: Sequence[str], processor: ProcessorMixin) -> torch.Tensor:
    """Return what the tower reads: (pictures, 3, side, side), normalised.

    Args:
        images: Paths of pictures.
        processor: Of the backbone.
    """
    pictures = [open_picture(path, processor) for path in images]
    return processor.image_processor(pictures, return_tensors="pt")["pixel_values"]


def tower_key(tower: torch.nn.Module, processor: ProcessorMixin, dtype: torch.dtype) -> str:
    """Return a hash of all that a picture's tokens depend on, besides the picture.

    Args:
        tower: Its weights and configuration count.
        processor: Its picture settings count.
        dtype: Of the stored numbers.
    """
    settings = processor.image_processor.to_dict()
    shape = {k: v for k, v in tower.config.to_dict().items() if not k.startswith(("_", "transf"))}
    digest = hashlib.sha256(json.dumps([settings, shape, str(dtype)], default=str).encode())
    for name, values in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:KEY_DIGITS]


def accept_features(model: PreTrainedModel) -> torch.utils.hooks.RemovableHandle:
    """Let a backbone take `tower_features` in place of `pixel_values`.

    The projector is trained, so it is called inside the forward pass: under the trainer's mixed
    precision and wrappers, with gradients, and through PEFT's trained copy of it.

    Args:
        model: Gemma3 or PaliGemma, without or with an adapter.

    Returns:
        A handle; its `remove()` undoes it.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model

    def feed(module, args, kwargs):
        tokens = kwargs.pop(FORWARD_NAME, None)
        if tokens is not None:
            seen = module.multi_modal_projector(tokens)
            image = BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=seen)
            kwargs["mm_encoder_outputs"] = {"image": image}
        return args, kwargs

    return whole.model.register_forward_pre_hook(feed, with_kwargs=True)
