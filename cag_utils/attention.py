"""Fused attention where transformers falls back to the slow kind without need.

Gemma2 can cap its attention scores (`attn_logit_softcapping`), which PyTorch's fused attention
cannot do; so transformers computes it step by step, for checkpoints that cap nothing too.
"""

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FUSED = "fused_uncapped"  # not "sdpa...": transformers refuses that name for Gemma2
AttentionInterface.register(FUSED, sdpa_attention_forward)
AttentionMaskInterface.register(FUSED, sdpa_mask)


def fuse_attention(model: PreTrainedModel) -> bool:
    """Let a PaliGemma whose language model caps no attention scores use PyTorch's fused attention.

    The results are the same up to rounding. Any other model is left as it is: fused already, or
    in need of its caps, or told to use another kind.

    Args:
        model: A backbone; its language model is switched.

    Returns:
        Whether it was switched.
    """
    text = model.config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None)
    if text.model_type != "gemma2" or capped or text._attn_implementation != "eager":
        return False
    model.model.language_model.set_attn_implementation(FUSED)
    return True
