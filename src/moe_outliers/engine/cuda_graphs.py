"""Captures a layer's forward pass once as a CUDA graph and replays it for every other micro-batch.

One sequence keeps a large GPU busy for less time than Python takes to queue its kernels. A graph
queues those of a layer, the hooks' included, by one call: the same kernels on other data, so the
same bits. A layer that cannot be captured is run without a graph.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_outliers.recording.recorder import Recorder

Forward = Callable[[Tensor], Tensor]

WORTH = 3
"""Capture only if at least this many micro-batches remain: for fewer it does not pay."""


class Replays:
    """Runs the layers of a model, one after the other; one for each pass through the model.

    Attributes:
        on: whether graphs are used; may be switched off at any time.
    """

    def __init__(self, recorder: Recorder, *, on: bool) -> None:
        self.on = on
        self._recorder = recorder
        self._known: set[Any] = set()
        self._kind: Any = None
        self._graph: Any = None
        self._pool: Any = None  # all graphs share it, one after the other; it belongs to a stream
        self._stream: Any = None
        self._input = self._output = torch.empty(0)
        self._seen: list[Any] = []

    def next_layer(self, kind: Any) -> None:
        """Begin with another layer; the last graph keeps the shared memory until the next is made.

        Args:
            kind: the same for layers that run the same code on tensors of the same shapes.
        """
        self._kind, self._seen = kind, []
        self._input = self._output = torch.empty(0)

    def run(self, forward: Forward, hidden: Tensor, rows: range, left: int) -> Tensor:
        """Run the layer.

        Args:
            forward: the layer.
            hidden: (row, position, feature), what it is called with.
            rows: the sequences.
            left: micro-batches, this one among them, that have not passed the layer yet.
        """
        known = (self._kind, hidden.shape) in self._known
        if self.on and known and self._input.shape != hidden.shape and left >= WORTH:
            self._capture(forward, hidden)
        if self.on and self._input.shape == hidden.shape:
            return self._replay(hidden, rows)
        with self._recorder.passing(rows):
            output = forward(hidden)
        # Captured only after a run without a graph: libraries set themselves up at their first use.
        if self._recorder.replayable:
            self._known.add((self._kind, hidden.shape))
        return output

    def _capture(self, forward: Forward, hidden: Tensor) -> None:
        """Record the kernels that the layer queues in a graph, without running them."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        graph, before = torch.cuda.CUDAGraph(), self._graph
        static_input = torch.empty_like(hidden)
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    with self._recorder.captured(len(hidden)) as seen:
                        output = forward(static_input)
                finally:
                    graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a library does that cannot be captured
            logging.warning("layers are run without CUDA graphs: %s", error)
            self.on = False
            return
        self._graph, self._seen = graph, seen
        self._input, self._output = static_input, output
        del before  # only now: the pool goes when no graph uses it

    def _replay(self, hidden: Tensor, rows: range) -> Tensor:
        """Run the captured kernels on other hidden states; return a copy of the output.

        The tensors that the hooks saw are overwritten by the next replay, so each is copied once:
        rows of the input are there already, as `hidden`, and rows of the output as the copy.
        """
        self._input.copy_(hidden)
        self._graph.replay()
        copies: dict[Any, Tensor] = {
            _place(row): own for row, own in zip(self._input, hidden, strict=True)
        }
        output = self._output.clone()
        copies |= {_place(row): own for row, own in zip(self._output, output, strict=True)}

        def copy(tensor: Tensor) -> Tensor:
            place = _place(tensor)
            if place not in copies:
                copies[place] = tensor.clone()
            return copies[place]

        self._recorder.replayed(self._seen, rows, copy)
        return output


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype
