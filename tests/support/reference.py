"""The statistics of one sequence, computed the slow way: every activation kept, then plain NumPy.

Nothing here is shared with the program's own reduction. The definitions are those of
docs/statistics-file.md.
"""

from collections import defaultdict

import numpy as np
import torch

ALPHAS = (3, 4, 5, 6, 8, 10, 12, 15, 20)


class Activations:
    """Every activation of a plain forward pass of a stock model, one batch of sequences.

    Attributes:
        norms: (block, kind) to (input, output), each (row, position, feature).
        outputs: block to the decoder layer's output.
        routers: block to (logits, weights, picked).
        experts: block to (module, hidden, picked, weights).
        mlps: block to the MLP's output.
        logits: (row, position, vocabulary).
    """

    def __init__(self, model, ids):
        self.norms, self.outputs, self.routers, self.experts, self.mlps = {}, {}, {}, {}, {}
        handles = []
        for block, layer in enumerate(model.model.layers):
            pairs = [("attn_in", layer.input_layernorm), ("mlp_in", layer.post_attention_layernorm)]
            for kind, norm in pairs:
                handles.append(norm.register_forward_hook(self._norm(block, kind)))
            handles.append(layer.register_forward_hook(self._store(self.outputs, block)))
            handles.append(layer.mlp.register_forward_hook(self._store(self.mlps, block)))
            if hasattr(layer.mlp, "experts"):
                router = layer.mlp.gate if hasattr(layer.mlp, "gate") else layer.mlp.router
                handles.append(router.register_forward_hook(self._router(block)))
                hook = self._expert(block)
                handles.append(layer.mlp.experts.register_forward_hook(hook, with_kwargs=True))
        with torch.inference_mode():
            self.logits = model(input_ids=ids, use_cache=False).logits
        for handle in handles:
            handle.remove()

    def _norm(self, block, kind):
        def hook(module, args, output):
            self.norms[block, kind] = (args[0].clone(), output.clone(), module)

        return hook

    def _store(self, where, block):
        def hook(module, args, output):
            where[block] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    def _router(self, block):
        def hook(module, args, output):
            self.routers[block] = (*(part.clone() for part in output), module)

        return hook

    def _expert(self, block):
        def hook(module, args, kwargs, output):
            assert not kwargs
            self.experts[block] = (module, *(part.clone() for part in args), output.clone())

        return hook


def statistics(model, activations, row, ids, delimiter):
    """Compute the variables of one sequence, with the axes of the file but `sequence`."""
    found = defaultdict(list)
    width = model.config.hidden_size
    unions = {
        "attn_in": np.zeros((len(ids), width), bool),
        "mlp_in": np.zeros((len(ids), width), bool),
    }
    for (_, kind), (h, x, norm) in activations.norms.items():
        unions[kind] |= np.abs(x[row].to(torch.bfloat16).float().numpy()) >= 6
        for name, value in _site(x[row], h[row], norm, model, delimiter).items():
            found[name].append(value)
    for block in range(len(model.model.layers)):
        for name, value in _residual(activations.outputs[block][row].float().numpy()).items():
            found[name].append(value)
        if block in activations.routers:
            moe = _moe(activations, block, row, len(ids), model.config.model_type)
            for name, value in moe.items():
                found[name].append(value)
    result = {name: np.stack(values) for name, values in found.items()}
    both = unions["attn_in"] | unions["mlp_in"]
    result["union_count"] = np.stack([u.sum(0) for u in (*unions.values(), both)])
    log_p = activations.logits[row].float().log_softmax(-1).numpy()
    result["token_nll"] = -log_p[np.arange(len(ids) - 1), ids[1:]]
    result["positions"], result["delimiters"] = len(ids), int(delimiter.sum())
    return result


def normalised(h, norm, model):
    """z, by its formula, in float32."""
    h = h.float()
    if model.config.model_type == "phimoe":
        h = h - h.mean(-1, keepdim=True)
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + norm.eps)
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)


