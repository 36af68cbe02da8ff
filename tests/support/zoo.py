"""A tiny model of every type of causal language model that transformers ships.

Types come from transformers' own tables. Each is here with what its tiny configuration needs beside
the sizes that all share, or in LEFT_OUT with the reason; a test names those that are in neither.
"""

from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto import modeling_auto

TOKENS = 24
WINDOW = 8
WIDTH = 64

SIZES = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width"), WIDTH
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "ffn_hidden_dim"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("top_k", "top_k_experts", "num_key_value_heads", "n_mamba_heads"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "num_shared_experts"), 1),
    **dict.fromkeys(("n_shared_experts", "mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "rank"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_dim", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "global_head_dim", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "index_head_dim", "mamba_d_head"), 16),
    **dict.fromkeys(("mamba_head_dim", "mamba_headdim", "linear_key_head_dim"), 16),
    **dict.fromkeys(("linear_value_head_dim", "chunk_size", "expand_v"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "mamba_d_state", "mamba_n_heads", "state_size"), 8),
    **dict.fromkeys(("mamba_num_heads", "ssm_state_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 512),
    **dict.fromkeys(
        ("sliding_window", "attention_window_size", "window_size", "sliding_window_size"), WINDOW
    ),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_kv_heads", "index_n_heads"), 4),
    **dict.fromkeys(("expand", "linear_num_key_heads", "mamba_expand"), 2),
    "attention_chunk_size": WINDOW,
    "index_topk": WINDOW,
    "vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Sizes of the text part, by the names that configurations have for them."""

TOWER = {
    **dict.fromkeys(("hidden_size", "embed_dim", "intermediate_size", "d_model", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "encoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim"), 32),
    "decoder_layers": 1,
    "image_size": 28,
    "patch_size": 14,
    "head_dim": 16,
    "out_hidden_size": WIDTH,
    "vocab_size": 64,
}
"""Sizes of everything else: towers for images and sounds, that text does not pass."""

MLA = {"num_key_value_heads": 4, "head_dim": 8, "qk_head_dim": 24, "first_k_dense_replace": 1}
DECODER = {"is_decoder": True}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}}
QWEN4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 16,
    "ple_layer_ids": [1],
    "ple_embed_dim": 64,
    "ngram_vocab_size_base": 200,
    "split_ngram_parts": 1,
    "heads_per_ngram": 2,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
