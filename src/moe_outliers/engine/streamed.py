"""Runs a model of any size on one small device: its layers are streamed, each is read once.

All sequences go through one layer while the next is read and copied. The model is transformers' own
with its parameters on the meta device; a layer gets its parameters when it is its turn and loses
them after. The numbers are bit for bit those of `resident`. Which modules the layers are, and what
they hand to each other, is observed of the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from moe_outliers import progress
from moe_outliers.checkpoint import headers
from moe_outliers.checkpoint.config import quantisation, read_config
from moe_outliers.checkpoint.source import Source
from moe_outliers.engine import ends, memory, weight_map
from moe_outliers.engine.cuda_graphs import Replays
from moe_outliers.engine.loader import CHUNKS_PER_READER, Loader
from moe_outliers.engine.meta_model import auto_class, dtype_of, empty_model, put
from moe_outliers.engine.slot_layout import Layout
from moe_outliers.failpoints import Failpoint, reach
from moe_outliers.progress import Progress
from moe_outliers.recording.anatomy import Block, Place
from moe_outliers.recording.hooks import NOBODY
from moe_outliers.recording.observed import observe
from moe_outliers.recording.oracles import Oracles
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
        anatomy: what was observed of it.
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
            ValueError: if config.json or a header is not sound, or they do not fit each other; if
                the model cannot be streamed.
        """
        self.device, self.options = torch.device(device), options or Options()
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.plan: list[str] = []
        self.waited_s = 0.0
        self._source = source
        config = read_config(source.folder / "config.json")
        auto_class(config["model_type"], source.folder / "config.json")
        quantised = quantisation(config, source.folder)
        index = headers.index_of(source)
        self.model = empty_model(source.folder, dtype_of(dtype, config, index), self.device)
        try:
            self.anatomy = observe(self.model)
            self.anatomy.refuse()
            ends.refuse_unstreamable(self.anatomy)
            groups = weight_map.groups(self.model, index, quantised, self.anatomy)
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
            NotAsObservedError: if the model does something else than was observed of it.
        """
        count = len(recorder.ids)
        numbers = sorted({row // micro_batch for row in wanted})
        batches = [
            range(number * micro_batch, min((number + 1) * micro_batch, count))
            for number in numbers
        ]
        layer_pass = _LayerPass(self, recorder, batches, progress)
        oracles = Oracles(self.model, self.anatomy)
        try:
            layer_pass.run()
            oracles.finish()
        finally:
            oracles.close()
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
        self._layouts, self._model, self._anatomy = engine.layouts, engine.model, engine.anatomy
        self._head = ends.Head(engine.model, engine.anatomy)
        total = sum(layout.read_bytes for layout in self._layouts)
        self._tell, self._read_before = tell, 0
        self.rate = progress.Rate(tell, total, len(self._layouts) - 2)
        self._hidden: list[Any] = [None] * len(batches)
        self._calls: dict[int, list[ends.Call]] = {}
        self._compared = False  # the calls of two texts
        self._own: list[list[dict[ends.Key, Tensor]]] = [[] for _ in batches]
        self._handed: list[dict[Place, Tensor]] = [{} for _ in batches]
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
            engine.anatomy,
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
            for name, tensor in self._held():
                if tensor.device.type != self._engine.device.type:
                    raise ValueError(f"{layout.group.name}: {name} is on {tensor.device}")
            yield
        finally:
            for name, tensor in empty.items():
                put(model, name, tensor)

    def _held(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters and buffers that the group uses."""
        block = self._block
        if block is not None:
            module = self._model.get_submodule(block.module)
            yield from [*module.named_parameters(), *module.named_buffers()]
        names = self._head.parameters if self._group else self._anatomy.before
        for name in names if block is None else block.parameters:
            holder, _, leaf = name.rpartition(".")
            yield name, getattr(self._model.get_submodule(holder), leaf)

    @property
    def _block(self) -> Block | None:
        """The block that the group is; None: the embeddings or the head."""
        inside = 0 < self._group < len(self._layouts) - 1
        return self._anatomy.blocks[self._group - 1] if inside else None

    def _use(self) -> None:
        """Run every micro-batch through the group that has not passed it yet."""
        block = self._block
        if block is not None:
            self._recorder.take_gains(self._group - 1, self._engine.device)
            self._replays.next_layer(block.kind)
        while self._batch < len(self._batches):
            rows = self._batches[self._batch]
            hidden = self._hidden[self._batch]
            reach(Failpoint.BEFORE_FORWARD, torch.OutOfMemoryError)
            if block is not None:
                layer = partial(self._layer, block, len(rows))
                left = len(self._batches) - self._batch if self._alike(block) else 0
                self._hidden[self._batch] = self._replays.run(layer, hidden, rows, left)
            elif self._group == 0:
                self._hidden[self._batch] = self._enter(rows)
            else:
                with self._recorder.passing(NOBODY):
                    hidden = self._head.hidden(hidden, len(rows))
                    self._recorder.loss(hidden, self._head, rows)
                self._hidden[self._batch] = None
            self._batch += 1

    def _alike(self, block: Block) -> bool:
        """Tell whether a block is called with the same for all sequences, but the stream."""
        given = all(argument.fixed for argument in block.arguments)
        return given and not any(place.module == block.module for place in self._wanted)

    @cached_property
    def _wanted(self) -> dict[Place, int]:
        """What blocks hand to later ones beside the stream, with the last that takes it."""
        return {
            place: number
            for number in range(len(self._anatomy.blocks))
            for _, place in ends.handed_on(self._anatomy, number)
        }

    def _layer(self, block: Block, count: int, hidden: Tensor) -> Tensor:
        number, handed = self._group - 1, self._handed[self._batch]
        changes: dict[ends.Key, Tensor] = {block.enters.key: hidden} | self._own[self._batch][
            number
        ]
        changes |= {key: handed[place] for key, place in ends.handed_on(self._anatomy, number)}
        args, kwargs = ends.put_in(self._calls[count][number], changes)
        output: Any = self._model.get_submodule(block.module)(*args, **kwargs)
        for place, last in self._wanted.items():
            if place.module == block.module:
                handed[place] = place.take((), {}, output)
            elif last == number:
                del handed[place]
        return block.leaves.take((), {}, output)

    def _enter(self, rows: range) -> Tensor:
        """Run the model up to its blocks; record what each would have been called with.

        Masks and rotary embeddings depend on the shape alone, since the texts have no padding. So
        they are recorded once for each number of rows, and what is made of the text for each.
        """
        ids = torch.from_numpy(self._recorder.ids[list(rows)].astype("int64"))
        with self._recorder.passing(rows, blocks=False):
            hidden, calls = ends.enter(self._model, self._anatomy, ids.to(self._engine.device))
        self._own[self._batch] = [
            ends.made_of_text(block, call)
            for block, call in zip(self._anatomy.blocks, calls, strict=True)
        ]
        known = self._calls.setdefault(len(rows), calls)
        if known is not calls and not self._compared:
            ends.check_fixed(self._anatomy, known, calls)
            self._compared = True
        return hidden

    def _report(self) -> None:
        read = self._loader.read_bytes + self._read_before
        self.rate.report(self._layouts[self._group].group.name, read)