def _site(x, h, norm, model, delimiter):
    z = normalised(h, norm, model).abs().numpy()
    x = x.float().numpy()
    later = np.arange(len(x)) >= 1
    types = [x[later & delimiter], x[later & ~delimiter]]
    wide = x.astype(np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    kurtosis = (centred**4).mean(1) / (centred**2).mean(1) ** 2
    gain = norm.weight.detach().float().numpy() + (model.config.model_type == "qwen3_next")
    offset = (
        norm.bias.detach().float().numpy() if getattr(norm, "bias", None) is not None else 0 * gain
    )
    return {
        "gain": gain,
        "offset": offset,
        "x_count": np.stack([(np.abs(x) >= a).sum(0) for a in ALPHAS]),
        "z_count": np.stack([(z >= a).sum(0) for a in ALPHAS]),
        "x_min": np.stack([t.min(0) if len(t) else np.zeros(x.shape[1]) for t in types]),
        "x_max": np.stack([t.max(0) if len(t) else np.zeros(x.shape[1]) for t in types]),
        "x_first": x[0],
        "z_max": z.max(0),
        "x_positive": (x >= 6).sum(0),
        "x_delimiter": (np.abs(x[later & delimiter]) >= 6).sum(0),
        "power_sum": np.array([(wide**p).sum() for p in (1, 2, 3, 4)]),
        "token_kurtosis": kurtosis.mean(),
        "int8_error": _int8(x),
        "position_max": np.abs(x).max(1),
        "position_feature": np.abs(x).argmax(1),
    }


def _int8(x):
    """The four schemes, each written out by itself."""

    def error(rounded):
        return ((x - rounded).astype(np.float64) ** 2).sum() / (x.astype(np.float64) ** 2).sum()

    def absmax(values, scale):
        scale = np.float32(scale)
        safe = np.where(scale == 0, np.float32(1), scale)
        return np.rint(values / safe) * safe

    whole = absmax(x, np.abs(x).max() / np.float32(127))
    token = absmax(x, np.abs(x).max(1, keepdims=True) / np.float32(127))
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    zeropoint = (
        np.rint((x - low) * np.float32(255) / (high - low)) * (high - low) / np.float32(255) + low
    )
    outlier = (np.abs(x) >= 6).any(0)
    rest = np.where(outlier, np.float32(0), x)
    mixed = np.where(outlier, x, absmax(rest, np.abs(rest).max(1, keepdims=True) / np.float32(127)))
    return np.array([error(r) for r in (whole, token, zeropoint, mixed)])


def _residual(h):
    magnitude = np.abs(h)
    width = h.shape[1]
    lower = np.sort(magnitude, axis=1)[:, (width - 1) // 2]
    massive = ((magnitude > 100) & (magnitude > 1000 * lower[:, None])).any(1)
    peak = magnitude.max(0)
    top = np.array(sorted(range(width), key=lambda f: (-peak[f], f))[:8])
    position = magnitude.argmax(0)[top]
    return {
        "residual_max": magnitude.max(),
        "residual_median": np.sort(lower)[(len(lower) - 1) // 2],
        "residual_massive": massive.sum(),
        "residual_top": h[position, top],
        "residual_top_feature": top,
        "residual_top_position": position,
    }


def _moe(activations, block, row, positions, kind):
    place = slice(row * positions, (row + 1) * positions)
    logits, weights, picked, router = activations.routers[block]
    logits, weights, picked = logits[place].float(), weights[place].float(), picked[place]
    count, k = logits.shape[1], picked.shape[1]
    route = np.zeros((positions, k), int)
    for t in range(positions):
        order = sorted(range(k), key=lambda j, t=t: (-float(weights[t, j]), int(picked[t, j])))
        route[t] = [int(picked[t, j]) for j in order]
    if kind == "glm4_moe":
        score = logits.sigmoid()
        p = score / score.sum(1, keepdim=True)
        score = score + router.e_score_correction_bias
    else:
        p = logits.softmax(1)
        score = p if kind not in ("gpt_oss", "phimoe") else logits
    p, score = p.double().numpy(), np.sort(score.numpy(), axis=1)[:, ::-1]
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1).mean()
    margin = (score[:, k - 1] - score[:, min(k, count - 1)]).mean()
    return {
        "route": route,
        "router_entropy": entropy,
        "router_margin": margin,
        **_experts(activations, block, row, place, count),
    }


def _experts(activations, block, row, place, count):
    """Each picked expert by itself: the stock module with one expert a position and weight 1."""
    module, hidden, picked, weights, output = activations.experts[block]
    hidden, picked, weights = hidden[place], picked[place], weights[place]
    total = activations.mlps[block][row].float().numpy()
    best = dict.fromkeys(range(count), (-1.0, -1, -1, 0.0))  # |value|, position, feature, value
    raw_max = np.zeros(count)
    summed = 0
    for slot in range(picked.shape[1]):
        with torch.inference_mode():
            ones = torch.ones((len(hidden), 1), dtype=hidden.dtype)
            raw = module(hidden, picked[:, slot : slot + 1], ones)
        weighted = raw * weights[:, slot : slot + 1]
        summed = summed + weighted.double()
        for t, (values, unweighted) in enumerate(
            zip(weighted.float().numpy(), raw.float().numpy(), strict=True)
        ):
            e, feature = int(picked[t, slot]), int(np.abs(values).argmax())
            size = abs(float(values[feature]))
            raw_max[e] = max(raw_max[e], np.abs(unweighted).max())
            known = best[e]
            if size > known[0] or (size == known[0] and (t, feature) < known[1:3]):
                best[e] = (size, t, feature, float(values[feature]))
    close = (
        {"rtol": 0.02, "atol": 0.02}
        if hidden.dtype == torch.bfloat16
        else {"rtol": 1e-4, "atol": 1e-5}
    )
    np.testing.assert_allclose(summed.numpy(), output[place].double().numpy(), **close)
    rows = [best[e] for e in range(count)]
    return {
        "expert_max": np.array([r[3] for r in rows]),
        "expert_max_feature": np.array([r[2] for r in rows]),
        "expert_max_position": np.array([r[1] for r in rows]),
        "expert_total": np.array([0.0 if r[1] < 0 else total[r[1], r[2]] for r in rows]),
        "expert_raw_max": raw_max,
    }