TYPES: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "aria": {},
    "aria_text": {},
    "axk1": MLA,
    "axk2": MLA,
    "aya_vision": {},
    "bailing_hybrid": {
        "num_key_value_heads": 4,
        "qk_head_dim": 24,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "bamba": {"attn_layer_indices": [1, 3]},
    "beam": {},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 8},
    "cohere": {},
    "cohere2": {},
    "cohere2_moe": {},
    "cohere2_vision": {},
    "cosmos3_omni": {},
    "ctrl": {"dff": 64},
    "cwm": {},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 64,
            "moe_num_experts": 8,
            "moe_top_k": 2,
            "hidden_size": WIDTH,
        },
    },
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "deepseek_v32": MLA,
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "index_topk": 2,
    },
    "deepseek_vl": {},
    "diffllama": {},
    "doge": {},
    "dots1": {},
    "dots3_note_text": {
        "num_key_value_heads": 4,
        "head_dim": 24,
        "qk_rope_head_dim": 8,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "per_layer_config": {
            layer: {
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 24,
                "qk_nope_head_dim": 16,
                "qk_rope_head_dim": 8,
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
            }
            for layer in (1, 3)
        },
    },
    "emu3": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "exaone_moe": {},
    "falcon": {"num_kv_heads": 1},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "falcon_mamba": {},
    "flex_olmo": {},
    "flint": {},
    "fuyu": {},
    "gemma": {},
    "gemma2": {},
    "gemma3": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4": {"enable_moe_block": True},
    "gemma4_text": {"enable_moe_block": True},
    "gemma4_unified": {},
    "gemma4_unified_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {"first_k_dense_replace": 1},
    "glm4_moe_lite": MLA,
    "glm_moe_dsa": MLA,
    "got_ocr2": {},
    "gpt-sw3": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 8},
    "granite": {},
    "granite_docling": {},
    "granite_swa": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "granitemoeshared": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "hyperclovax": {},
    "hyperclovax_vision_v2": {},
    "idefics2": {},
    "idefics3": {},
    "inkling2_text": {
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "n_layers_per_attn_res_block": 2,
    },
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid"] * 2},
    "internlm3": {},
    "internvl": {},
    "iquestcoder": {},
    "jais2": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "jetmoe": {"kv_channels": 16},
    "kimi_linear": {
        "num_key_value_heads": 4,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "kimi_k25": {},
    "kolibri1": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "laguna": {},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "num_dense_layers": 1,
    },
    "lfm2_vl": {},
    "lfm3": {"layer_types": ["conv", "sliding_attention", "full_attention", "conv"]},
    "lfm3_vl": {},
    "lighton_ocr": {},
    "llama": {},
    "llama4": {"interleave_moe_layer_step": 2},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "llava": {},
    "llava_next": {},
    "llava_next_video": {},
    "llava_onevision": {},
    "longcat_flash": {
        "num_key_value_heads": 4,
        "head_dim": 8,
        "num_layers": 2,
        "zero_expert_num": 2,
    },
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "megatron-bert": DECODER,
    "mellum": {},
    "mimo_v2_flash": {},
    "minicpm3": {"num_key_value_heads": 4, "head_dim": 8},
    "minicpm_ocr": {},
    "minicpmv4_6": {},
    "minicpmv4_7": {},
    "minimax": {},
    "minimax_m2": {},
    "minimax_m3_vl": {},
    "minimax_m3_vl_text": {},
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mistral3": {},
    "mixtral": {},
    "mllama": {},
    "modernbert-decoder": {},
    "moshi": {},
    "moss_transcribe_diarize": {},
    "mpt": {},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "attention", "mlp"]},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {},
    "paligemma": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qianfan_ocr": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5": {},
    "qwen3_5_moe": {},
    "qwen3_5_moe_text": {},
    "qwen3_5_text": {},
    "qwen3_moe": {},
    "qwen3_next": {},
    "qwen3_vl": {},
    "qwen3_vl_moe": {},
    "qwen4_exp": QWEN4,
    "qwen4_exp_text": QWEN4,
    "recurrent_gemma": {},
    "roberta-prelayernorm": DECODER,
    "rwkv": {},
    "seed_oss": {},
    "shieldgemma2": {},
    "smollm3": {},
    "smolvlm": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "step3p7": {},
    "vaultgemma": {},
    "video_llama_3": {},
    "video_llava": {},
    "vipllava": {},
    "xglm": {},
    "xlm-roberta-xl": DECODER,
    "xlstm": {},
    "youtu": {"num_key_value_heads": 4, "head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "glm46v": MROPE,
    "glm4v": MROPE,
    "glm_ocr": MROPE,
    "glmga": MROPE,
    "paddleocr_vl": MROPE,
    "qwen2_5_vl": MROPE,
    "qwen2_vl": MROPE,
    "qwen2_5_omni_thinker": MROPE,
    "glm4v_moe": {
        "rope_parameters": ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    },
    "mistral4": {
        "num_key_value_heads": 4,
        "head_dim": 8,
        "qk_head_dim": 24,
        "rope_parameters": ROPE
        | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 512},
    },
    "mistral_large4": {"num_key_value_heads": 4, "head_dim": 8, "qk_head_dim": 24},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "cohere_compass": {"rope_parameters": {"full_attention": ROPE}},
    "cosmos3_edge": {},
    "qwen3_omni_moe_thinker": {},
    "qwen2_audio": {},
    "qwen3_asr": {},
    "voxtral": {},
    "glmasr": {},
    "pp_chart2table": {},
    "hunyuan_vl": {"rope_parameters": ROPE | {"xdrope_section": [2, 2, 2, 2]}},
    "glm5_next": {
        "num_key_value_heads": 4,
        "index_kpool": 4,
        "qk_rope_head_dim": 0,
        "head_dim": 0,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    },
}
"""What the tiny configuration of each type has beside SIZES."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom, residual behind the norm": (
        "bloom",
        {"apply_residual_connection_post_layernorm": True},
    ),
    "doge, mixture of experts": (
        "doge",
        {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 6},
    ),
    "falcon, one block after the other": ("falcon", {"parallel_attn": False}),
    "falcon, two norms": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "opt, norm behind": ("opt", {"do_layer_norm_before": False}),
    "opt, narrow embedding": ("opt", {"word_embed_proj_dim": 32}),
    "persimmon, no norm of queries": ("persimmon", {"qk_layernorm": False}),
    "qwen3, no window": ("qwen3", {"use_sliding_window": True, "max_window_layers": 2}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "granitemoehybrid, no experts": ("granitemoehybrid", {"num_local_experts": 0}),
    "glm4_moe, groups of experts": ("glm4_moe", {"n_group": 4, "topk_group": 2}),
}
"""Configurations of a type that other code runs for: name, type, and what it has."""

FAST = (
    "qwen3_moe",  # a norm before each mixer, a mixture of experts
    "qwen2_moe",  # an expert that every token passes
    "deepseek_v3",  # scores of sigmoids and a bias, dense first, latent attention
    "qwen3_next",  # linear attention, gains of 1 + weight
    "cohere",  # attention and MLP read one norm
    "olmo2",  # the stream itself is read, norms are behind the mixers
    "gemma2",  # norms before and behind
    "phimoe",  # LayerNorm with a bias
    "gpt_oss",  # windows, sinks
    "gpt2",  # linear maps stored the other way round
    "nemotron_h",  # one mixer a block
    "mamba",  # and no MLP at all
    "gemma4",  # within a wrapper for images; two MLPs side by side, a gate for each block
    "openai-gpt",  # the stream goes through the norms
    "opt",  # linear maps of an MLP in the code of the block
)
"""One type of each kind, for every run of the tests."""

LARGE = frozenset(
    """bart bigbird_pegasus blenderbot blenderbot-small cpmant deepseek_vl_hybrid dots3_note
    ernie4_5_vl_moe exaone4_5 fun_asr_nano granite_speech granite_speech_plus inkling2
    inkling_mm_model janus kosmos-2.5 marian mbart molmo2 muse_glimmer muse_spark mvp nemo_speechlm
    nemotron_h_omni ovis2 pegasus phi4_multimodal plbart prophetnet trocr unlimited_ocr
    vibevoice_asr whisper""".split()  # noqa: SIM905 - easier to read
)
"""Types that have no tiny configuration here: observed at full size, without weights."""

_POST_NORM = "what it makes was not seen to be added to the stream"
_NOT_ALONE = "does not run it on token ids alone"
REFUSED = {
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text"), _POST_NORM
    ),
    **dict.fromkeys(("electra", "ernie", "git", "rembert", "roberta", "roc_bert"), _POST_NORM),
    **dict.fromkeys(("roformer", "xlm-roberta"), _POST_NORM),
    **dict.fromkeys(("zamba", "zamba2"), "its sites have several widths"),
    "florence2": "returns nothing of the residual stream",
    "hrm_text": "runs more than once in a forward pass",
    "xlm": "adds to the residual stream outside of the blocks",
    **dict.fromkeys(("blip", "blip-2", "idefics", "instructblip", "kosmos-2", "pi0"), _NOT_ALONE),
    **dict.fromkeys(("instructblipvideo", "pix2struct", "pp_formulanet", "udop"), _NOT_ALONE),
    **dict.fromkeys(("vision-encoder-decoder", "voxtral_realtime", "t5gemma2"), _NOT_ALONE),
    **dict.fromkeys(("blt", "kyutai_speech_to_text", "qwen2_5_omni", "xlnet", "xmod"), _NOT_ALONE),
}
"""Types that are refused, and what the refusal says."""

_NO_NORM = "but no norm module wrote it"
_UNTOLD = "no module is told which experts were picked"
UNMEASURED = {
    "axk2": "its gain depends on the token",
    "deepseek_v4": "what is picked does not depend on scores",
    "gemma3n_text": "intermediate_size is [64, 64, 64, 64]",
    "inkling2_text": "its logits are made of what model.layers.0 returns",
    **dict.fromkeys(("jetmoe", "llama4", "llama4_text"), _UNTOLD),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _NO_NORM),
    "shieldgemma2": "the checkpoint does not fit its config.json",
}
"""Types of which a part would be measured wrong, or not at all: what both engines say."""

STREAMED_ALONE = {"youtu": "sets model.embed_tokens.weight of the padding token (0) to 0"}
"""Types that transformers loads wrong: what the resident engine says."""

LEFT_OUT = {
    "chameleon": "its default configuration lacks a map of image tokens",
    "deepseek_ocr2": "its default configuration makes no model",
    "diffusion_gemma": "no causal language model: it denoises blocks of tokens",
    "evolla": "in the table of image models, but not of a class that makes one of it",
    "fast_vlm": "its tower needs another library (timm)",
    "gemma3n": "its tower needs another library (timm); gemma3n_text is here",
    "gemma4_assistant": "drafts for another model, whose keys and values it reads",
    "gemma4_unified_assistant": "drafts for another model, whose keys and values it reads",
    "granite4_vision": "its default configuration makes no model",
    "musicgen": "its configuration has no decoder of its own for a causal language model",
    "musicgen_melody": "its configuration has no decoder of its own for a causal language model",
    "perception_lm": "its tower needs another library (timm)",
    "qwen3_omni_moe": "its default configuration makes no model; its thinker is here",
    "reformer": "its default configuration is no decoder",
}
"""Types of which no model can be made, with the reason."""


def here(names: Iterable[str]) -> list[str]:
    """Return those of TYPES and VARIANTS, or other types, that the installed transformers has."""
    known = set(types())
    return [name for name in names if VARIANTS.get(name, (name,))[0] in known]


def types() -> list[str]:
    """Return every type that transformers may make a causal language model of, from its tables."""
    tables = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    names = {name for table in tables for name in _table(table)}
    return sorted(names)


def _table(name: str) -> dict[str, str]:
    return getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {})


def config_of(name: str) -> PretrainedConfig:
    """Return a tiny configuration: transformers' default one, with everything made small.

    Args:
        name: one of TYPES or VARIANTS.
    """
    model_type, more = VARIANTS.get(name, (name, {}))
    full = AutoConfig.for_model(model_type)
    text = full.get_text_config(decoder=True)
    keys = (TYPES[model_type] or TYPES.get(text.model_type, {})) | more
    small = _small(text, SIZES) | _rotations(text)
    if text is full:
        return AutoConfig.for_model(model_type, **small | keys)
    small |= {key: value for key, value in keys.items() if key not in full.sub_configs}
    parts = {}
    for part_name in full.sub_configs:
        part = getattr(full, part_name, None)
        if isinstance(part, PretrainedConfig):
            parts[part_name] = small if part is text else keys.get(part_name, _small(part, TOWER))
    return AutoConfig.for_model(model_type, **parts)


def _small(config: PretrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    known = config.to_dict()
    return {name: size for name, size in sizes.items() if name in known}


def _rotations(config: PretrainedConfig) -> dict[str, Any]:
    """Make the sections of rotations over three axes as small as a head."""
    rope = getattr(config, "rope_parameters", None) or {}
    if not rope.get("mrope_section"):
        return {}
    half = int(SIZES["head_dim"] * rope.get("partial_rotary_factor", 1.0)) // 2
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    return {"rope_parameters": rope | {"mrope_section": sections}}


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Make a tiny model with random weights; none is 0 or 1 because it begins so.

    Args:
        name: one of TYPES or VARIANTS.
        dtype: of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(auto_class(name).from_config(config_of(name), dtype=dtype).eval())


def outline(name: str) -> Any:
    """Make a model without weights: of the tiny configuration, or of the default one.

    Args:
        name: a type of transformers, or one of VARIANTS.
    """
    tiny = name in TYPES or name in VARIANTS
    config = config_of(name) if tiny else AutoConfig.for_model(name)
    with torch.device("meta"):
        return auto_class(name).from_config(config).eval()


def auto_class(name: str) -> Any:
    """Return the class of transformers that makes a model of a type."""
    model_type, _ = VARIANTS.get(name, (name, {}))
    if model_type in _table("CAUSAL_LM"):
        return transformers.AutoModelForCausalLM
    if model_type in _table("IMAGE_TEXT_TO_TEXT"):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForMultimodalLM


def shaken(model: nn.Module) -> Any:
    """Add noise to every parameter and to what the checkpoint keeps beside them.

    Whole numbers that are all 0, such as experts by token, become any of eight.
    """
    random = torch.Generator().manual_seed(0)
    kept = model.state_dict()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in kept and tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=random)
                tensor.add_((noise * (0.1 if tensor.dim() < 2 else 0.02)).to(tensor.dtype))
            elif name in kept and tensor.dim() and not tensor.any():
                tensor.copy_(torch.randint(0, 8, tensor.shape, generator=random))
    return model


def ids(rows: int = 1) -> torch.Tensor:
    """Return token ids, (row, TOKENS), none of them special."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(3, 128, (rows, TOKENS), generator=random)


def run(model: Any) -> torch.Tensor:
    """Return the logits of one text, (TOKENS, vocabulary)."""
    with torch.no_grad():
        return model(input_ids=ids(), use_cache=False).logits[0]
