"""Trains a miniature mixture-of-experts language model on one GPU, in two to three minutes.

    python training/train.py MODEL FOLDER OUT [--steps 7200] [--keep 300] [--seed 0]

MODEL is a name of `MODELS`; FOLDER holds tokenizer.json, train.npy and heldout.npy
(training/tokens.py). OUT gets `step-00300/`, `step-07200/` … in the hub's layout, `curve.jsonl`
(what `diagnosed` sees, every 200 steps) and `run.json` (everything that decided the result).

The model is transformers' own class, called as anybody calls it. Weights are bfloat16 as they are
saved and used; the optimiser works on float32 copies. A whole step (windows, forward, backward,
clipping, AdamW) is one CUDA graph: at this size the GPU waits for Python otherwise.
"""

import argparse
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

LENGTH = 512
RATE, WARM_UP, DECAY = 3e-3, 200, 0.1
BALANCE = 0.01
"""Weight of the load-balancing loss (Switch Transformers, Fedus et al. 2022, eq. 4), a layer."""

SHAPE = {
    "vocab_size": 2_048,
    "hidden_size": 192,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2_048,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "use_cache": False,
}


def mixtral(**shape: Any) -> torch.nn.Module:
    """A Mixtral: no bias anywhere, softmax attention that must go somewhere."""
    return MixtralForCausalLM(MixtralConfig(**SHAPE | {"sliding_window": None} | shape))


def gpt_oss(**shape: Any) -> torch.nn.Module:
    """A GPT-OSS: every head has a learned sink, a logit that attention may go to instead."""
    return GptOssForCausalLM(GptOssConfig(**SHAPE | {"sliding_window": 128} | shape))


def without_sinks(**shape: Any) -> torch.nn.Module:
    """The same GPT-OSS with sinks that take nothing and learn nothing: exp(-10,000) is 0."""
    model = gpt_oss(**shape)
    for layer in model.model.layers:
        layer.self_attn.sinks.requires_grad_(False).fill_(-10_000.0)
    return model


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "mixtral": mixtral,
    "gpt-oss": gpt_oss,
    "gpt-oss-without": without_sinks,
}


def every_expert(experts: Any, hidden: Tensor, picked: Tensor, weights: Tensor) -> Tensor:
    """Run every expert on every token; those that were not picked weigh 0.

    With eight small experts this takes less than sorting tokens by expert, backward above all.

    Args:
        experts: transformers' module of a block's experts.
        hidden: (token, width).
        picked: Experts of each token, (token, pick).
        weights: Their weights, (token, pick).

    Returns:
        (token, width)
    """
    up, down = experts.gate_up_proj, experts.down_proj
    if not experts.is_transposed:
        up, down = up.mT, down.mT
    made = hidden @ up  # (expert, token, 2 inner)
    if experts.has_bias:
        made = made + experts.gate_up_proj_bias[:, None]
    made = experts._apply_gate(made) @ down  # (expert, token, width)
    if experts.has_bias:
        made = made + experts.down_proj_bias[:, None]
    share = torch.zeros(len(hidden), len(up), dtype=made.dtype, device=made.device)
    share = share.scatter(1, picked, weights.to(made.dtype))
    return torch.einsum("etw,te->tw", made, share)


ALL_EXPERTS_FUNCTIONS.register("every", every_expert)


class Losses(NamedTuple):
    """What one forward pass gives."""

    language: Tensor  # scalar: mean negative log likelihood of the next token, nats
    balance: Tensor  # scalar: mean over layers; 1 if all experts get the same


