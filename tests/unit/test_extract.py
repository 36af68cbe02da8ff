"""The extraction as the rule runs it: from the hub, in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from canaries import spilt
from support import tiny, zoo
from support.hub import COMMIT, Fault, Hub
from support.running import ALPHAS, DELIMITER, IDS

from moe_outliers import tokenization
from moe_outliers.recording.observed import observe
from moe_outliers.run_model import refuse_other_sites
from moe_outliers.storage import parquet, receipts, statistics_file

TOKEN = "hf_" + "y" * 30
PROGRAM = """
import sys
from pathlib import Path
from moe_outliers.storage import receipts
from moe_outliers.extract import Task, extract
from moe_outliers.run_model import Options
engine, disk, out, revision, folder, repo = sys.argv[1:]
identity = {"repo": repo, "revision": revision, "settings": "0" * 64}
expected = receipts.expectations("tiny", identity | {"sequences": 5, "batch_size": 2})
files = [(Path(out, f"{e.batch}.nc"), Path(out, f"{e.batch}.json")) for e in expected]
pairs = [receipts.Pair(*paths, e) for paths, e in zip(files, expected, strict=True)]
options = Options("cpu", "auto", 2, ALPHAS, engine=engine, disk_bytes=int(disk))
task = Task(Path(folder) if folder else None, Path("tokens.parquet"), pairs, options)
try:
    extract(task, lambda line: print(line, flush=True))
except ValueError as error:
    sys.exit(f"error: {error}")
