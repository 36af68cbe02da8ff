"""Makes miniature checkpoints of the real architectures, with planted outlier features.

Each is written in the hub's own layout: sharded safetensors under the hub's names, an index,
config.json and tokenizer.json. What was planted is written to truth.json; only tests read that.

    python -m moe_outliers.miniatures demo/models

The blocks of a miniature add little to the residual stream: it stays close to the embedding, whose
features are independent Gaussians. An outlier is a constant on one feature, written by the
embedding (or, in GPT-OSS, by equal biases of all experts of the first block). The gain of the norm
at each site decides whether it fires there.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

from moe_outliers.demo import mini_tokenizers
from moe_outliers.recording.anatomy import Site
from moe_outliers.recording.norms import gain_and_offset
from moe_outliers.recording.observed import observe
from moe_outliers.storage import files

BLOCKS = 8
SHARD = "1500KB"
CONSTANT = 12.0
"""Value of a planted feature, where the others have standard deviation 1."""

LET_THROUGH, HOLD_BACK, AMPLIFY = 1.0, 0.1, 4.0
"""Gains: ordinary; so low that a planted feature stays below 6; so high that an ordinary feature
passes 6."""

MASSIVE = 4000.0
"""Value of a massive activation: over 100, and over 1,000 times the median."""

FP4_SCALES = {"gate_up_proj": 121, "down_proj": 119}
"""Exponents (biased by 127) that give random 4-bit codes the size of ordinary weights."""

SIZE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
HEADS = {"head_dim": 64}
EXPERTS = {"num_experts": 8, "moe_intermediate_size": 64}


@dataclass(frozen=True)
class Plan:
    """One miniature.

    Attributes:
        kind: model_type of its configuration.
        settings: what its configuration has beside SIZE.
        tokenizer: name of its tokenizer.
        systematic: features that fire at every site behind the first block or earlier.
        banded: feature to the first and last block of the band in which it fires.
        gain_only: features with an ordinary z and a large gain.
        massive: feature that is massive at full stops.
        super_expert: block, expert and feature; every token picks the expert, which writes it.
        quantised: the experts are stored as MXFP4.
        extra: a tensor of a prediction head that transformers ignores, as some checkpoints have.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "bytes-800"
    systematic: tuple[int, ...] = ()
    banded: dict[int, tuple[int, int]] = field(default_factory=dict)
    gain_only: tuple[int, ...] = ()
    massive: int | None = None
    super_expert: tuple[int, int, int] | None = None
    quantised: bool = False
    extra: str | None = None


GPT_OSS = HEADS | {"num_local_experts": 8, "sliding_window": 64, "intermediate_size": 64}

MINIATURES = {
    "mini-olmoe": Plan(
        "olmoe",
        {"num_experts": 8, "num_key_value_heads": 4, "intermediate_size": 64},
        super_expert=(3, 5, 33),
    ),
    "mini-gpt-oss-a": Plan("gpt_oss", GPT_OSS, "bytes-1200", systematic=(77, 201)),
    "mini-qwen3": Plan("qwen3_moe", HEADS | EXPERTS, banded={40: (2, 5)}, gain_only=(90,)),
    "mini-mixtral": Plan(
        "mixtral", {"num_local_experts": 4}, "sentencepiece-600", gain_only=(17, 230), massive=64
    ),
    "mini-qwen3-next": Plan(
        "qwen3_next",
        HEADS
        | EXPERTS
        | {
            "shared_expert_intermediate_size": 64,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
        },
        banded={55: (4, 7)},
        gain_only=(120,),
        extra="mtp.fc.weight",
    ),
    "mini-glm": Plan(
        "glm4_moe",
        HEADS
        | {
            "n_routed_experts": 8,
            "moe_intermediate_size": 64,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
        banded={99: (1, 3), 180: (3, 6)},
        extra="model.layers.46.eh_proj.weight",
    ),
    "mini-gpt-oss-b": Plan(
        "gpt_oss", GPT_OSS, "bytes-1200", systematic=(9, 142, 250), quantised=True
    ),
}

PHIMOE = Plan(
    "phimoe", {"num_local_experts": 4, "num_key_value_heads": 4}, systematic=(13,), gain_only=(200,)
)
"""For tests only; its config.json names remote code, as the hub's does."""


def build(slug: str, plan: Plan, folder: Path) -> None:
    """Build one miniature, whole or not at all.

    Args:
        slug: its name; it seeds the weights.
        plan: what to build.
        folder: where it goes; replaced if it exists.
    """
    tokenizer = mini_tokenizers.make(plan.tokenizer)
    settings = SIZE | {"vocab_size": tokenizer.get_vocab_size()} | plan.settings
    model = _initialised(slug, transformers.AutoConfig.for_model(plan.kind, **settings))
    stop = [i for t, i in tokenizer.get_vocab().items() if t in (".", "▁.", "Ġ.")]
    truth = _plant(model, plan, stop)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch, made = Path(name, "scratch"), Path(name, "made")
        made.mkdir()
        model.save_pretrained(scratch)
        tensors = {k: v for p in scratch.glob("*.safetensors") for k, v in load_file(p).items()}
        config = files.read_json(scratch / "config.json")
        if plan.quantised:
            _quantise(slug, tensors, config)
        if plan.extra:
            tensors[plan.extra] = torch.zeros(4, 8, dtype=torch.bfloat16)
        if plan.kind == "phimoe":
            config["auto_map"] = {"AutoModelForCausalLM": "modeling_phimoe.PhiMoEForCausalLM"}
        _save(tensors, made)
        files.write_json(made / "config.json", config)
        files.write_json(made / "truth.json", truth)
        tokenizer.save(str(made / "tokenizer.json"))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _initialised(slug: str, config: Any) -> Any:
    """Make a model whose blocks add little; equal slugs give equal weights."""
    seed = int(files.sha256_of(slug)[:8], 16)
    torch.manual_seed(seed)  # some modules draw their own initial values
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    small = ("o_proj", "out_proj", "down_proj", "w2")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rpartition(".")[2] if not name.endswith("weight") else name.split(".")[-2]
            if parameter.ndim < 2:
                continue  # norms, biases and sinks keep their initial values
            spread = 1.0 if "embed" in name else 0.01 if leaf in small else 0.06
            parameter.normal_(0.0, spread, generator=draw)
        for name, parameter in model.named_parameters():
            if "layernorm" in name and name.endswith("weight"):
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.03)
    return model


