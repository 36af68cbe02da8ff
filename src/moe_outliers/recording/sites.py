"""Where each family of models is measured: one row a family, by the `model_type` of config.json.

All families here are pre-norm decoders in transformers: `model.layers[i].input_layernorm` feeds the
token mixer (attention, or linear attention) and `post_attention_layernorm` feeds the MLP or the
mixture of experts. What differs is a row of FAMILIES.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """What the measurement must know about a family.

    Attributes:
        router: name of the router inside the MLP of a block.
        scores: what the router's top-k sorts: `softmax` of the logits, the `logits` themselves, or
            the `sigmoid` of the logits plus the router's correction bias.
        unit_offset: the norm multiplies by 1 + weight instead of weight.
        layer_norm: the norms are LayerNorm (they subtract the mean and add a bias), not RMSNorm.
        period: blocks after which the kinds of mixer repeat.
    """

    router: str = "gate"
    scores: str = "softmax"
    unit_offset: bool = False
    layer_norm: bool = False
    period: int = 1


FAMILIES = {
    "olmoe": Family(),
    "gpt_oss": Family(router="router", scores="logits"),
    "qwen3_moe": Family(),
    "mixtral": Family(),
    "qwen3_next": Family(unit_offset=True, period=4),
    "glm4_moe": Family(scores="sigmoid"),
    "phimoe": Family(router="router", scores="logits", layer_norm=True),
}


@dataclass(frozen=True)
class Site:
    """One norm whose output is measured.

    Attributes:
        block: number of the decoder block, from 0.
        kind: `attn_in` (what enters the token mixer) or `mlp_in` (what enters the MLP).
        mixer: what the output enters: attention, linear_attention, mlp or moe.
        norm: the norm itself.
    """

    block: int
    kind: str
    mixer: str
    norm: Any


def family_of(model_type: str) -> Family:
    """Return the row of a family.

    Raises:
        ValueError: if the family is unknown; the message names the file to edit.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"unknown family {model_type!r}: its sites are not in FAMILIES of "
            f"{__name__.replace('.', '/')}.py (there: {', '.join(FAMILIES)}); "
            "add a row, never remote code"
        )
    return FAMILIES[model_type]


def sites_of(model: Any) -> Iterator[Site]:
    """Find the sites of a model, two a block, in order of the forward pass.

    Args:
        model: a causal language model of transformers, of a family in FAMILIES.
    """
    for block, layer in enumerate(model.model.layers):
        mixer = "linear_attention" if hasattr(layer, "linear_attn") else "attention"
        yield Site(block, "attn_in", mixer, layer.input_layernorm)
        mlp = "moe" if hasattr(layer.mlp, "experts") else "mlp"
        yield Site(block, "mlp_in", mlp, layer.post_attention_layernorm)
