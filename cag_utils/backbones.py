"""The registry of backbones: one entry a backbone, and all that differs between them.

Names and numbers only, so that tables and figures read it without loading a network; `loading`
makes models of it. No entry needs remote code: Gemma3 and PaliGemma2 are classes of transformers,
of ConceptCLIP only the image tower's tensors are read. A test counts the parameters again.
"""

from dataclasses import dataclass

from cag_utils.hub import CONCEPTCLIP, Checkpoint
from cag_utils.params import check_choice

PROMPTS = ("chat", "prefix")
# The paper's seven projections (3.2). A plain list of their names also hits the image tower's.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LANGUAGE_MODEL_ONLY = (
    r".*language_model\..*\.(self_attn\.(q_proj|k_proj|v_proj|o_proj)"
    r"|mlp\.(gate_proj|up_proj|down_proj))"
)


@dataclass(frozen=True)
class Tower:
    """An image tower to put in, with the two sizes that its tensors do not show.

    Both are by the tower's width: 1152 is the published one, the other its twin's.
    """

    checkpoint: Checkpoint  # weights in timm's layout
    heads: dict[int, int]  # of attention
    side_px: dict[int, int]  # of the input; 0: patches times patch size


@dataclass(frozen=True)
class Backbone:
    """One backbone of the study."""

    title: str  # its name in tables and figures
    colours: tuple[str, str]  # of its untuned base and of the tuned model, `#rrggbb`
    checkpoint: Checkpoint  # the vision-language model, with its tiny twin's folder
    prompt: str  # chat (the tokenizer's template) or prefix (image tokens, then the text)
    lora_rank: int  # paper 3.2; a profile may set another
    lora_alpha: int  # likewise: the same as the rank, so that LoRA's scale is 1
    image_px: int  # side of the square picture the published model reads
    image_tokens: int  # what one picture costs in the published model
    lora_targets: str = LANGUAGE_MODEL_ONLY  # regular expression of the modules' full names
    dtype: str = "bfloat16"  # on a GPU; a CPU computes in float32
    tower: Tower | None = None  # replaces the model's own image tower
    stand_in: str = ""  # whose untuned base it is compared with where its own was not run

    def __post_init__(self):
        """Raise ValueError for an unknown prompt style."""
        check_choice("prompt", self.prompt, PROMPTS)

    @property
    def twins(self) -> tuple[str, ...]:
        """The folders of twins it is made of."""
        parts = (self.checkpoint, self.tower.checkpoint) if self.tower else (self.checkpoint,)
        return tuple(part.twin for part in parts)


# The paper gives neither checkpoints nor sizes. 4B is the smallest Gemma3 that sees pictures; `pt`
# (pretrained) is the PaliGemma2 whose refusal the paper quotes, at the middle of its resolutions.
GEMMA3 = Checkpoint(
    "google/gemma-3-4b-it", "main", "https://huggingface.co/google/gemma-3-4b-it", "gemma3",
    licence="Gemma Terms of Use", gated=True, parameters=4.30e9, download_gb=8.6,  # bfloat16
)  # fmt: skip
PALIGEMMA2 = Checkpoint(
    "google/paligemma2-3b-pt-448", "main", "https://huggingface.co/google/paligemma2-3b-pt-448",
    "paligemma2", licence="Gemma Terms of Use", gated=True, parameters=3.03e9,
    download_gb=12.1,  # float32; half of it where a revision holds bfloat16
)  # fmt: skip
# Okabe and Ito's colour-blind palette.
BACKBONES: dict[str, Backbone] = {
    "paligemma2": Backbone(
        title="PaliGemma2", colours=("#F0E442", "#E69F00"),
        checkpoint=PALIGEMMA2, prompt="prefix",
        lora_rank=16, lora_alpha=16, image_px=448, image_tokens=1024,
    ),
    "gemma3": Backbone(
        title="Gemma3", colours=("#56B4E9", "#0072B2"),
        checkpoint=GEMMA3, prompt="chat",
        lora_rank=8, lora_alpha=8, image_px=896, image_tokens=256,
    ),
    "conceptclip_gemma3": Backbone(
        title="ConceptCLIP-Gemma3", colours=("#CC79A7", "#D55E00"),
        checkpoint=GEMMA3, prompt="chat",
        lora_rank=8, lora_alpha=8, image_px=384, image_tokens=81,
        # 384 px in patches of 14 leave 6 px at the edge: a side the tensors cannot tell
        tower=Tower(CONCEPTCLIP, heads={1152: 16, 128: 4}, side_px={1152: 384, 128: 0}),
        stand_in="gemma3",  # the paper ran no untuned ConceptCLIP-Gemma3
    ),
}  # fmt: skip


def get_backbone(name: str) -> Backbone:
    """Return a registry entry; ValueError for an unknown name suggests the nearest."""
    return BACKBONES[check_choice("backbone", name, BACKBONES)]


def bases_of(name: str) -> tuple[str, ...]:
    """Return the backbones whose untuned model a tuned one is compared with, the best first."""
    return (name, entry.stand_in) if (entry := get_backbone(name)).stand_in else (name,)
