"""Two-tower networks in the layouts their authors published, for real checkpoints and twins alike.

SigLIP2 needs no class of ours: open_clip has it, and a twin is a folder in open_clip's own layout.
"""

import re
from collections.abc import Mapping

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, SwinConfig, SwinModel

# timm adds what it registers to this list
__all__ = ["ConceptClip", "MedClip", "load_published", "published_state"]

TINY_WIDTH = 128  # of the twins' towers, as of their SigLIP tower
SIGLIP2_TINY_PX, CONCEPTCLIP_TINY_PX = 224, 192  # 14 x 14 and 12 x 12 patches
BIO_CLINICAL_BERT, PUBMED_BERT = {"vocab_size": 28996}, {"vocab_size": 30522}  # else BERT-base
SO400M = "vit_so400m_patch14_siglip_384"

# Swin's tensors as MedCLIP published them, and as transformers 5 calls them.
SWIN_NAMES = (
    ("attention.self.query.", "attention.q_proj."),
    ("attention.self.key.", "attention.k_proj."),
    ("attention.self.value.", "attention.v_proj."),
    ("attention.self.relative_position_bias_table",
     "attention.relative_position_bias.relative_position_bias_table"),
    ("attention.output.dense.", "attention.o_proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
)  # fmt: skip
# Buffers that older releases of transformers wrote and that hold nothing learnt.
BUFFERS = re.compile(r"(embeddings\.position_ids|relative_position_index)$")


def _tiny_siglip(side_px: int, **kwargs) -> VisionTransformer:
    kwargs = {k: v for k, v in kwargs.items() if not k.startswith(("pretrained", "cache_dir"))}
    sizes = {"patch_size": 16, "embed_dim": TINY_WIDTH, "depth": 6, "num_heads": 4}
    kwargs = {"global_pool": "map", "class_token": False} | kwargs
    return VisionTransformer(img_size=side_px, **sizes, **kwargs)


@register_model
def vit_twin_patch16_siglip_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Return the tower of SigLIP2's twin; registered, so open_clip finds it by name."""
    return _tiny_siglip(SIGLIP2_TINY_PX, **kwargs)


@register_model
def vit_twin_patch16_siglip_192(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """Return the tower of ConceptCLIP's twin: fewer patches than Gemma3's, as the real one."""
    return _tiny_siglip(CONCEPTCLIP_TINY_PX, **kwargs)


class MedClip(nn.Module):
    """MedCLIP's two towers: Swin, and BERT read at hidden states 1, 2 and last.

    The published package averages over padding too, so that a text's vector depends on its
    neighbours in the batch; here it equals that of the text alone.

    Args:
        vision: Swin's configuration; Swin-tiny, patch 4, window 7, 224 px, if None.
        text: BERT's configuration; Bio_ClinicalBERT if None.
        dim: Of the shared space.

    Source:
        Wang et al., MedCLIP, EMNLP 2022, and its published state dict.
    """

    def __init__(
        self, vision: SwinConfig | None = None, text: BertConfig | None = None, dim: int = 512
    ):
        super().__init__()
        vision, text = vision or SwinConfig(), text or BertConfig(**BIO_CLINICAL_BERT)
        self.vision_model, self.text_model = nn.Module(), nn.Module()
        self.vision_model.model = SwinModel(vision)
        self.vision_model.projection_head = nn.Linear(vision.hidden_size, dim, bias=False)
        self.text_model.model = BertModel(text)
        self.text_model.projection_head = nn.Linear(text.hidden_size, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, S, S) pixels to (B, dim) unit vectors."""
        pooled = self.vision_model.model(pixel_values=pixels).pooler_output
        return functional.normalize(self.vision_model.projection_head(pooled), dim=-1)

    def encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map (B, L) token ids, with their (B, L) mask, to (B, dim) unit vectors."""
        bert = self.text_model.model
        states = bert(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        tokens = (states[1] + states[2] + states[-1]) / 3
        weight = mask.to(tokens.dtype)[..., None]
        pooled = (tokens * weight).sum(1) / weight.sum(1)
        return functional.normalize(self.text_model.projection_head(pooled), dim=-1)


class ConceptClip(nn.Module):
    """ConceptCLIP: a SigLIP tower with map pooling, and BERT with mean pooling and one matrix.

    Args:
        tower: timm's name of the image tower; its width is the dimension of the shared space.
        text: BERT's configuration; PubMedBERT if None.

    Source:
        Nie et al., ConceptCLIP, 2025; https://huggingface.co/JerrryNie/ConceptCLIP.
    """

    def __init__(self, tower: str = SO400M, text: BertConfig | None = None):
        super().__init__()
        text = text or BertConfig(**PUBMED_BERT)
        self.visual = TimmModel(tower, embed_dim=0, pool="map", proj="none")
        dim = self.visual.trunk.num_features
        self.text = HFTextEncoder("", dim, text, pooler_type="mean_pooler", proj_type="linear")
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.logit_bias = nn.Parameter(torch.zeros(()))

    def encode_image(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (B, 3, S, S) pixels to (B, dim) unit vectors and (B, patches, dim) patch vectors."""
        tokens = self.visual.trunk.forward_features(pixels)
        return functional.normalize(self.visual.trunk.forward_head(tokens), dim=-1), tokens

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Map (B, L) token ids to (B, dim) unit vectors."""
        return functional.normalize(self.text(ids), dim=-1)


def load_published(model: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Load a published `state`, whatever release wrote it, half precision too; return the model.

    Raises:
        ValueError: A tensor is missing, left over or of another shape.
    """
    state = {_renamed(k, 0, 1): v.float() for k, v in state.items() if not BUFFERS.search(k)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        name = type(model).__name__
        raise ValueError(f"this is not a {name} checkpoint of these sizes: {error}") from error
    return model


def published_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's tensors under the published names; the inverse of `load_published`."""
    return {_renamed(name, 1, 0): tensor for name, tensor in model.state_dict().items()}


def _renamed(name: str, old: int, new: int) -> str:
    """Rename a tensor of Swin; the first pair that fits counts, so the order matters."""
    if name.startswith("vision_model."):
        for pair in SWIN_NAMES:
            if pair[old] in name:
                return name.replace(pair[old], pair[new])
    return name
