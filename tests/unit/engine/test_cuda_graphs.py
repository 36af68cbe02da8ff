"""CUDA graphs of the layers: the same bits, and a way on where they cannot be had."""

from collections import Counter
from contextlib import closing

import pytest
import torch
from support import tiny
from support.running import stream, taken

from moe_outliers.checkpoint import headers
from moe_outliers.checkpoint.source import Folder
from moe_outliers.engine import cuda_graphs, streamed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def calls(monkeypatch):
    """Count what was captured and what was replayed."""
    counted = Counter()
    for name in ("_capture", "_replay"):
        method = getattr(cuda_graphs.Replays, name)

        def spy(self, *args, method=method, name=name):
            counted[name] += 1
            return method(self, *args)

        monkeypatch.setattr(cuda_graphs.Replays, name, spy)
    return counted


@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("name", [*tiny.FAMILIES, "gpt_oss-mxfp4"])
def test_replayed_layers_give_the_bits_of_layers_run_one_by_one(
    name, micro_batch, tiny_checkpoint, calls, monkeypatch
):
    folder = tiny_checkpoint(name)
    monkeypatch.setattr(cuda_graphs, "WORTH", 2)
    replayed = stream(folder, device="cuda", micro_batch=micro_batch)
    assert calls["_capture"] > 0
    assert calls["_replay"] >= calls["_capture"]
    monkeypatch.setattr(cuda_graphs, "WORTH", 10**9)
    calls.clear()
    assert stream(folder, device="cuda", micro_batch=micro_batch) == replayed
    assert not calls


def _unwilling(error):
    """Do nothing, but while a graph is captured."""

    def hook(*_):
        if torch.cuda.is_current_stream_capturing():
            if error is not None:
                raise error
            torch.cuda.current_stream().synchronize()

    return hook


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(
    ("error", "plan"), [(None, 0), (torch.OutOfMemoryError("none left"), 1)], ids=["sync", "memory"]
)
def test_layers_that_cannot_be_captured_are_run_one_by_one(
    block, error, plan, tiny_checkpoint, calls
):
    folder = tiny_checkpoint("qwen3_moe")
    wanted = stream(folder, device="cuda")
    calls.clear()
    with closing(Folder(folder, headers.shards(folder))) as source:
        engine = streamed.Streamed(source, device="cuda", dtype="auto")
        engine.model.model.layers[block].mlp.register_forward_hook(_unwilling(error))
        assert taken(engine.model, engine.run) == wanted
    assert calls["_capture"] == block + 1
    assert len(engine.plan) == plan
    assert all("no graphs" in line for line in engine.plan)
