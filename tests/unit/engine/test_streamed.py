import re
import shutil
import threading
from collections import Counter
from contextlib import closing
from functools import partial

import pytest
import torch
from support import tiny
from support.hub import Fault, Hub
from support.running import ALPHAS, DELIMITER, IDS, hold, remote, stream, taken

from moe_outliers import failpoints, progress
from moe_outliers.checkpoint import download, headers
from moe_outliers.checkpoint.source import Folder
from moe_outliers.engine import dequantise, resident, streamed
from moe_outliers.recording.accumulator import Accumulator
from moe_outliers.recording.oracles import NotAsObservedError
from moe_outliers.recording.recorder import Recorder


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", [*tiny.FAMILIES, "gpt_oss-mxfp4"])
def test_streamed_equals_resident_bit_for_bit_from_disk_and_over_a_bad_line(
    name, dtype, micro_batch, tiny_checkpoint, tmp_path
):
    folder = reference = tiny_checkpoint(name)
    if name == "gpt_oss-mxfp4" and dtype == "float32":  # transformers 5.17 makes these bfloat16
        reference = tiny.dequantised(folder, tmp_path / "plain", torch.float32)
    wanted = hold(reference, dtype, micro_batch=micro_batch)
    assert stream(folder, dtype, micro_batch=micro_batch) == wanted
    with Hub(faults=[Fault("drop", r"safetensors", times=12)]) as server:
        source = remote(folder, server, tmp_path)
        assert stream(folder, dtype, micro_batch=micro_batch, source=source) == wanted
        assert server.faults[0].fired == 12


@pytest.mark.parametrize(
    "options",
    [
        streamed.Options(depth=0, readers=1),
        streamed.Options(depth=0, readers=8, chunk_bytes=1 << 10),
        streamed.Options(depth=1, readers=3, chunk_bytes=(1 << 12) + 2),
        streamed.Options(depth=9, readers=2, chunk_bytes=1 << 14),
    ],
)
@pytest.mark.parametrize("name", ["glm4_moe", "gpt_oss-mxfp4", "qwen3_moe-fp8"])
def test_how_the_bytes_travel_changes_no_byte(name, options, tiny_checkpoint, monkeypatch):
    folder = tiny_checkpoint(name)
    wanted = stream(folder)
    monkeypatch.setattr(dequantise, "PART_ELEMENTS", 1000)
    assert stream(folder, options=options) == wanted


@pytest.mark.parametrize("spare", [0, 100_000, 10**9])
def test_the_disk_budget_changes_no_byte_and_is_kept(spare, tiny_checkpoint, tmp_path, monkeypatch):
    folder = tiny_checkpoint("qwen3_next")
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    with closing(Folder(folder, headers.shards(folder))) as local:
        layouts = streamed.Streamed(local, device="cpu", dtype="auto").layouts
    least = max(sum(sizes[name] for name in layout.group.shards) for layout in layouts)
    assert least < sum(sizes.values()) / 2
    with Hub() as server:
        source = remote(folder, server, tmp_path, budget=least + spare)
        used = []
        monkeypatch.setattr(download, "reach", lambda point: used.append(source._cache.used()))
        assert stream(folder, source=source) == stream(folder)
    assert len(used) > 30
    assert max(used) <= least + spare


