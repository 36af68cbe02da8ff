"""What a job's end proves: the kernel, the disk and the exception that ended it; no other words."""

import json
import subprocess
import sys

import pytest
from test_names import PACKAGE

from snakemake_executor_plugin_runpod.api.model import Offer
from snakemake_executor_plugin_runpod.failures import is_of_requirements, shortage
from snakemake_executor_plugin_runpod.needs import Needs
from snakemake_executor_plugin_runpod.remote.console import neutralise
from snakemake_executor_plugin_runpod.renting.money import BOOT_MIN, ENVIRONMENT_MIN, estimate
from snakemake_executor_plugin_runpod.renting.offers import candidates, price_list
from snakemake_executor_plugin_runpod.settings import ExecutorSettings

FRAMES = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    main()\n'
CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.\n"
CHAINED = "ValueError: first\n\nDuring handling another exception occurred:\n\n"
SNAKEMAKE = (
    "RuleException:\nCalledProcessError in file \"Snakefile\", line 3:\nCommand 'x' failed.\n"
)


@pytest.mark.parametrize(
    "text",
    [
        FRAMES + CUDA,
        f"[Sat Nov 28 04:00:00 2026]\nrule a:\n{FRAMES}{CUDA}{SNAKEMAKE}",
        FRAMES + CHAINED + FRAMES + CUDA,
        f"{FRAMES}RuntimeError: CUDA error: out of memory\n",
    ],
)
def test_the_exception_that_ended_a_job_proves_that_its_gpu_was_too_small(text):
    assert shortage({"oom_kills": 0, "full": False}, [text]) == "vram"


@pytest.mark.parametrize(
    "text",
    [
        f"{CUDA}retrying with batch 32: ok\nassertion failed\n",
        f"{FRAMES}{CUDA}retrying with batch 32\nValueError\n",
        f"{FRAMES}{CUDA}{FRAMES}ValueError: 3\n",
        "OSError: [Errno 28] No space left on device\nMemoryError\nsubprocess died with SIGKILL\n",
        "non-zero exit status 137\n",
        "",
    ],
)
def test_other_words_prove_nothing(text):
    for evidence in ({}, {"oom_kills": None, "full": False}, {"oom_kills": 0}):
        assert shortage(evidence, [text]) is None
    assert shortage({"oom_kills": 1}, [text]) == "memory"
    assert shortage({"full": True}, [text]) == "disk"


def test_pip_is_told_from_its_network():
    missing = "ERROR: No matching distribution found for no-such-package==1.0\n"
    assert is_of_requirements(missing)
    assert not is_of_requirements(f"WARNING: Retrying (Retry(total=4)) after {missing}")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"a\x1b[2Jb\n", b"a^[[2Jb\n"),
        (b"50%\r100%\x07\n\t", b"50%^M100%^G\n\t"),
        ("\x9b2J ü".encode(), "^[2J ü".encode()),
    ],
)
def test_control_characters_of_a_log_are_made_visible(tmp_path, raw, shown):
    path = tmp_path / "log"
    path.write_bytes(raw)
    neutralise(path)
    assert path.read_bytes() == shown


COUNT = """
import json, sys
listings = 0
def count(event, arguments):
    global listings
    listings += event in ("os.scandir", "os.listdir")
sys.addaudithook(count)
import agent, io
listings = 0
request = json.loads(sys.argv[1])
answer = agent.manifest(request)
first, listings = listings, 0
sys.stdout = io.TextIOWrapper(io.BytesIO())
files = [[e["product"], e["below"], e["size"]] for e in answer["entries"] if e["kind"] == "file"]
agent.get({**request, "files": files})
sent = len(sys.stdout.buffer.getvalue())
sys.stdout = sys.__stdout__
print(json.dumps([len(files), sent, first, listings]))
"""


def test_a_folder_of_many_files_is_listed_once_and_not_once_a_file(tmp_path):
    folder = tmp_path / "jobs/j"
    tree = folder / "root/tree"
    for number in range(10):
        (tree / f"{number}").mkdir(parents=True)
        for name in range(100):
            (tree / f"{number}/{name}").write_text("x")
    (folder / "spec.json").write_text('{"directory": "."}')
    done = subprocess.run(
        [sys.executable, "-c", COUNT, json.dumps({"job": "j", "products": ["tree"]})],
        cwd=PACKAGE / "pod",
        env={"SNAKEMAKE_RUNPOD_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    files, sent, of_manifest, of_get = json.loads(done.stdout)
    assert (files, sent) == (1000, 1000)
    assert of_manifest <= 12  # the folder and those in it
    assert of_get == 0


def test_an_estimate_comes_from_what_the_job_says_of_itself():
    fixed = BOOT_MIN[1] + ENVIRONMENT_MIN[1]
    assert estimate(Needs(runtime_min=720)).expected == fixed + 360
    assert estimate(Needs(runtime_min=720)).high > 720
    assert estimate(Needs(runtime_min=5, download_gb=1000)).expected == fixed + 5
    assert estimate(Needs(download_gb=75)).expected == fixed + 10 + 3


def kinds(settings=None, offers=None, **need):
    chosen = settings or ExecutorSettings(max_price=99)
    found = candidates(Needs(**need), chosen, offers or price_list()[1])
    return [candidate.gpu for candidate in found]


def test_every_size_of_gpu_has_a_kind_in_the_packaged_list():
    assert kinds(vram_gb=96)[0] == "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    assert kinds(vram_gb=192) == ["NVIDIA B300 SXM6 AC"]
    assert kinds(vram_gb=288) == ["NVIDIA B300 SXM6 AC"]
    assert len(price_list()[1]) > 30


def test_auto_takes_what_the_live_catalogue_has_and_nothing_that_it_denies():
    live = [
        Offer("NVIDIA Future 1", "F1", 64, 0.5, None, most=(2, None), cuda=("12.4", "13.0")),
        Offer("NVIDIA RTX A6000", "A6000", 48, 0.4, None, "NONE"),
        Offer("NVIDIA L40", "L40", 48, 0.3, None, cuda=("12.4",)),
        Offer("Tesla V100-SXM2-32GB", "V100", 32, 0.1, None),
        Offer("AMD Instinct MI300X OAM", "MI300X", 192, 0.1, None),
        Offer("NVIDIA H100 80GB HBM3 MIG 1g.40gb", "MIG", 40, 0.1, None),
    ]
    assert kinds(offers=live, vram_gb=24) == ["NVIDIA RTX A6000", "NVIDIA Future 1"]
    found = candidates(Needs(vram_gb=24), ExecutorSettings(max_price=99), live)
    assert [candidate.free for candidate in found] == [False, True]
    assert kinds(offers=live, vram_gb=24, gpus=3) == ["NVIDIA RTX A6000"]
    with pytest.raises(ValueError, match="no kind of GPU that may be chosen"):
        kinds(offers=live, vram_gb=100)
