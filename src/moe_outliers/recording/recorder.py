"""Hooks that turn the activations of a running model into statistics, however it is run.

An engine sets `recorder.sequences` before each forward pass of a layer; otherwise its numbers would
go to the sequences of the last one. It calls `settle` when all sequences have passed a block, and
`loss` with the final hidden states. An engine that captures a layer as a CUDA graph calls
`take_gains` before, captures within `captured`, and calls `replayed` after each replay. No
activation outlives its hook but one bit a position and feature for the unions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_outliers.recording import reduction
from moe_outliers.recording.accumulator import Accumulator
from moe_outliers.recording.choose import reducer
from moe_outliers.recording.experts import Replaced, Tap
from moe_outliers.recording.plain import PlainReducer
from moe_outliers.recording.reducer import Picks, Reducer
from moe_outliers.recording.sites import Site, family_of, sites_of
from moe_outliers.stats import Array


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
            kernels: whether to reduce by GPU kernels; None: where they can be used.
        """
        self._kernels = kernels
        self._reducers: dict[torch.device, Reducer] = {}
        self.sequences: Sequence[int] = ()
        self.ids, self.delimiter, self.alphas = ids, delimiter, tuple(alphas)
        self.family = family_of(model.config.model_type)
        self.sites = list(sites_of(model))
        self._ids: dict[torch.device, Tensor] = {}
        self._hit: dict[tuple[str, torch.device], Tensor] = {}
        self._pending: dict[int, list[dict[str, Tensor]]] = {}
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
        blocks = range(len(model.model.layers))
        numbers = {"site": range(len(self.sites)), "block": blocks, "moe": self.moe_blocks}
        self._accumulator = Accumulator(len(ids), numbers)

    def close(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._accumulator.close()

    # -- the hooks -----------------------------------------------------------------------------

    def _on_norm(self, number: int, site: Site) -> Callable[..., None]:
        def hook(norm: Any, args: tuple[Tensor, ...], x: Tensor) -> None:
            self.norm_dtypes.add(str(x.dtype).removeprefix("torch."))
            self._take_gain(number)
            here, hits = self._reducer(x.device), self._hits(site.kind, x)
            for row, sequence in enumerate(self.sequences):
                here.site(number, sequence, x[row], args[0][row], hits, norm=norm)

        return hook

    def take_gains(self, block: int) -> None:
        """Copy gain and offset of a block's norms while their parameters are on the device.

        The hooks do that too; but while a CUDA graph is captured, what they do is only recorded.
        """
        self._take_gain(2 * block)
        self._take_gain(2 * block + 1)

    def _take_gain(self, number: int) -> None:
        if number not in self.gain:
            norm = self.sites[number].norm
            gain = norm.weight.detach().float() + self.family.unit_offset
            bias, nothing = getattr(norm, "bias", None), torch.zeros_like(gain)
            self.gain[number] = gain
            self.offset[number] = nothing if bias is None else nothing + bias.detach().float()

    def _hits(self, kind: str, x: Tensor) -> Tensor:
        """Return where any site of a kind had an outlier, (sequence, position, feature), bool."""
        key = (kind, x.device)
        if key not in self._hit:
            shape = (len(self.ids), *x.shape[1:])
            self._hit[key] = torch.zeros(shape, dtype=torch.bool, device=x.device)
        return self._hit[key]

    def _reducer(self, device: torch.device) -> Reducer:
        if device not in self._reducers:
            mask = torch.from_numpy(self.delimiter).to(device)
            self._reducers[device] = reducer(
                self._accumulator.add, mask, self.alphas, self.family, self._kernels
            )
        return self._reducers[device]

    @torch.inference_mode()  # what the hooks made is changed in no other mode
    def _flush(self) -> None:
        for each in self._reducers.values():
            each.flush()

    def _on_block(self, block: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            h = output[0] if isinstance(output, tuple) else output
            for row, sequence in enumerate(self.sequences):
                self._reducer(h.device).block(block, sequence, h[row])

        return hook

    def _watch_experts(self, block: int, mlp: Any) -> None:
        """Attach to a mixture of experts: its router, each picked expert, and their sum."""
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
            """Run each picked expert alone, weigh and add as grouped_mm does: the same bits."""
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
            for row, (sequence, largest) in enumerate(
                zip(self.sequences, self._pending.pop(block), strict=True)
            ):
                place = largest["expert_max_position"], largest["expert_max_feature"]
                self._reducer(total.device).mlp(block, sequence, largest, total[row][place])

        return hook

    def loss(self, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> None:
        """Take the final norm's output, (row, position, feature), of the current sequences."""
        self._flush()
        if (here := hidden.device) not in self._ids:  # once: a copy waits for the device
            self._ids[here] = torch.from_numpy(self.ids).to(here, torch.int64)
        for row, sequence in enumerate(self.sequences):
            nll = reduction.token_nll(hidden[row], head, self._ids[here][sequence])
            self._accumulator.add("sequence", 0, [sequence], {"token_nll": nll[None]})

    # -- for CUDA graphs -----------------------------------------------------------------------

    @property
    def replayable(self) -> bool:
        """Whether layers may be captured: plain reducers store under the numbers of one pass."""
        return not any(isinstance(each, PlainReducer) for each in self._reducers.values())

    @contextmanager
    def captured(self, rows: int) -> Iterator[list[Any]]:
        """Record which tensors the hooks see of so many rows while a graph is captured."""
        self.sequences = range(rows)
        batched: list[Any] = list(self._reducers.values())  # no plain ones: see `replayable`
        with ExitStack() as stack:
            yield [(each, stack.enter_context(each.capturing())) for each in batched]

    def replayed(
        self, seen: list[Any], rows: Sequence[int], copy: Callable[[Tensor], Tensor]
    ) -> None:
        """Reduce the new contents of recorded tensors, as those of these sequences."""
        for each, tensors in seen:
            each.replayed(tensors, rows, copy)

    # -- for the engine ------------------------------------------------------------------------

    def settle(self, block: int) -> None:
        """Start to copy a block's statistics to the host, while the next one is computed.

        All sequences must have passed the block.
        """
        self._flush()
        sites = [("site", 2 * block), ("site", 2 * block + 1)]
        self._accumulator.settle([*sites, ("block", block), ("moe", block)])

    def result(self, sequence: int) -> dict[str, Array]:
        """Return the variables of one sequence that has passed through the whole model.

        Raises:
            ValueError: if an activation was NaN or infinite; the message names the first such site.
        """
        self._flush()
        result = self._accumulator.of(sequence)
        parts = [result[n] for n in ("x_min", "x_max", "x_first", "z_max", "power_sum")]
        for number, site in enumerate(self.sites):
            if not all(np.isfinite(part[number]).all() for part in parts):
                raise ValueError(f"NaN or infinite activations at block {site.block} {site.kind}")
        result["token_nll"] = result["token_nll"][0]
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