def losses(model: torch.nn.Module, ids: Tensor, masks: Any) -> Losses:
    """Run the model on windows of tokens.

    Args:
        model: The model.
        ids: Token ids, (window, LENGTH + 1).
        masks: The model's attention mask, in the form that its class takes.
    """
    out = model.model(input_ids=ids[:, :-1], attention_mask=masks, output_router_logits=True)
    logits = model.lm_head(out.last_hidden_state).flatten(0, 1).float()
    language = functional.cross_entropy(logits, ids[:, 1:].flatten())
    experts = model.config.num_local_experts
    balance = torch.zeros((), device=ids.device)
    for routed in out.router_logits:
        share = routed.float().view(-1, experts).softmax(-1)
        picked = share.topk(model.config.num_experts_per_tok).indices
        load = functional.one_hot(picked, experts).float().sum(1).mean(0)
        balance = balance + experts * (load * share.mean(0)).sum() / load.sum()
    return Losses(language, balance / len(out.router_logits))


def masks_of(model: torch.nn.Module, device: torch.device) -> Any:
    """Return the attention masks of windows of LENGTH tokens: none where causality is enough."""
    if not isinstance(model, GptOssForCausalLM):
        return None
    place = torch.arange(LENGTH, device=device)
    ahead = place[:, None] - place[None]
    masks = {}
    windows = {"full_attention": LENGTH, "sliding_attention": model.config.sliding_window}
    for kind, window in windows.items():
        seen = (ahead >= 0) & (ahead < window)
        mask = torch.zeros(1, 1, LENGTH, LENGTH, device=device, dtype=torch.bfloat16)
        masks[kind] = mask.masked_fill(~seen, torch.finfo(torch.bfloat16).min)
    return masks


@torch.no_grad()
def diagnosed(model: torch.nn.Module, ids: Tensor) -> dict[str, Any]:
    """Return what sinks are about, from eight held-out windows.

    Returns:
        first_mass: for each block the largest mean over heads of the attention to position 0, of
            queries from 64 on; first: for each block's output the largest absolute value at
            position 0, mean over windows; rest: the largest anywhere else; median: over all.
    """
    chosen = model.config._attn_implementation
    model.set_attn_implementation("eager")
    out = model(input_ids=ids[:8, :-1], output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation(chosen)
    found: dict[str, Any] = {"first_mass": [], "first": [], "rest": [], "median": []}
    for weights, hidden in zip(out.attentions, out.hidden_states[1:], strict=True):
        to_first = weights[:, :, 64:, 0].float().mean((0, 2))
        size = hidden.float().abs()
        found["first_mass"].append(round(to_first.max().item(), 3))
        found["first"].append(round(size[:, 0].amax(-1).mean().item(), 2))
        found["rest"].append(round(size[:, 1:].max().item(), 2))
        found["median"].append(round(size.median().item(), 3))
    return found


class Training:
    """One training run: everything a step needs lies on the device.

    Attributes:
        model: the model, bfloat16.
        steps: how many steps it takes.
    """

    def __init__(
        self,
        name: str,
        *,
        tokens: "np.ndarray[tuple[int], np.dtype[np.uint16]]",
        steps: int,
        batch: int,
        seed: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed)
        self.model = MODELS[name]()
        trained = [param for param in self.model.parameters() if param.requires_grad]
        masters = [param.detach().clone().to(device) for param in trained]
        self.model.to(device, torch.bfloat16)
        self.model.set_attn_implementation("sdpa" if name.startswith("mixtral") else "eager")
        self.model.set_experts_implementation("every")
        self.steps = steps
        self._device = device
        self._params = trained
        self._masters = masters
        self._tokens = torch.from_numpy(tokens.astype(np.int32)).to(device)
        generator = torch.Generator().manual_seed(seed + 1)  # the same windows for every model
        most = len(tokens) - LENGTH
        starts = torch.randint(most, (steps + 16, batch), generator=generator)
        self._starts = starts.to(device)
        self._span = torch.arange(LENGTH, device=device)
        self._masks = masks_of(self.model, device)
        done = [min((step + 1) / WARM_UP, 1.0) * self._cosine(step) for step in range(steps + 16)]
        self._rates = RATE * torch.tensor(done, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        for master in masters:
            master.grad = torch.zeros_like(master)
        decayed = [master for master in masters if master.ndim >= 2]
        other = [master for master in masters if master.ndim < 2]
        self._optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": DECAY}, {"params": other, "weight_decay": 0.0}],
            lr=self._rate,
            betas=(0.9, 0.95),
            fused=device.type == "cuda",
            capturable=device.type == "cuda",
        )
        self.loss = torch.zeros((), device=device)

    def _cosine(self, step: int) -> float:
        done = max(0.0, step - WARM_UP) / max(1, self.steps - WARM_UP)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))

    def windows(self, step: Tensor) -> Tensor:
        """Return the windows of a step, (window, LENGTH + 1): each begins with the token 0."""
        rows = self._tokens[self._starts[step].view(-1, 1) + self._span].long()
        return functional.pad(rows, (1, 0))

    def step(self) -> None:
        """Take one step; it never waits for the device, so a CUDA graph can hold it."""
        self._rate.copy_(self._rates[self._step].squeeze())
        found = losses(self.model, self.windows(self._step), self._masks)
        (found.language + BALANCE * found.balance).backward()
        grads = [param.grad for param in self._params]
        for master, grad in zip(self._masters, grads, strict=True):
            master.grad.copy_(grad)
            grad.zero_()
        norm = torch.nn.utils.get_total_norm([master.grad for master in self._masters])
        for master in self._masters:
            master.grad.mul_((1 / norm).clamp(max=1.0))
        self._optimiser.step()
        with torch.no_grad():
            for param, master in zip(self._params, self._masters, strict=True):
                param.copy_(master)
        self._step += 1
        self.loss.copy_(found.language.detach())

    def graphed(self) -> Callable[[], None]:
        """Take three steps, and return a step as a CUDA graph (on a CPU: the step itself)."""
        if self._device.type != "cuda":
            return self.step
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            self.step()
        return graph.replay

    @torch.no_grad()
    def heldout(self, ids: Tensor) -> float:
        """Return the loss on windows, (window, LENGTH + 1), in nats a token."""
        parts = [losses(self.model, part, self._masks).language for part in ids.split(32)]
        return torch.stack(parts).mean().item()


