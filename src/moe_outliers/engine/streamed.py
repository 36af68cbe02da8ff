"""Runs a model of any size on one small device: its layers are streamed, each is read once.

All sequences go through one layer while the next is read and copied. The model is transformers' own
with its parameters on the meta device; a layer gets its parameters when it is its turn and loses
them after. The numbers are bit for bit those of `resident`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moe_outliers import progress
from moe_outliers.checkpoint import headers
from moe_outliers.checkpoint.config import quantisation, read_config
from moe_outliers.checkpoint.source import Source
from moe_outliers.engine import memory, weight_map
from moe_outliers.engine.cuda_graphs import Replays
from moe_outliers.engine.loader import CHUNKS_PER_READER, Loader
from moe_outliers.engine.meta_model import dtype_of, empty_model, put, replaced
from moe_outliers.engine.slot_layout import Layout
from moe_outliers.failpoints import Failpoint, reach
from moe_outliers.progress import Progress
from moe_outliers.recording.recorder import Recorder

BIGGER = "Take a device with more memory; fewer tokens or sequences need less"


@dataclass(frozen=True)
class Options:
    """How weights are read and copied; nothing of it changes a number.

    Attributes:
        depth: layers read ahead of the one in use, on the device; None: as many as help and fit.
        readers: threads that read.
        chunk_bytes: largest read.
    """

    depth: int | None = None
    readers: int = 8
    chunk_bytes: int = 16 << 20


class Streamed:
    """One model, its layers streamed from a source.

    Attributes:
        model: transformers' model, its parameters on the meta device until it is their turn.
        plan: what was chosen or stepped down for lack of memory, in words.
        waited_s: seconds that the last run waited for bytes.
    """

    def __init__(
        self, source: Source, *, device: str, dtype: str, options: Options | None = None
    ) -> None:
        """Read config.json and the headers of the shards.

        Args:
            source: where the checkpoint comes from; closed by whoever made it.
            device: cpu or cuda.
            dtype: auto, bfloat16 or float32.
            options: how weights are read and copied.

        Raises:
            ValueError: if config.json or a header is not sound, or they do not fit each other.
        """
        self.device, self.options = torch.device(device), options or Options()
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.plan: list[str] = []
        self.waited_s = 0.0
        self._source = source
        config = read_config(source.folder / "config.json")
        quantised = quantisation(config, source.folder)
        index = headers.index_of(source)
        self.model = empty_model(source.folder, dtype_of(dtype, config, index), self.device)
        try:
            groups = weight_map.groups(self.model, index, quantised)
        except ValueError as error:
            lacking = headers.absent(source.folder, index)
            raise ValueError(f"{source.folder}: {error}{lacking}") from None
        self.layouts = [Layout(group) for group in groups]

    def run(
        self, recorder: Recorder, wanted: list[int], *, micro_batch: int, progress: Progress
    ) -> Iterator[int]:
        """Run sequences through the model, one layer after the other.

        Args:
            recorder: attached to the model; its `ids` are run.
            wanted: rows of `recorder.ids` to run.
            micro_batch: sequences in one forward pass, grouped as `resident.run` does.
            progress: takes a line from time to time.

        Yields:
            Each wanted row, once the recorder holds all of it: at the end of the pass.

        Raises:
            ValueError: if the device is too small, or the checkpoint cannot be read.
        """
        count = len(recorder.ids)
        numbers = sorted({row // micro_batch for row in wanted})
        batches = [
            range(number * micro_batch, min((number + 1) * micro_batch, count))
            for number in numbers
        ]
        layer_pass = _LayerPass(self, recorder, batches, progress)
        layer_pass.run()
        self._source.check()
        layer_pass.rate.end(len(batches))
        yield from (row for batch in batches for row in batch if row in set(wanted))


class _LayerPass:
    """One pass of all sequences through all layers.

    Hidden states are kept between layers, so the pass can resume after running out of memory, with
    fewer layers on the device.

    A group is the embeddings, one layer, or the head.

    Attributes:
        rate: reports the progress.
    """

    def __init__(
        self, engine: Streamed, recorder: Recorder, batches: Sequence[range], tell: Progress
    ) -> None:
        self._engine, self._recorder, self._batches = engine, recorder, batches
        self._layouts, self._body = engine.layouts, engine.model.model
        total = sum(layout.read_bytes for layout in self._layouts)
        self._tell, self._read_before = tell, 0
        self.rate = progress.Rate(tell, total, len(self._layouts) - 2)
        self._hidden: list[Any] = [None] * len(batches)
        self._calls: dict[int, list[tuple[Any, Any]]] = {}
        self._group = self._batch = 0  # the next to be computed
        self._replays = Replays(recorder, on=False)

    def run(self) -> None:
        """Run to the end; after running out of device memory, with less read ahead."""
        engine, depth = self._engine, self._choose_depth()
        engine.waited_s = 0.0
        engine._source.expect([layout.group.shards for layout in self._layouts])
        while self._group < len(self._layouts):
            try:
                self._advance(depth)
            except torch.OutOfMemoryError as error:
                at = f"out of device memory at {self._layouts[self._group].group.name}"
                if self._replays.on:
                    self._replays = Replays(self._recorder, on=False)
                    line = f"{at}: no graphs"
                elif depth > 0:
                    depth -= 1
                    line = f"{at}: prefetch depth {depth + 1} -> {depth}"
                else:
                    raise ValueError(f"{at}, with nothing read ahead: {error}. {BIGGER}") from None
                engine.plan.append(line)
                self._tell(line)
            if engine.device.type == "cuda":
                torch.cuda.empty_cache()

    def _choose_depth(self) -> int:
        """Compute how much memory the pass needs, and choose how far to read ahead."""
        engine, options = self._engine, self._engine.options
        count, tokens = self._recorder.ids.shape
        needed = memory.needs(
            engine.model,
            self._layouts,
            sequences=count,
            tokens=tokens,
            micro_batch=max(map(len, self._batches)),
            alphas=len(self._recorder.alphas),
            cuda=engine.device.type == "cuda",
        )
        pinned = options.readers * CHUNKS_PER_READER * options.chunk_bytes
        chosen = memory.choose(needed, engine.device, options.depth, pinned)
        if chosen.scarce:
            engine.plan.append(chosen.line)
        self._tell(chosen.line)
        self._replays.on = chosen.graphs
        return chosen.depth

    def _advance(self, depth: int) -> None:
        """Load and run group after group, from the next one on."""
        engine, options = self._engine, self._engine.options
        self._read_before = sum(layout.read_bytes for layout in self._layouts[: self._group])
        slot_bytes = max(layout.slot_bytes for layout in self._layouts)
        work_bytes = max(layout.work_bytes for layout in self._layouts)
        reach(Failpoint.BEFORE_SLOTS, torch.OutOfMemoryError)
        work = torch.empty(work_bytes, dtype=torch.uint8, device=engine.device)
        slots = [torch.empty(slot_bytes, dtype=torch.uint8, device=engine.device)]
        slots += [torch.empty_like(slots[0]) for _ in range(depth)]
        with Loader(
            engine._source,
            self._layouts,
            slots,
            first=self._group,
            readers=options.readers,
            chunk_bytes=options.chunk_bytes,
        ) as self._loader:
            while self._group < len(self._layouts):
                slot = self._loader.take(self._report, progress.REPORT_S)
                with torch.inference_mode(), self._attached(slot, work):
                    self._use()
                self._loader.release()
                if 0 < self._group < len(self._layouts) - 1:
                    self._recorder.settle(self._group - 1)
                self._report()
                self._group, self._batch = self._group + 1, 0
        engine.waited_s += self._loader.waited_s

    @contextmanager
    def _attached(self, slot: Tensor, work: Tensor) -> Iterator[None]:
        """Give the modules of the group their parameters, and put the empty ones back after use.

        Raises:
            ValueError: if a parameter is not on the device then.
        """
        layout, model = self._layouts[self._group], self._engine.model
        empty = {}
        try:
            for parameter, tensor in layout.parameters(slot, work):
                empty[parameter.name] = put(model, parameter.name, tensor)
            for module in self._modules():
                for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                    if tensor.device.type != self._engine.device.type:
                        raise ValueError(f"{layout.group.name}: {name} is on {tensor.device}")
            yield
        finally:
            for name, tensor in empty.items():
                put(model, name, tensor)

    def _modules(self) -> list[nn.Module]:
        if self._group == 0:
            return [self._body.embed_tokens]
        if self._group == len(self._layouts) - 1:
            return [self._body.norm, self._engine.model.lm_head]
        return [self._body.layers[self._group - 1]]

    def _use(self) -> None:
        """Run every micro-batch through the group that has not passed it yet."""
        modules = self._modules()
        if len(modules) == 1 and self._group > 0:  # a layer
            self._recorder.take_gains(self._group - 1)
        self._replays.next_layer((repr(modules[0]), getattr(modules[0], "attention_type", None)))
        while self._batch < len(self._batches):
            rows = self._batches[self._batch]
            hidden = self._hidden[self._batch]
            reach(Failpoint.BEFORE_FORWARD, torch.OutOfMemoryError)
            if self._group == 0:
                self._hidden[self._batch] = self._enter(rows)
            elif len(modules) == 1:
                left = len(self._batches) - self._batch
                layer = partial(self._layer, modules[0], len(rows))
                self._hidden[self._batch] = self._replays.run(layer, hidden, rows, left)
            else:
                self._recorder.sequences = rows
                self._recorder.loss(modules[0](hidden), modules[1])
                self._hidden[self._batch] = None
            self._batch += 1

    def _layer(self, layer: nn.Module, count: int, hidden: Tensor) -> Tensor:
        args, arguments = self._calls[count][self._group - 1]
        output: Any = layer(hidden, *args, **arguments)
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]

    def _enter(self, rows: range) -> Tensor:
        """Run the model without its layers; record the arguments that each would have been given.

        Masks and rotary embeddings depend on the shape alone, since the texts have no padding. So
        they are recorded once for each number of rows.
        """
        calls: list[tuple[Any, Any]] = []

        def record(hidden: Tensor, *args: Any, **arguments: Any) -> Tensor:
            calls.append((args, arguments))
            return hidden

        ids = torch.from_numpy(self._recorder.ids[list(rows)].astype("int64"))
        self._recorder.sequences = ()
        with ExitStack() as stack:
            for layer in self._body.layers:
                stack.enter_context(replaced(layer, record))
            stack.enter_context(replaced(self._body.norm, lambda hidden: hidden))
            output = self._body(input_ids=ids.to(self._engine.device), use_cache=False)
        self._calls.setdefault(len(rows), calls)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _report(self) -> None:
        read = self._loader.read_bytes + self._read_before
        self.rate.report(self._layouts[self._group].group.name, read)
