"""Hooks that turn a running model into statistics: what every way of running a model shares.

An engine sets `recorder.sequences` before each forward of a layer and calls `loss` with the final
hidden states; the hooks do the rest. No activation is kept beyond its hook but one bit a position
and feature for the unions.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_outliers import reduction
from moe_outliers.experts import Replaced, Tap
from moe_outliers.host_copy import HostCopy
from moe_outliers.reducers import Picks, Reducer, reducer
from moe_outliers.sites import Site, family_of, sites_of
from moe_outliers.statistics import VARIABLES

Array = np.ndarray[Any, Any]

_STORED = {
    "uint16": torch.uint16,
    "int32": torch.int32,
    "float32": torch.float32,
    "float64": torch.float64,
}


class Recorder:
    """Collects the statistics of all sequences while a model runs.

    Attributes:
        sequences: rows of `ids` that the current forward pass holds, in order; set by the engine.
    """

    def __init__(
        self,
        model: Any,
        ids: Array,
        delimiter: Array,
        alphas: Sequence[float],
        kernels: bool | None = None,
    ) -> None:
        """Attach to a model.

        Args:
            model: a causal language model of transformers.
            ids: (sequence, position), token ids.
            delimiter: (sequence, position), bool, the delimiter positions.
            alphas: thresholds, ascending.
            kernels: reduce by GPU kernels; None: where they can be used.
        """
        self._kernels = kernels
        self._reducers: dict[torch.device, Reducer] = {}
        self.sequences: Sequence[int] = ()
        self.ids, self.delimiter, self.alphas = ids, delimiter, tuple(alphas)
        self.family = family_of(model.config.model_type)
        self.sites = list(sites_of(model))
        self._stores: dict[tuple[str, int], dict[str, Tensor]] = defaultdict(dict)
        self._hit: dict[tuple[str, torch.device], Tensor] = {}
        self._pending: dict[int, list[dict[str, Tensor]]] = {}
        self._experts: dict[int, list[tuple[int, dict[str, Tensor]]]] = defaultdict(list)
        self._mover = ThreadPoolExecutor(1)
        self._moving: list[Future[None]] = []
        self.gain: dict[int, Tensor] = {}
        self.offset: dict[int, Tensor] = {}
        self.norm_dtypes: set[str] = set()
        self._handles: list[Any] = []
        for number, site in enumerate(self.sites):
            self._handles.append(site.norm.register_forward_hook(self._on_norm(number, site)))
        self.moe_blocks = []
        for block, layer in enumerate(model.model.layers):
            self._handles.append(layer.register_forward_hook(self._on_block(block)))
            if hasattr(layer.mlp, "experts"):
                self.moe_blocks.append(block)
                self._watch_experts(block, layer.mlp)

    def close(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._mover.shutdown()

    # -- what the hooks do ---------------------------------------------------------------------

    def _on_norm(self, number: int, site: Site) -> Callable[..., None]:
        def hook(norm: Any, args: tuple[Tensor, ...], x: Tensor) -> None:
            self.norm_dtypes.add(str(x.dtype).removeprefix("torch."))
            if number not in self.gain:
                gain = norm.weight.detach().float() + self.family.unit_offset
                bias, nothing = getattr(norm, "bias", None), torch.zeros_like(gain)
                self.gain[number] = gain
                self.offset[number] = nothing if bias is None else nothing + bias.detach().float()
            here, hits = self._reducer(x.device), self._hits(site.kind, x)
            for row, sequence in enumerate(self.sequences):
                here.site(number, sequence, x[row], args[0][row], hits[sequence], norm=norm)

        return hook

    def _hits(self, kind: str, x: Tensor) -> Tensor:
        """Return the hits of a union, (sequence, position, feature), bool."""
        key = (kind, x.device)
        if key not in self._hit:
            shape = (len(self.ids), *x.shape[1:])
            self._hit[key] = torch.zeros(shape, dtype=torch.bool, device=x.device)
        return self._hit[key]

    def _reducer(self, device: torch.device) -> Reducer:
        if device not in self._reducers:
            mask = torch.from_numpy(self.delimiter).to(device)
            self._reducers[device] = reducer(
                self._keep, mask, self.alphas, self.family, self._kernels
            )
        return self._reducers[device]

    @torch.inference_mode()  # what the hooks made is changed in no other mode
    def _flush(self) -> None:
        for one in self._reducers.values():
            one.flush()
        self._keep_experts()

    def _on_block(self, block: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            h = output[0] if isinstance(output, tuple) else output
            for row, sequence in enumerate(self.sequences):
                self._reducer(h.device).block(block, sequence, h[row])

        return hook

    def _watch_experts(self, block: int, mlp: Any) -> None:
        """Watch a mixture of experts: its router, each picked expert's output, and their sum."""
        router, experts = getattr(mlp, self.family.router), mlp.experts
        self._handles.append(router.register_forward_hook(self._on_router(block)))
        if Tap.fits(experts):
            tap = Tap(experts)
            self._handles += [tap, experts.register_forward_hook(self._on_experts(block, tap))]
        else:
            self._handles.append(Replaced(experts, self._run_experts(block, experts)))
        self._handles.append(mlp.register_forward_hook(self._on_mlp(block)))

    def _on_router(self, block: int) -> Callable[..., None]:
        def hook(router: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            bias = getattr(router, "e_score_correction_bias", None)
            pieces = zip(*(part.chunk(len(self.sequences)) for part in output), strict=True)
            for sequence, routing in zip(self.sequences, pieces, strict=True):
                self._reducer(output[0].device).router(block, sequence, routing, bias)

        return hook

    def _on_experts(self, block: int, tap: Tap) -> Callable[..., None]:
        def hook(experts: Any, args: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
            _, picked, weights = args
            order = torch.sort(picked.reshape(-1)).indices  # as grouped_mm sorts them
            self._reduce_experts(block, Picks(tap.take(), order, weights, picked), experts)

        return hook

    def _run_experts(self, block: int, experts: Any) -> Callable[..., Tensor]:
        forward: Callable[..., Tensor] = experts.forward

        def run(hidden: Tensor, picked: Tensor, weights: Tensor) -> Tensor:
            """Run each picked expert by itself, weigh, add as grouped_mm does: the same bits."""
            (rows, width), k = hidden.shape, picked.shape[1]
            ones = torch.ones((rows * k, 1), dtype=hidden.dtype, device=hidden.device)
            raw = forward(hidden.repeat_interleave(k, 0), picked.reshape(-1, 1), ones)
            order = torch.arange(rows * k, device=raw.device)
            self._reduce_experts(block, Picks(raw, order, weights, picked), experts)
            weighted = raw.view(rows, k, width) * weights[..., None]
            return weighted.sum(1).to(hidden.dtype)

        return run

    def _reduce_experts(self, block: int, picks: Picks, experts: Any) -> None:
        here, sequences = self._reducer(picks.raw.device), len(self.sequences)
        self._pending[block] = here.experts(picks, experts.num_experts, sequences)

    def _on_mlp(self, block: int) -> Callable[..., None]:
        def hook(mlp: nn.Module, args: Any, output: Any) -> None:
            total = output[0] if isinstance(output, tuple) else output
            for row, (sequence, kept) in enumerate(
                zip(self.sequences, self._pending.pop(block), strict=True)
            ):
                place = kept["expert_max_position"], kept["expert_max_feature"]
                self._experts[block].append((sequence, kept | {"expert_total": total[row][place]}))

        return hook

    def _keep_experts(self) -> None:
        """Keep what the experts of several sequences wrote, each block's with few operations."""
        for block in list(self._experts):
            sequences, kept = zip(*self._experts[block], strict=True)
            values = {name: torch.stack([one[name] for one in kept]) for name in kept[0]}
            unpicked, total = values["expert_max_feature"] < 0, values["expert_total"].float()
            values["expert_total"] = torch.where(unpicked, 0.0, total)
            self._keep("moe", block, sequences, values)
            del self._experts[block]  # only now: memory may run out before

    def loss(self, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> None:
        """Take the final norm's output, (row, position, feature), of the current sequences."""
        self._flush()
        for row, sequence in enumerate(self.sequences):
            ids = torch.from_numpy(self.ids[sequence]).to(hidden.device, torch.int64)
            nll = reduction.token_nll(hidden[row], head, ids)
            self._keep("sequence", 0, [sequence], {"token_nll": nll[None]})

    def _keep(
        self, scope: str, number: int, sequences: Sequence[int], values: dict[str, Tensor]
    ) -> None:
        """Keep values of sequences by name, (sequence, …), with one copy where they follow on."""
        store, first = self._stores[scope, number], sequences[0]
        follow = list(sequences) == list(range(first, first + len(sequences)))
        for name, value in values.items():
            if name not in store:
                dtype, shape = _STORED[VARIABLES[name].dtype], (len(self.ids), *value.shape[1:])
                store[name] = torch.zeros(shape, dtype=dtype, device=value.device)
            if follow:
                store[name][first : first + len(sequences)].copy_(value)
            else:
                for row, sequence in enumerate(sequences):
                    store[name][sequence].copy_(value[row])

    # -- what the engine takes -----------------------------------------------------------------

    def settle(self, block: int) -> None:
        """Start to move what was kept of a block to the host, while the next is computed.

        All sequences must have been through the block.
        """
        self._flush()
        kept = [("site", 2 * block), ("site", 2 * block + 1), ("block", block), ("moe", block)]
        copies = [HostCopy(self._stores[key]) for key in kept if key in self._stores]
        self._moving += [self._mover.submit(copy.finish) for copy in copies if copy.under_way]

    def result(self, sequence: int) -> dict[str, Array]:
        """Return the variables of one sequence that has passed through the whole model.

        Raises:
            ValueError: if an activation was NaN or infinite; the message names the first such site.
        """
        self._flush()
        while self._moving:
            self._moving.pop().result()
        found: dict[str, list[Array]] = defaultdict(list)
        for _, store in sorted(self._stores.items(), key=lambda item: item[0][1]):
            for name, values in store.items():
                found[name].append(values[sequence].cpu().numpy())
        for number, site in enumerate(self.sites):
            parts = ("x_min", "x_max", "x_first", "z_max", "power_sum")
            if not all(np.isfinite(found[name][number]).all() for name in parts):
                raise ValueError(f"NaN or infinite activations at block {site.block} {site.kind}")
        result = {name: np.stack(values) for name, values in found.items()}
        result["token_nll"] = found["token_nll"][0]
        for name in ("residual_max", "token_nll", "router_entropy", "expert_raw_max"):
            if not np.isfinite(result.get(name, 0.0)).all():
                raise ValueError(f"NaN or infinite values in {name}")
        return result | {
            "union_count": self._union_count(sequence),
            "positions": np.asarray(self.ids.shape[1]),
            "delimiters": np.asarray(self.delimiter[sequence].sum()),
        }

    def norms(self) -> dict[str, Array]:
        """Return gain and offset, (site, feature)."""
        order = range(len(self.sites))
        return {
            "gain": np.stack([self.gain[n].cpu().numpy() for n in order]),
            "offset": np.stack([self.offset[n].cpu().numpy() for n in order]),
        }

    def _union_count(self, sequence: int) -> Array:
        hit: dict[str, Tensor] = {}
        for (kind, _), all_bits in self._hit.items():
            bits = all_bits[sequence]
            hit[kind] = hit[kind] | bits.to(hit[kind].device) if kind in hit else bits
        attention, mlp = hit["attn_in"], hit["mlp_in"].to(hit["attn_in"].device)
        sums = [bits.sum(0) for bits in (attention, mlp, attention | mlp)]
        return torch.stack(sums).cpu().numpy()