""".replace("ALPHAS", repr(ALPHAS))


RECORD = """
import moe_outliers as mo
from moe_outliers.storage import parquet, statistics_file
tokens = parquet.read("tokens.parquet")
data = mo.record("org/model", tokens, device="cpu", alphas=ALPHAS, micro_batch=2, name="tiny")
statistics_file.write(data, "01.nc", [2, 3])
print(data.attrs["revision"])
""".replace("ALPHAS", repr(ALPHAS))


@pytest.fixture
def tokens(tmp_path):
    rows = [
        {
            "sequence": number,
            "ids": ids.tolist(),
            "ends": list(range(len(ids))),
            "delimiter": mask.tolist(),
            "document": "d",
            "text_bytes": 64,
            "text_sha256": "0" * 64,
            "ids_sha256": tokenization.ids_sha256(ids.tolist()),
        }
        for number, (ids, mask) in enumerate(zip(IDS, DELIMITER, strict=True))
    ]
    parquet.write(
        pa.Table.from_pylist(rows, schema=tokenization.SCHEMA), tmp_path / "tokens.parquet"
    )
    return tmp_path


def extract(work, out, *, engine="streamed", disk=10**9, folder="", server=None, **environment):
    """Run an extraction; return its status and what it printed."""
    hub = server.environment(work / "hf") if server else {}
    revision, repo = (COMMIT, "org/model") if server else ("local", str(folder))
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, engine, str(disk), str(out), revision, str(folder), repo],
        cwd=work,
        env=os.environ | hub | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.fault(98)
def test_from_the_hub_the_statistics_are_those_of_the_folder_and_nothing_is_left(
    tiny_checkpoint, tokens
):
    folder = tiny_checkpoint("qwen3_next")
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    faults = [Fault("drop", r"\.safetensors$", times=5), Fault("flip", r"index\.json", times=1)]
    with Hub(models={"org/model": folder}, faults=faults, token=TOKEN) as server:
        done = extract(tokens, "hub", server=server, disk=sum(sizes) * 2 // 3, HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        assert [fault.fired for fault in faults] == [5, 1]
        assert set(server.tokens) == {f"Bearer {TOKEN}"}
        named = subprocess.run(
            [sys.executable, "-c", RECORD],
            cwd=tokens,
            env=os.environ | server.environment(tokens / "hf") | {"HF_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            check=True,
        )
    assert named.stdout.strip() == COMMIT  # of the branch main, which `mo.record` was not told
    assert (tokens / "01.nc").read_bytes() == (tokens / "hub/01.nc").read_bytes()
    assert not spilt(tokens, done.stdout + done.stderr + named.stdout + named.stderr, TOKEN)
    done = extract(tokens, "disk", folder=folder, engine="resident")
    assert done.returncode == 0, done.stderr
    for batch in ("00", "01", "02"):
        ours, theirs = (receipts.read(tokens / way / f"{batch}.json") for way in ("hub", "disk"))
        assert (ours.dtype, ours.plan) == ("bfloat16", [])
        assert ours.checkpoint is None
        assert theirs.checkpoint is not None
        found = _variables(tokens / "hub" / f"{batch}.nc")
        assert found == _variables(tokens / "disk" / f"{batch}.nc")
    store = tokens / "hf/moe-outliers/org--model" / COMMIT
    assert {path.suffix for path in store.iterdir() if path.suffix != ".json"} == {""}
    assert not list((tokens / "hf").rglob("*.safetensors"))


def _variables(path):
    found = statistics_file.read(path)
    return {name: value.values.tobytes() for name, value in found.variables.items()}


def test_sequences_beyond_the_models_context_are_refused(tiny_checkpoint, tokens):
    folder = shutil.copytree(tiny_checkpoint("olmoe"), tokens / "short")
    tiny.change_config(folder, max_position_embeddings=63)
    done = extract(tokens, "disk", folder=folder)
    assert done.returncode == 1
    assert "sequences of 64 tokens, but the model's context is 63" in done.stderr
    assert not list(tokens.glob("disk/*"))


@pytest.mark.fault(73)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("401", "/api/", times=99, method="any"), "is gated: accept its licence"),
        (Fault("404", "/api/", times=99, method="any"), "no repository org/model"),
        (Fault("flip", r"config\.json", times=9), "config.json came damaged"),
        (Fault("404", r"\.safetensors$", times=99), "has no model-"),
    ],
)
def test_what_the_hub_refuses_is_one_message(fault, message, tiny_checkpoint, tokens):
    with Hub(models={"org/model": tiny_checkpoint("olmoe")}, faults=[fault]) as server:
        done = extract(tokens, "hub", server=server)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tokens.glob("hub/*"))


def test_a_model_in_the_cache_of_the_hubs_own_client_is_used_where_it_is(tiny_checkpoint, tokens):
    with Hub(models={"org/model": tiny_checkpoint("mixtral")}) as server:
        program = (
            f"import huggingface_hub as h; h.snapshot_download('org/model', revision={COMMIT!r})"
        )
        environment = os.environ | server.environment(tokens / "hf")
        subprocess.run([sys.executable, "-c", program], env=environment, check=True)
        shards = {name for name in server.bytes_sent if name.endswith(".safetensors")}
        server.bytes_sent.clear()
        done = extract(tokens, "hub", server=server)
        assert done.returncode == 0, done.stderr
        assert all(server.bytes_sent[name] <= 1 << 20 for name in shards)  # headers alone
        assert len(list(Path(tokens / "hf").rglob("snapshots/*/*.safetensors"))) == len(shards)


def test_a_model_without_experts_has_statistics_without_any(tokens):
    zoo.build("llama").save_pretrained(tokens / "dense")
    done = extract(tokens, "disk", folder=tokens / "dense")
    assert done.returncode == 0, done.stderr
    found = statistics_file.read(tokens / "disk/00.nc")
    assert found.route.shape == (2, 0, 64, 0)
    assert found.router_entropy.shape == (2, 0)
    assert found.attrs["router_scores"] == "none"
    assert list(found.site_mixer.values[:2]) == ["attention", "mlp"]
    assert found.x_count.values.any()


@pytest.mark.parametrize(
    ("name", "sites"), [("mamba", "attn_in"), ("longcat_flash", "attn_in, mlp_in, attn_in, mlp_in")]
)
def test_blocks_with_other_sites_than_the_metrics_know_are_refused_before_they_are_run(name, sites):
    with pytest.raises(ValueError, match=f"block 0 of {name} has the sites {sites}; metrics are"):
        refuse_other_sites(observe(zoo.outline(name)))
