"""Run tiny checkpoints, whole or streamed, from a folder or a loopback hub."""

import json
from contextlib import closing

import numpy as np
import torch
import transformers

from moe_outliers.checkpoint import headers, hub
from moe_outliers.checkpoint.config import quantisation
from moe_outliers.checkpoint.download import Shards
from moe_outliers.checkpoint.http_ranges import Ranges
from moe_outliers.checkpoint.hub import File
from moe_outliers.checkpoint.shard_cache import ShardCache
from moe_outliers.checkpoint.source import Folder
from moe_outliers.engine import resident, streamed, weight_map
from moe_outliers.engine.meta_model import dtype_of, empty_model
from moe_outliers.engine.slot_layout import Layout
from moe_outliers.recording.recorder import Recorder
from support.hub import COMMIT

ALPHAS = [3.0, 4.0, 5.0, 6.0, 8.0]
IDS = np.random.default_rng(0).integers(0, 128, (5, 64)).astype("int32")
DELIMITER = np.zeros(IDS.shape, dtype=bool)
DELIMITER[:, 5::9] = True


def taken(model, run, wanted=range(5), micro_batch=1, kernels=None):
    """Run sequences and return all their variables, as bytes."""
    recorder = Recorder(model, IDS, DELIMITER, ALPHAS, kernels)
    rows = list(run(recorder, list(wanted), micro_batch=micro_batch, progress=lambda line: None))
    found = {
        (row, name): (value.dtype.str, value.shape, value.tobytes())
        for row in rows
        for name, value in recorder.result(row).items()
    }
    norms = {name: value.tobytes() for name, value in recorder.norms().items()}
    recorder.close()
    return found | norms | {"norm dtypes": recorder.norm_dtypes}


def stream(folder, dtype="auto", options=None, source=None, device="cpu", **how):
    with closing(source or Folder(folder, headers.shards(folder))) as opened:
        engine = streamed.Streamed(opened, device=device, dtype=dtype, options=options)
        return taken(engine.model, engine.run, **how)


def hold(folder, dtype="auto", device="cpu", **how):
    model = resident.load(folder, device=device, dtype=dtype)
    return taken(model, lambda *args, **kw: resident.run(model, *args, **kw), **how)


def weights(folder):
    """Map a checkpoint to its model, and compute every parameter as the streamed engine does."""
    config = json.loads((folder / "config.json").read_text())
    index = headers.read_index(folder)
    model = empty_model(folder, dtype_of("auto", config, index), torch.device("cpu"))
    made = weight_map.parameters(model, index, quantisation(config, folder))
    layout = Layout(weight_map.Group("all", made))
    slot, work = (torch.zeros(n, dtype=torch.uint8) for n in (layout.slot_bytes, layout.work_bytes))
    for read in layout.reads(1 << 20):
        with (folder / read.shard).open("rb") as file:
            file.seek(read.start)
            data = torch.frombuffer(bytearray(file.read(read.stop - read.start)), dtype=torch.uint8)
        for start, place, length in read.copies:
            slot[place : place + length] = data[start : start + length]
    return {parameter.name: tensor.clone() for parameter, tensor in layout.parameters(slot, work)}


def loaded(folder):
    """Load a checkpoint with transformers, and return every parameter."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def remote(folder, server, tmp_path, **store):
    """Open a checkpoint that a loopback hub serves, as a source."""
    server.models["org/model"] = folder
    files = {
        path.name: File(len(data := path.read_bytes()), sha256=hub._sha256(data))
        for path in folder.iterdir()
    }
    names = headers.shards(folder)
    ranges = Ranges(server.url, "org/model", COMMIT, files, patience_s=2, pause_s=0.01)
    options = {"budget": 10**9, "progress": lambda line: None} | store
    listed = {name: files[name] for name in names}
    return Shards(
        ranges,
        folder,
        names,
        ShardCache(tmp_path / "store", listed, **options),
        progress=options["progress"],
        connections=3,
        chunk_bytes=20_000,
    )