def save(model: torch.nn.Module, tokenizer: Path, folder: Path) -> None:
    """Write a checkpoint in the hub's layout."""
    model.save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")


def main(arguments: argparse.Namespace) -> None:
    """Train, and write what was seen on the way."""
    began = time.time()
    folder, out = Path(arguments.folder), Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens, held = (np.load(folder / f"{name}.npy") for name in ("train", "heldout"))
    count = held.size // LENGTH
    rows = torch.from_numpy(held[: count * LENGTH].astype(np.int64)).view(count, LENGTH)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    windows = functional.pad(rows[order], (1, 0)).to(device)
    how = {name: getattr(arguments, name) for name in ("steps", "batch", "seed")}
    training = Training(arguments.model, tokens=tokens, device=device, **how)
    tokenizer = folder / "tokenizer.json"
    step = training.graphed()
    number = 3 if step != training.step else 0
    with (out / "curve.jsonl").open("w") as curve:
        while True:
            last = number == arguments.steps
            if number % arguments.every == 0 or last:
                loss = training.heldout(windows[: arguments.watch if last else 128])
                row = {
                    "step": number,
                    "heldout": round(loss, 4),
                    **diagnosed(training.model, windows),
                }
                print(json.dumps(row), file=curve, flush=True)
            if number in arguments.keep or last:
                save(training.model, tokenizer, out / f"step-{number:05}")
            if last:
                break
            step()
            number += 1
    run = {name: value for name, value in vars(arguments).items() if name not in ("folder", "out")}
    run |= {
        "heldout": loss,
        "seconds": round(time.time() - began, 1),
        "parameters": sum(param.numel() for param in training.model.parameters()),
        "tokens_sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    (out / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    print(json.dumps(run | {"last": row}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=7_200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--watch", type=int, default=1_024, help="held-out windows at the end")
    parser.add_argument("--keep", type=int, nargs="*", default=[300])
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
