"""The registry of backbones: published checkpoint, tiny twin, and all that differs between them.

No entry needs remote code: Gemma3 and PaliGemma2 are classes of transformers, and of ConceptCLIP
only the tensors of its image tower are read. Parameter counts follow from the published
configurations (tests/test_preflight.py counts them again); downloads are those counts in the
published type, so about.
"""

from dataclasses import dataclass

import pandas as pd

from cag_utils.hub import CONCEPTCLIP, Checkpoint
from cag_utils.params import check_choice

PROMPT_FORMATS = ("chat", "prefix")


@dataclass(frozen=True)
class Tower:
    """An image tower to put in, with the two sizes that its tensors do not show.

    Attributes:
        checkpoint: Its weights, in timm's layout.
        heads: Attention heads, by width: 1152 is the published tower, the other one its twin's.
        side_px: Input side, by width; 0 means patches times patch size.
    """

    checkpoint: Checkpoint
    heads: dict[int, int]
    side_px: dict[int, int]


@dataclass(frozen=True)
class Backbone:
    """One backbone of the study.

    Attributes:
        checkpoint: The vision-language model.
        lora_rank: Rank and alpha in the paper (3.2); a profile may set its own.
        image_px: Side of the square picture the published model reads.
        image_tokens: Tokens one picture costs in the published model.
        prompt_format: chat (the tokenizer's template) or prefix (image tokens, then the text).
        dtype: On a GPU; a CPU computes in float32.
        processor: Where the processor comes from; None is the model's own repository and revision.
        tower: Replaces the model's own image tower; None leaves it.
    """

    checkpoint: Checkpoint
    lora_rank: int
    image_px: int
    image_tokens: int
    prompt_format: str
    dtype: str = "bfloat16"
    processor: Checkpoint | None = None
    tower: Tower | None = None

    def __post_init__(self):
        """Check the one field that is a choice.

        Raises:
            ValueError: Unknown prompt format.
        """
        check_choice("prompt_format", self.prompt_format, PROMPT_FORMATS)


# The paper gives neither checkpoints nor sizes. 4B is the smallest Gemma3 that sees pictures; `pt`
# (pretrained) is the PaliGemma2 whose refusal the paper quotes, at the middle of its resolutions.
GEMMA3 = Checkpoint(
    "google/gemma-3-4b-it",
    "main",
    "https://huggingface.co/google/gemma-3-4b-it",
    "gemma3",
    licence="Gemma Terms of Use",
    gated=True,
    parameters=4.30e9,
    download_gb=8.6,  # bfloat16
)
PALIGEMMA2 = Checkpoint(
    "google/paligemma2-3b-pt-448",
    "main",
    "https://huggingface.co/google/paligemma2-3b-pt-448",
    "paligemma2",
    licence="Gemma Terms of Use",
    gated=True,
    parameters=3.03e9,
    download_gb=12.1,  # float32; half of it where a revision holds bfloat16
)
BACKBONES: dict[str, Backbone] = {
    "paligemma2": Backbone(PALIGEMMA2, 16, image_px=448, image_tokens=1024, prompt_format="prefix"),
    "gemma3": Backbone(GEMMA3, 8, image_px=896, image_tokens=256, prompt_format="chat"),
    "conceptclip_gemma3": Backbone(
        GEMMA3,
        8,
        image_px=384,
        image_tokens=81,
        prompt_format="chat",
        # 384 px in patches of 14 leave 6 px at the edge: a side the tensors cannot tell
        tower=Tower(CONCEPTCLIP, heads={1152: 16, 128: 4}, side_px={1152: 384, 128: 0}),
    ),
}


def get_backbone(name: str) -> Backbone:
    """Return a registry entry.

    Raises:
        ValueError: Unknown name; the message suggests the nearest.
    """
    return BACKBONES[check_choice("backbone", name, BACKBONES)]


def registry_table() -> pd.DataFrame:
    """Show the registry, one row a backbone and checkpoint.

    Returns:
        backbone, part (model or image tower), checkpoint, revision, processor, image_px,
        image_tokens, prompt, dtype, lora_rank, licence, licence_url, gated, parameters (about),
        download_gb (about).
    """
    rows = []
    for name, entry in BACKBONES.items():
        parts = {"model": entry.checkpoint}
        if entry.tower:
            parts["image tower"] = entry.tower.checkpoint
        processor = (entry.processor or entry.checkpoint).repo
        if entry.tower:
            processor += ", refitted to the tower"
        for part, found in parts.items():
            rows.append(
                {
                    "backbone": name,
                    "part": part,
                    "checkpoint": found.repo,
                    "revision": found.revision,
                    "processor": processor,
                    "image_px": entry.image_px,
                    "image_tokens": entry.image_tokens,
                    "prompt": entry.prompt_format,
                    "dtype": entry.dtype,
                    "lora_rank": entry.lora_rank,
                    "licence": found.licence,
                    "licence_url": found.licence_url,
                    "gated": found.gated,
                    "parameters": found.parameters,
                    "download_gb": found.download_gb,
                }
            )
    return pd.DataFrame(rows)
