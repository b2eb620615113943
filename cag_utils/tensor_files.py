"""Files of tensors: safetensors, and for one checkpoint that has no other a `.bin`."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors; the format holds no code, so none can run.

    Args:
        path: A `.safetensors` file, or a folder that holds `model.safetensors` or its parts
            (`model-00001-of-00002.safetensors`).

    Returns:
        Name to tensor, on the CPU.

    Raises:
        FileNotFoundError: There is no such file; a `.bin` is a pickle, and left alone.
    """
    path = Path(path)
    whole = path / "model.safetensors"
    parts = [whole] if whole.is_file() else sorted(path.glob("model-*.safetensors"))
    if path.is_file() and path.suffix == ".safetensors":
        parts = [path]
    if not parts:
        raise FileNotFoundError(
            f"{path} holds no model.safetensors. A .bin is a pickle, which can run code, so it is "
            "not read here; where you trust it, convert it once:  "
            "state = torch.load('pytorch_model.bin', weights_only=True); "
            "safetensors.torch.save_file(state, 'model.safetensors')"
        )
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Read MedCLIP's tensors, which its authors publish as a `.bin` only.

    Safetensors come first. `weights_only` makes torch rebuild tensors and plain containers and
    refuse everything else, so that no code in the file is run.

    Args:
        path: A file, or a folder with `pytorch_model.bin` or what `read_safetensors` reads.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        FileNotFoundError: Neither format is there.
    """
    path = Path(path)
    packed = path if path.suffix == ".bin" else path / "pytorch_model.bin"
    if packed.is_file() and not any(path.glob("model*.safetensors")):
        return torch.load(packed, map_location="cpu", weights_only=True)
    return read_safetensors(path)