@pytest.mark.parametrize("name", tiny.QUANTISED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantised_weights_are_those_that_transformers_makes(
    name, dtype, tiny_checkpoint, tmp_path
):
    folder = tiny_checkpoint(name)
    plain = tiny.dequantised(folder, tmp_path / "plain", dtype)
    kind = str(dtype).removeprefix("torch.")
    assert stream(folder, kind) == hold(plain, kind)


def test_a_checkpoint_in_another_precision_is_cast_as_transformers_casts_it(
    tiny_checkpoint, tmp_path
):
    folder = shutil.copytree(tiny_checkpoint("olmoe"), tmp_path / "wide")
    random = torch.Generator().manual_seed(3)
    found = tiny.tensors(folder).items()
    wide = {k: v.float() + torch.rand(v.shape, generator=random) / 1000 for k, v in found}
    tiny.write(folder, wide)
    assert stream(folder, "bfloat16") == hold(folder, "bfloat16")
    assert stream(folder, "float32") == hold(folder, "float32")
    tiny.change_config(folder, dtype=None)
    assert stream(folder, "auto") == hold(folder, "auto") == hold(folder, "float32")


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_planted_super_expert_is_named_with_its_feature_and_position(
    name, tiny_checkpoint, tmp_path
):
    """One row of one expert's down projection, large: what it writes there, it alone writes."""
    folder, feature = shutil.copytree(tiny_checkpoint(name), tmp_path / "copy"), 37
    before = variables(folder)
    expert = int(abs(before["expert_max"][-1]).argmax())
    found, last = tiny.tensors(folder), len(before["residual_max"]) - 1
    for key, value in found.items():
        if re.search(rf"layers\.{last}\..*experts\.(\d+\.)?(down_proj|w2)(\.weight)?$", key):
            if value.ndim == 3:  # GPT-OSS: (expert, inner, feature)
                value[expert, :, feature] *= 3000
            elif f"experts.{expert}." in key:
                value[feature] *= 3000
    tiny.write(folder, found)
    after = variables(folder)
    raw = after["expert_raw_max"][-1]
    assert raw.argmax() == expert
    assert raw[expert] > 100 * before["expert_raw_max"][-1].max()
    assert after["expert_max_feature"][-1, expert] == feature
    position = after["expert_max_position"][-1, expert]
    assert expert in after["route"][-1, position]
    written = after["expert_max"][-1, expert]
    assert after["residual_top_feature"][-1, 0] == feature
    assert after["residual_top_position"][-1, 0] == position
    assert after["residual_top"][-1, 0] == pytest.approx(written, rel=0.05)


def variables(folder):
    """Run one sequence streamed; return its variables by name."""
    with closing(Folder(folder, headers.shards(folder))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="float32")
        recorder = Recorder(engine.model, IDS, DELIMITER, ALPHAS)
        list(engine.run(recorder, [0], micro_batch=1, progress=len))
        return recorder.result(0)


def test_some_rows_alone_are_the_same_as_among_all(tiny_checkpoint):
    folder = tiny_checkpoint("mixtral")
    for micro_batch in (1, 2):
        everything = stream(folder, micro_batch=micro_batch)
        some = stream(folder, micro_batch=micro_batch, wanted=[1, 4])
        assert {key: everything[key] for key in some} == some
        assert {row for row, _ in (key for key in some if isinstance(key, tuple))} == {1, 4}


@pytest.mark.fault(83, 84)
@pytest.mark.parametrize(
    "place", ["before_slots", "before_forward:1", "before_forward:8", "before_forward:20"]
)
def test_out_of_device_memory_less_is_read_ahead_and_no_byte_changes(
    place, tiny_checkpoint, monkeypatch
):
    folder = tiny_checkpoint("gpt_oss-mxfp4")
    wanted = stream(folder)
    monkeypatch.setattr(failpoints, "_reached", Counter())
    monkeypatch.setenv(failpoints.VARIABLE, f"{place}!")
    lines = []
    with closing(Folder(folder, headers.shards(folder))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="auto")
        assert taken(engine.model, engine.run) == wanted
        lines += engine.plan
    assert len(lines) == 1
    assert "out of device memory" in lines[0]
    assert "prefetch depth 1 -> 0" in lines[0]


@pytest.mark.fault(84)
@pytest.mark.parametrize("moment", [1, 5, 12])
def test_out_of_device_memory_while_statistics_are_kept_loses_none(
    moment, tiny_checkpoint, monkeypatch
):
    """What was held when memory ran out is kept at the next try."""
    folder, keep, calls = tiny_checkpoint("gpt_oss"), Accumulator.add, Counter()
    wanted = stream(folder)

    def scarce(self, scope, *rest):
        calls[scope] += 1
        if scope == "moe" and calls[scope] == moment:
            raise torch.OutOfMemoryError("none left")
        keep(self, scope, *rest)

    monkeypatch.setattr(Accumulator, "add", scarce)
    assert stream(folder) == wanted
    assert calls["moe"] > moment


@pytest.mark.fault(83)
def test_out_of_device_memory_with_nothing_read_ahead_is_an_error_with_the_way_out(
    tiny_checkpoint, monkeypatch
):
    monkeypatch.setattr(failpoints, "_reached", Counter())
    monkeypatch.setenv(failpoints.VARIABLE, "before_forward:3!")
    before = threading.active_count()
    with pytest.raises(ValueError, match=r"block 0.*a device with more memory"):
        stream(tiny_checkpoint("gpt_oss"), options=streamed.Options(depth=0), wanted=[0, 1])
    assert threading.active_count() == before


def test_a_failing_forward_leaves_no_thread_and_no_parameter_behind(tiny_checkpoint):
    folder, before = tiny_checkpoint("olmoe"), threading.active_count()
    with closing(Folder(folder, headers.shards(folder))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="auto")
        engine.model.model.layers[1].mlp.gate.forward = None
        with pytest.raises(TypeError):
            taken(engine.model, engine.run)
        assert all(p.is_meta for p in engine.model.parameters())
    assert threading.active_count() == before


def test_a_parameter_that_did_not_come_to_the_device_is_noticed(tiny_checkpoint):
    folder = tiny_checkpoint("olmoe")
    with closing(Folder(folder, headers.shards(folder))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="auto")
        engine.layouts[2].group.parameters.pop(3)
        with pytest.raises(ValueError, match=r"block 1: \S+ is on meta"):
            taken(engine.model, engine.run)


def test_progress_says_how_far_it_is(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(progress, "REPORT_S", 0.0)
    folder, lines = tiny_checkpoint("olmoe"), []
    with closing(Folder(folder, headers.shards(folder))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="auto")
        recorder = Recorder(engine.model, IDS, DELIMITER, ALPHAS)
        list(engine.run(recorder, [0], micro_batch=1, progress=lines.append))
    assert lines[0].startswith("prefetch depth 1: ")
    pattern = r"(embeddings|block \d|head) of 2: 0\.\d of 0\.\d GB, \d+\.\d\d GB/s, \d+ s left"
    assert [line for line in lines if re.fullmatch(pattern, line)][-1].startswith("head")


@pytest.mark.parametrize("way", ["streamed", "resident"])
def test_a_model_that_does_something_else_than_was_observed_stops_the_run(way, tiny_checkpoint):
    folder = tiny_checkpoint("qwen3_moe")

    def spoilt(model):
        norm = model.model.layers[0].post_attention_layernorm
        norm.register_forward_hook(lambda module, args, x: x + 0.125)
        return model

    with closing(Folder(folder, headers.shards(folder))) as source:
        if way == "streamed":
            engine = streamed.Streamed(source, device="cpu", dtype="float32")
            model, run = spoilt(engine.model), engine.run
        else:
            model = spoilt(resident.load(folder, device="cpu", dtype="float32"))
            run = partial(resident.run, model)
        with pytest.raises(NotAsObservedError, match=r"0\.post_attention_layernorm: does not ret"):
            taken(model, run)
        assert not any(inner._forward_pre_hooks for inner in model.model.layers.modules())
