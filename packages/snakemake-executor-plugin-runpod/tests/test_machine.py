"""What a machine tells about itself, asked as programs ask; what is unknown refuses nothing."""

import shutil
import subprocess

import pytest
from emulator.pod import tools
from test_names import on_a_pod

from snakemake_executor_plugin_runpod.needs import Needs
from snakemake_executor_plugin_runpod.remote.inspection import fault, unknown, version

NEED = Needs(gpus=1, vram_gb=24, disk_gb=20, memory_gb=8)
FACTS = """
import json, sys
from pathlib import Path
import machine
print(json.dumps({
    "gpus": machine.gpus(), "cuda": machine.cuda(), "disk_free_gb": machine.disk_free_gb(Path("/")),
    "memory_gb": machine.memory_gb({}),
}))
"""

OLD_XML = "<nvidia_smi_log><driver_version>580.95</driver_version><cuda_version>13.0</cuda_version>"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Give a machine with tools of its own; return a function that asks it for facts."""

    def make(gpus=(("NVIDIA L4", 24 * 1024),), cuda="13.4", disk_gb=30.0):
        tools(tmp_path / "bin", [list(gpu) for gpu in gpus], cuda, disk_gb)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))
        return tmp_path

    return make


def test_a_driver_later_than_610_tells_its_cuda_version(machine):
    machine()
    facts = on_a_pod(FACTS)
    assert facts["cuda"] == "13.4"
    assert facts["gpus"] == [{"name": "NVIDIA L4", "memory_mib": 24576, "driver": "615.71.09"}]
    assert fault(facts, NEED, "12.8") is None
    assert not unknown(facts, NEED)
    assert fault(facts, NEED, "13.5") == "its driver supports CUDA 13.4, 13.5 is needed"


def test_an_earlier_driver_tells_it_too(machine):
    program = machine() / "bin/nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{OLD_XML}</nvidia_smi_log>'\n")
    assert on_a_pod(FACTS)["cuda"] == "13.0"


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_the_drivers_own_library_is_asked_first(machine):
    folder = machine()
    source = folder / "cuda.c"
    source.write_text("int cuDriverGetVersion(int *version) { *version = 12080; return 0; }\n")
    words = ["cc", "-shared", "-fPIC", "-o", str(folder / "lib/libcuda.so.1"), str(source)]
    subprocess.run(words, check=True)
    assert on_a_pod(FACTS)["cuda"] == "12.8"


@pytest.mark.parametrize(
    "broken",
    [
        "#!/bin/sh\nexit 127\n",
        f"#!/bin/sh\necho '{OLD_XML}'\n",  # XML that is cut
        "#!/bin/sh\necho 'NVIDIA-SMI 700  User CUDA: 15.0'\n",
        "#!/bin/sh\necho 'NVIDIA L4, 24576, 700.1, another column'\n",
    ],
    ids=["it fails", "half an answer", "words that nobody knows", "a column more"],
)
def test_what_nobody_can_tell_is_unknown_and_refuses_nothing(machine, broken):
    program = machine() / "bin/nvidia-smi"
    program.write_text(broken)
    facts = on_a_pod(FACTS)
    assert fault(facts, NEED, "12.8") is None
    assert unknown(facts, NEED)[:3] == ["GPUs", "CUDA version", "vram"]


@pytest.mark.parametrize("status", [6, 8, 9, 14, 15, 16, 18])
def test_a_gpu_that_is_known_not_to_work_is_refused(machine, status):
    program = machine() / "bin/nvidia-smi"
    program.write_text(f"#!/bin/sh\necho 'GPU is lost'\nexit {status}\n")
    assert fault(on_a_pod(FACTS), NEED, "12.8") == "0 GPUs that work, 1 were rented"


def test_one_gpu_that_is_known_to_be_too_small_is_refused_whatever_the_others_are(machine):
    machine(gpus=(("NVIDIA L4", 8000), ("NVIDIA GB10", "[N/A]")))
    assert fault(on_a_pod(FACTS), NEED, "12.8") == "8 GB of vram, 24 are needed"


def test_memory_that_the_driver_does_not_tell_is_unknown(machine):
    """GPUs that share the host's memory answer [N/A]."""
    machine(gpus=(("NVIDIA GB10", "[N/A]"),), disk_gb=None)
    facts = on_a_pod(FACTS)
    assert facts["gpus"][0]["memory_mib"] is None
    assert fault(facts, NEED, "12.8") is None
    assert unknown(facts, NEED) == ["vram", "disk"]


def test_no_gpu_is_known_and_refused(machine):
    machine(gpus=())
    assert on_a_pod(FACTS)["gpus"] == []
    assert fault(on_a_pod(FACTS), NEED, "12.8") == "0 GPUs that work, 1 were rented"


def test_nothing_at_all_is_known_of_a_machine_that_says_nothing():
    assert fault({}, NEED, "12.8") is None
    assert unknown({}, NEED) == ["GPUs", "CUDA version", "vram", "disk", "memory"]
    assert version(None) is None
    assert version("13") is None


@pytest.mark.slow
def test_a_job_runs_on_a_machine_that_tells_little(project, undisturbed):
    faults = [
        {"on": "pod", "kind": "cuda", "value": None},
        {"on": "pod", "kind": "disk", "value": None},
        {"on": "pod", "kind": "gpu", "value": [["NVIDIA GB10", "[N/A]"]]},
    ]
    project.account.change(faults=faults)
    said = project()
    project.ends_like(undisturbed, said, pods=1)
    assert "its machine does not tell its CUDA version, vram, disk: it is used" in said.text
