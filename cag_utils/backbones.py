"""The registry of backbones: published checkpoint, tiny twin, and all that differs between them.

No entry needs remote code: Gemma3 and PaliGemma2 are classes of transformers, and of ConceptCLIP
only the tensors of its image tower are read. Parameter counts follow from the published
configurations (tests/test_preflight.py counts them again); downloads are those counts in the
published type, so about.
"""

from dataclasses import dataclass

from cag_utils.checkpoint_hub import Checkpoint
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
        tower: Replaces the model's own image tower; None leaves it.
    """

    checkpoint: Checkpoint
    lora_rank: int
    image_px: int
    image_tokens: int
    prompt_format: str
    dtype: str = "bfloat16"
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
CONCEPTCLIP = Checkpoint(
    "JerrryNie/ConceptCLIP",
    "main",
    "https://huggingface.co/JerrryNie/ConceptCLIP",
    "conceptclip",
    licence="MIT",
    gated=True,
    parameters=0.54e9,
    download_gb=2.2,  # float32: 0.43e9 in the image tower, 0.11e9 in PubMedBERT
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