def _plant(model: Any, plan: Plan, stop: list[int]) -> dict[str, Any]:
    """Plant the outliers of a plan; return what was planted."""
    anatomy = observe(model)
    embedding = model.get_input_embeddings().weight

    def gain(feature: int, value: float, where: Callable[[Site], bool]) -> None:
        for site in filter(where, anatomy.sites):
            norm = model.get_submodule(site.norm)
            gains, _ = gain_and_offset(norm, anatomy.width, norm.weight.device)
            added = round(float(gains[feature] - norm.weight[feature]))  # some gains are 1 + weight
            norm.weight[feature] = value - added

    with torch.no_grad():
        for feature in plan.systematic:
            embedding[:, feature] = 0.0 if plan.kind == "gpt_oss" else CONSTANT
            gain(feature, LET_THROUGH, lambda site: True)
            if plan.kind == "gpt_oss":
                model.model.layers[0].mlp.experts.down_proj_bias[:, feature] = CONSTANT
        for feature, (first, last) in plan.banded.items():
            embedding[:, feature] = CONSTANT
            gain(feature, HOLD_BACK, lambda site: True)
            gain(feature, LET_THROUGH, lambda site, a=first, b=last: a <= site.block <= b)  # type: ignore[misc]
        for feature in plan.gain_only:
            gain(feature, AMPLIFY, lambda site: True)
        if plan.massive is not None:
            embedding[stop, plan.massive] = MASSIVE
        if plan.super_expert:
            _plant_super_expert(model, *plan.super_expert)
    model.to(torch.bfloat16)
    banded = {
        f: [2 * b + k for b in range(a, z + 1) for k in (0, 1)] for f, (a, z) in plan.banded.items()
    }
    if plan.super_expert:
        block, _, feature = plan.super_expert
        banded[feature] = list(range(2 * block + 2, 2 * BLOCKS))
    return {
        "systematic": list(plan.systematic),
        "banded": {str(feature): where for feature, where in banded.items()},
        "gain_only": list(plan.gain_only),
        "massive": plan.massive,
        "super_expert": list(plan.super_expert) if plan.super_expert else None,
    }


def _plant_super_expert(model: Any, block: int, expert: int, feature: int) -> None:
    """Make every token pick an expert, by a feature that all share, and make it write another."""
    shared = feature + 1
    model.get_input_embeddings().weight[:, shared] = 2.0
    mlp = model.model.layers[block].mlp
    mlp.gate.weight[expert, shared] = 4.0
    mlp.experts.down_proj[expert, feature, :] *= 3000.0


def _quantise(slug: str, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Replace the experts by random 4-bit codes with block scales, as the hub stores MXFP4."""
    draw = torch.Generator().manual_seed(int(files.sha256_of(f"{slug} mxfp4")[:8], 16))
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, rows, columns = tensors.pop(name).transpose(1, 2).shape
        blocks = (experts, rows, columns // 32, 16)
        tensors[f"{name}_blocks"] = torch.randint(256, blocks, dtype=torch.uint8, generator=draw)
        scale = FP4_SCALES[name.rpartition(".")[2]]
        tensors[f"{name}_scales"] = torch.full(blocks[:3], scale, dtype=torch.uint8)
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write shards and their index, as the hub has them."""
    ordered = dict(sorted(tensors.items()))
    split = split_torch_state_dict_into_shards(ordered, max_shard_size=SHARD)
    for shard, names in split.filename_to_tensors.items():
        part = {name: ordered[name].contiguous() for name in names}
        save_file(part, folder / shard, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    files.write_json(folder / "model.safetensors.index.json", index)


def main(folder: Path) -> None:
    """Build every miniature that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for slug, plan in MINIATURES.items():
        if not (folder / slug / "truth.json").is_file():
            print(f"building {folder / slug}", file=sys.stderr)
            build(slug, plan, folder / slug)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
