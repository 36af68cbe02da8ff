"""Hooks that turn the activations of a running model into statistics, however it is run.

Where they attach is observed of the model (`observed`). An engine runs each forward pass within
`passing`, which names the sequences of the pass. It calls `settle` when all sequences have passed a
block, and `loss` with the final hidden states. An engine that captures a layer as a CUDA graph
calls `take_gains` before, captures within `captured`, and calls `replayed` after each replay. No
activation outlives its hook but one bit a position and feature for the unions.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_outliers.recording import norms, reduction
from moe_outliers.recording.accumulator import Accumulator
from moe_outliers.recording.anatomy import Routing, Site
from moe_outliers.recording.choose import reducer
from moe_outliers.recording.experts import Experts, Tap
from moe_outliers.recording.hooks import Hooks, Replaced
from moe_outliers.recording.observed import observe
from moe_outliers.recording.plain import PlainReducer
from moe_outliers.recording.reducer import Picks, Reducer
from moe_outliers.recording.tracing.trail import tensors_of
from moe_outliers.stats import Array
from moe_outliers.storage.statistics_file import KINDS, VARIABLES

OWN_EPS = 1e-30
"""Added to the mean square of a stream that no norm reads: z of a row of zeros is 0."""


class Recorder(Hooks):
    """Collects the statistics of all sequences while a model runs.

    Attributes:
        anatomy: what was observed of the model.
        moe_blocks: numbers of the blocks that have a mixture of experts.
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

        Raises:
            ValueError: if the model, or part of it, cannot be measured; the message says why.
        """
        super().__init__(model)
        self._kernels = kernels
        self._reducers: dict[torch.device, Reducer] = {}
        self.ids, self.delimiter, self.alphas = ids, delimiter, tuple(alphas)
        self.anatomy = observe(model)
        self.anatomy.refuse()
        self.sites = self.anatomy.sites
        self._overwritten = any(block.overwrites for block in self.anatomy.blocks)
        self._ids: dict[torch.device, Tensor] = {}
        self._hit: dict[tuple[str, torch.device], Tensor] = {}
        self._routes: dict[int, dict[str, Tensor]] = defaultdict(dict)
        self._pending: dict[int, list[dict[str, Tensor]]] = {}
        self._norms: dict[Any, norms.Norm] = {}
        self.gain: dict[int, Tensor] = {}
        self.offset: dict[int, Tensor] = {}
        self.norm_dtypes: set[str] = set()
        for number, site in enumerate(self.sites):
            self._watch_site(number, site)
        for number, block in enumerate(self.anatomy.blocks):
            self._at(block.leaves, self._on_block(number))
        self.moe_blocks = [routing.block for routing in self.anatomy.routings]
        for routing in self.anatomy.routings:
            self._watch_mixture(routing)
        blocks = range(len(self.anatomy.blocks))
        numbers = {"site": range(len(self.sites)), "block": blocks, "moe": self.moe_blocks}
        self._accumulator = Accumulator(len(ids), numbers)

    def close(self) -> None:
        """Detach from the model."""
        super().close()
        self._accumulator.close()

    # -- the hooks -----------------------------------------------------------------------------

    def _watch_site(self, number: int, site: Site) -> None:
        inside = any(site.norm.startswith(f"{b.module}.") for b in self.anatomy.blocks)

        def hook(module: Any, args: Any, kwargs: Any, x: Tensor) -> None:
            if self._watching if inside else self.sequences:
                assert site.norm_reads is not None
                self._on_site(number, site, x, site.norm_reads.take(args, kwargs))

        if not site.norm:  # the stream itself enters
            take = site.mixers[0].enters
            self._at(take, lambda h: self._on_site(number, site, h, h))
            return
        module = self._model.get_submodule(site.norm)
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _on_site(self, number: int, site: Site, x: Tensor, h: Tensor) -> None:
        self.norm_dtypes.add(str(x.dtype).removeprefix("torch."))
        self._take_gain(number, x.device)
        norm = self._norm(site, h.dtype)
        x, h = self._by_row(x), self._by_row(h)
        x, h = self._kept(x), self._kept(h)
        here, hits = self._reducer(x.device), self._hits(site.kind, x)
        eps, layer_norm = norm.eps, norm.kind == "layer"
        for row, sequence in enumerate(self.sequences):
            here.site(number, sequence, x[row], h[row], hits, eps=eps, layer_norm=layer_norm)

    def _kept(self, tensor: Tensor) -> Tensor:
        """Return a tensor that a reducer may keep for a while: no block writes into it."""
        return tensor.clone() if self._overwritten else tensor

    def _norm(self, site: Site, dtype: torch.dtype) -> norms.Norm:
        """Return what a site's norm does; each kind of module is probed once, at its first run."""
        if not site.norm:
            return norms.Norm("rms", None, None, OWN_EPS)
        module = self._model.get_submodule(site.norm)
        look = norms.look_of(module), dtype
        if look not in self._norms:
            try:
                self._norms[look] = norms.probe_norm(module, self.anatomy.width, dtype)
            except ValueError as error:
                raise ValueError(f"{site.norm} {error}") from None
        return self._norms[look]

    def take_gains(self, block: int, device: torch.device) -> None:
        """Copy gain and offset of a block's norms while their parameters are on the device.

        The hooks do that too; but while a CUDA graph is captured, what they do is only recorded.
        """
        for number in self._sites_of(block):
            self._take_gain(number, device)

    def _sites_of(self, block: int) -> list[int]:
        return [number for number, site in enumerate(self.sites) if site.block == block]

    def _take_gain(self, number: int, device: torch.device) -> None:
        if number not in self.gain:
            site, width = self.sites[number], self.anatomy.width
            if site.norm:
                norm = self._model.get_submodule(site.norm)
                self.gain[number], self.offset[number] = norms.gain_and_offset(norm, width, device)
            else:
                self.gain[number] = torch.ones(width, device=device)
                self.offset[number] = torch.zeros(width, device=device)

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
                self._accumulator.add, mask, self.alphas, self._kernels
            )
        return self._reducers[device]

    @torch.inference_mode()  # what the hooks made is changed in no other mode
    def _flush(self) -> None:
        for each in self._reducers.values():
            each.flush()

    def _on_block(self, block: int) -> Callable[[Tensor], None]:
        def take(h: Tensor) -> None:
            h = self._kept(self._by_row(h).flatten(2))  # several streams side by side are one
            for row, sequence in enumerate(self.sequences):
                self._reducer(h.device).block(block, sequence, h[row])

        return take

    def _watch_mixture(self, routing: Routing) -> None:
        """Attach to a mixture of experts: its router, each picked expert, and their sum."""
        for name in ("logits", "weights", "picked"):
            self._at(getattr(routing, name), self._on_router(routing, name))
        experts = Experts(self._model, routing)
        if Tap.fits(experts.module):
            tap = Tap(experts.module)
            self._handles += [tap, experts.watch(self._on_experts(routing, tap))]
        elif experts.replaceable:
            run = self._run_experts(routing, experts)
            self._handles.append(Replaced(experts.module, run))
        else:
            self._handles.append(experts.watch(self._repeat_experts(routing, experts)))
        mixture = self._model.get_submodule(routing.mixture)
        self._handles.append(mixture.register_forward_hook(self._on_mlp(routing.block)))

    def _on_router(self, routing: Routing, name: str) -> Callable[[Tensor], None]:
        def take(tensor: Tensor) -> None:
            seen = self._routes[routing.block]
            seen[name] = tensor.reshape(-1, tensor.shape[-1])
            if len(seen) < 3:
                return
            parts = (seen.pop(part) for part in ("logits", "weights", "picked"))
            pieces = zip(*(part.chunk(len(self.sequences)) for part in parts), strict=True)
            steps = routing.steps(self._held)
            for sequence, each in zip(self.sequences, pieces, strict=True):
                self._reducer(tensor.device).router(routing.block, sequence, each, steps)

        return take

    def _held(self, path: str) -> Tensor:
        holder, _, name = path.rpartition(".")
        held: Tensor = getattr(self._model.get_submodule(holder), name)
        return held

    def _on_experts(self, routing: Routing, tap: Tap) -> Callable[..., None]:
        def take(hidden: Tensor, picked: Tensor, weights: Tensor) -> None:
            raw = tap.take()
            if self._watching:
                order = torch.sort(picked.reshape(-1)).indices  # as grouped_mm sorts them
                self._reduce_experts(routing, Picks(raw, order, weights, picked))

        return take

    def _repeat_experts(self, routing: Routing, experts: Experts) -> Callable[..., None]:
        def take(hidden: Tensor, picked: Tensor, weights: Tensor) -> None:
            if self._watching:
                raw, order = experts.apart(hidden, picked)
                self._reduce_experts(routing, Picks(raw, order, weights, picked))

        return take

    def _run_experts(self, routing: Routing, experts: Experts) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            """Run each picked expert alone, weigh and add as grouped_mm does: the same bits."""
            hidden, picked, weights = experts.arguments(args, kwargs)
            (rows, width), k = hidden.shape, picked.shape[1]
            raw, order = experts.apart(hidden, picked)
            if self._watching:
                self._reduce_experts(routing, Picks(raw, order, weights, picked))
            weighted = raw.view(rows, k, width) * weights[..., None]
            return weighted.sum(1).to(hidden.dtype)

        return run

    def _reduce_experts(self, routing: Routing, picks: Picks) -> None:
        here, sequences = self._reducer(picks.raw.device), len(self.sequences)
        self._pending[routing.block] = here.experts(picks, routing.choices, sequences)

    def _on_mlp(self, block: int) -> Callable[..., None]:
        def hook(mlp: Any, args: Any, output: Any) -> None:
            if not self._watching:
                return
            total = self._by_row(next(tensor for _, tensor in tensors_of(output)))
            for row, (sequence, largest) in enumerate(
                zip(self.sequences, self._pending.pop(block), strict=True)
            ):
                place = largest["expert_max_position"], largest["expert_max_feature"]
                self._reducer(total.device).mlp(block, sequence, largest, total[row][place])

        return hook

    def loss(
        self, hidden: Tensor, head: Callable[[Tensor], Tensor], sequences: Sequence[int]
    ) -> None:
        """Take the losses of some sequences.

        Args:
            hidden: (row, position, …), what the logits are made of.
            head: makes the logits, (position, token), of some positions of one row.
            sequences: of the rows.
        """
        self._flush()
        if (here := hidden.device) not in self._ids:  # once: a copy waits for the device
            self._ids[here] = torch.from_numpy(self.ids).to(here, torch.int64)
        for row, sequence in enumerate(sequences):
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
        batched: list[Any] = list(self._reducers.values())  # no plain ones: see `replayable`
        with ExitStack() as stack:
            stack.enter_context(self.passing(range(rows)))
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
        sites = [("site", number) for number in self._sites_of(block)]
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
        if not self.moe_blocks:  # a model without experts has none of their statistics
            result |= {name: _none(name, self.ids.shape[1]) for name in _OF_EXPERTS}
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
        shape = self.ids.shape[1], self.anatomy.width
        hit = {kind: torch.zeros(shape, dtype=torch.bool) for kind in KINDS}
        for (kind, _), all_bits in self._hit.items():
            bits = all_bits[sequence]
            hit[kind] = hit[kind].to(bits.device) | bits
        attention, mlp = hit["attn_in"], hit["mlp_in"].to(hit["attn_in"].device)
        sums = [bits.sum(0) for bits in (attention, mlp, attention | mlp)]
        return torch.stack(sums).cpu().numpy()


_OF_EXPERTS = [name for name, variable in VARIABLES.items() if "moe_block" in variable.dims]


def _none(name: str, positions: int) -> Array:
    """Return a variable of no blocks with experts, of one sequence."""
    sizes = {"moe_block": 0, "position": positions, "pick": 0, "expert": 0}
    shape = [sizes[axis] for axis in VARIABLES[name].dims[1:]]
    return np.zeros(shape, VARIABLES[name].dtype)
