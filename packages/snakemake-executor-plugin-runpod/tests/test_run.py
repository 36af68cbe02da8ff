"""A whole run by the literal `snakemake --profile runpod`."""

import getpass
import json
import re
import shutil
import socket
import subprocess
import sys
import venv
from pathlib import Path

import psutil
import pytest
from rig import wait_until

from snakemake_executor_plugin_runpod.context import Context
from snakemake_executor_plugin_runpod.ledger import Ledger
from snakemake_executor_plugin_runpod.limits import Limits
from snakemake_executor_plugin_runpod.renting.pods import Node
from snakemake_executor_plugin_runpod.settings import ExecutorSettings

HERE = Path(__file__).parent


def test_a_run_ends_with_results_at_home_and_no_pod(undisturbed):
    made = undisturbed.digests()
    assert set(made) == {"report.json", *(f"counts/alpha/0{n}.json" for n in range(3))}
    found = undisturbed.account.change()
    assert not found["alive"]
    assert len(found["pods"]) == 1
    assert found["calls"]["create"] == 1
    assert not undisturbed.leftovers()
    assert (undisturbed.folder / "logs/alpha.tsv").read_text().startswith("s\t")


def test_the_jobs_process_knows_its_pod_and_its_price(undisturbed):
    (pod,) = undisturbed.account.pods
    assert f"pod {pod['id']} at {pod['rate']:g}" in undisturbed.log()


def test_the_estimate_equals_the_bill_within_five_percent(undisturbed):
    spent = undisturbed.said.text.rpartition("total $")[2].split()[0]
    leases = [e for e in undisturbed.ledger() if e["event"] in ("intent", "gone")]
    seconds = leases[1]["ended"] - leases[0]["time"]
    (pod,) = undisturbed.account.pods
    assert seconds == pytest.approx(pod["seconds"], rel=0.05)
    assert float(spent) == pytest.approx(undisturbed.account.bill, rel=0.05, abs=1e-4)


def test_nothing_to_be_done_rents_nothing_and_needs_no_key(undisturbed):
    before = undisturbed.account.calls
    said = undisturbed(RUNPOD_API_KEY="")
    assert said.code == 0, said.text
    assert "Nothing to be done" in said.text
    assert undisturbed.account.calls == before


@pytest.mark.slow
def test_only_the_missing_part_is_made_and_the_others_are_not_sent_back(project, undisturbed):
    said = project()
    assert said.code == 0
    part = project.folder / "counts/alpha/01.json"
    kept = project.folder / "counts/alpha/00.json"
    before = kept.stat().st_ino
    part.unlink()
    said = project()
    project.ends_like(undisturbed, said, pods=2)
    assert "part 0 is there" in project.log()
    assert "part 1 was made" in project.log()
    assert kept.stat().st_ino == before


@pytest.mark.slow
def test_results_in_another_folder(project, undisturbed):
    said = project("--directory", "elsewhere/deep", "--configfile", "config.yaml")
    assert said.code == 0, said.text
    made = project.folder / "elsewhere/deep"
    for name in ("report.json", "counts/alpha/00.json", "logs/alpha.log"):
        assert (made / name).is_file()
    assert (made / "report.json").read_bytes() == (undisturbed.folder / "report.json").read_bytes()
    assert not project.account.alive


@pytest.mark.slow
def test_settings_outside_of_the_repository_travel_at_their_relative_place(project, tmp_path):
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"texts": ["beta", "gamma"], "parts": 2}))
    said = project("--configfile", str(overlay))
    assert said.code == 0, said.text
    assert (project.folder / "counts/gamma/01.json").is_file()
    assert len(project.account.pods) == 2


@pytest.mark.slow
def test_a_table_outside_of_the_repository_is_missed_before_a_pod_is_rented(project, tmp_path):
    (tmp_path / "models.tsv").write_text("alpha\n")
    snakefile = project.folder / "Snakefile"
    reads = f"table = open({str(tmp_path / 'models.tsv')!r}).read()\n\n"
    snakefile.write_text(reads + snakefile.read_text())
    project.rehearse()
    said = project()
    assert said.code == 1
    assert f"{tmp_path / 'models.tsv'} would not be on the pod" in said.text
    assert not project.account.pods


@pytest.mark.slow
def test_without_git_the_code_must_be_named(project, undisturbed):
    shutil.rmtree(project.folder / ".git")
    project.rehearse()
    said = project()
    assert said.code == 1
    assert "src would not be on the pods" in said.text
    assert "set --runpod-stage src" in said.text
    assert "localrule text" not in said.text
    said = project("--runpod-stage", "src")
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["sdk", "rest-v2"])
def test_either_transport(project, undisturbed, transport):
    said = project("--runpod-api", transport)
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.slow
def test_a_retired_api_is_left_for_the_new_one(project, undisturbed):
    """By which pods can end themselves then, or they are refused with the reason."""
    project.account.change(retired=True)
    said = project("--runpod-api", "auto")
    assert said.code == 1
    assert "it could not end itself" in said.text
    assert "'graphql': 'refused: 410 " in said.text
    assert "see --runpod-allow-no-switch" in said.text
    assert not project.account.alive
    project.account.change(rest_for_pods=True)
    run = project.start(*project.slow(60), "--runpod-api", "auto", "--runpod-grace", "0.05")
    wait_until(lambda: any(e.get("phase") == "running" for e in project.ledger_so_far()), 60)
    run.kill()
    run.communicate()
    wait_until(lambda: not project.account.alive)
    project.ends_like(undisturbed, project("--configfile", "config.yaml", "--runpod-api", "auto"))


@pytest.mark.slow
def test_several_jobs_at_a_time_share_the_listings(project):
    texts = ["alpha", "beta", "gamma", "delta"]
    said = project("--config", f"texts={json.dumps(texts)}")
    assert said.code == 0, said.text
    found = project.account.change()
    assert len(found["pods"]) == 4
    assert found["peak"] > 1
    assert not found["alive"]


CHECKPOINT = """
localrules: all, list

def wanted(wildcards):
    return f"made/{open(checkpoints.list.get().output[0]).read().strip()}.txt"

rule all:
    input: wanted

checkpoint list:
    output: "list.txt"
    shell: "echo one > {output}"

rule make:
    output: "made/{name}.txt"
    resources: vram_gb=16, disk_gb=20, min_memory_gb=4, runtime=10
    shell: "echo {wildcards.name} > {output}"
"""


@pytest.mark.slow
def test_jobs_behind_a_checkpoint_get_a_pod_too(project):
    """At the start none of them is known."""
    (project.folder / "Snakefile").write_text(CHECKPOINT)
    project.commit()
    said = project()
    assert said.code == 0, said.text
    assert (project.folder / "made/one.txt").read_text() == "one\n"
    assert len(project.account.pods) == 1
    assert not project.account.alive


COSTS = """
from snakemake_executor_plugin_runpod import costs

costs.show(workflow)
localrules: all

rule all:
    input: "d.txt", "b.txt", "made"

rule b:
    output: "b.txt"
    resources: runtime=720, disk_gb=265
    shell: "sleep 1"

rule c:
    output: "c{i}.txt"
    group: "g"
    resources: runtime=60
    shell: "sleep 1"

rule d:
    input: expand("c{i}.txt", i=range(3))
    output: "d.txt"
    group: "g"
    resources: runtime=60
    shell: "sleep 1"

checkpoint make:
    output: directory("made")
    shell: "sleep 1"
"""


def test_a_dry_run_counts_a_group_once_the_disk_and_the_time_that_rules_name(project):
    """What it cannot know it mentions: what is behind a checkpoint, and jobs without a time."""
    (project.folder / "Snakefile").write_text(COSTS)
    said = project("-n", RUNPOD_API_KEY="", HOME="/nonexistent")
    assert "What the 3 remote jobs would cost" in said.text, said.text
    rows = {line.split()[0]: line.split() for line in said.text.splitlines() if line[:2] == "  "}
    low, expected, high = map(float, rows["b"][-3:])
    hourly = 0.25 + 265 * 0.10 / 730
    assert float(rows["b"][-6]) == pytest.approx(hourly, abs=0.006)
    assert expected == pytest.approx(hourly * (7 + 360) / 60, abs=0.01)
    assert high == pytest.approx(hourly * (23 + 720) / 60, abs=0.01)
    assert low < expected
    assert [name for name in rows if name in ("c", "d")] == ["c"]  # "c 0 and 3 more"
    assert int(rows["c"][-4]) == 7 + 4 * 60 / 2  # Snakemake adds their hours up
    assert "Not counted: jobs that are known only after the checkpoint make." in said.text
    assert "1 of them say nothing of their time: give them a `runtime`." in said.text


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("root@[::1]:2222", "::1", 2222),
        ("me@host", "host", 22),
        ("a@192.0.2.7:22", "192.0.2.7", 22),
    ],
)
def test_a_node_may_have_an_address_of_ipv6(tmp_path, address, host, port):
    context = Context(ExecutorSettings(), Ledger(tmp_path), Limits(), print, 1)
    endpoint = Node(context, address)._endpoint
    assert (endpoint.host, endpoint.port) == (host, port)
    for wrong in ("host:22", "root@::1", "root@[::1]x", "root@host:ssh"):
        with pytest.raises(ValueError, match="must be like"):
            Node(context, wrong)


@pytest.mark.slow
def test_never_more_pods_than_allowed(project):
    texts = ["alpha", "beta", "gamma"]
    said = project("--config", f"texts={json.dumps(texts)}", "--runpod-max-pods", "1")
    assert said.code == 0, said.text
    assert len(project.account.pods) == 3
    assert project.account.peak == 1


SSHD = """Port {port}
ListenAddress 127.0.0.1
HostKey {home}/host
AuthorizedKeysFile {home}/.ssh/id_ed25519.pub
PidFile none
StrictModes no
UsePAM no
SetEnv HOME={home} SNAKEMAKE_RUNPOD_ENVIRONMENT={python}
"""


@pytest.fixture
def node(tmp_path):
    """A machine with OpenSSH's own server, whose shell would choose another Python at a login."""
    if not Path("/usr/sbin/sshd").exists():
        pytest.skip("there is no /usr/sbin/sshd: install openssh-server")
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".bashrc").write_text("PATH=/usr/bin:/bin\n")
    for key in (home / "host", home / ".ssh/id_ed25519"):
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", key], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = SSHD.format(port=port, home=home, python=sys.prefix)
    (home / "settings").write_text(settings)
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", home / "settings"])
    public = (home / "host.pub").read_text()
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    yield home, f"{getpass.getuser()}@127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.mark.slow
def test_on_a_machine_that_is_there_already(project, undisturbed, node):
    """Nothing is asked of RunPod, and no key is needed; the machine is left as it was."""
    home, address = node
    words, alone = ["--runpod-node", address], {"HOME": str(home), "RUNPOD_API_KEY": ""}
    said = project(*words, **alone)
    assert said.code == 0, said.text
    assert project.digests() == undisturbed.digests()
    assert not project.account.calls
    assert not list((home / ".snakemake-runpod/jobs").iterdir())
    (home / ".ssh/known_hosts").unlink()
    (project.folder / "counts/alpha/01.json").unlink()
    said = project(*words, **alone)
    assert said.code == 1
    assert f"ssh -p {address.rpartition(':')[2]} " in said.text
    assert "must work without questions" in said.text


@pytest.mark.slow
def test_what_an_earlier_run_began_on_a_machine_is_ended_there_if_it_is_wanted_anew(project, node):
    """The machine is not given back when the controller is killed: the job goes on there."""
    home, address = node
    words, alone = ["--runpod-node", address], {"HOME": str(home), "RUNPOD_API_KEY": ""}
    run = project.start(*project.slow(3), *words, **alone)
    wait_until(lambda: any(e.get("phase") == "running" for e in project.ledger_so_far()))
    run.kill()
    run.communicate()
    (folder,) = (home / ".snakemake-runpod/jobs").iterdir()
    first = (folder / "pid").read_text()
    said = project(*project.slow(3), *words, "--forcerun", "count", **alone)
    assert said.code == 0, said.text
    assert "its job was started before" not in said.text
    assert not psutil.pid_exists(int(first.split()[0]))


@pytest.mark.fault(32)
@pytest.mark.slow
def test_a_failed_job_brings_its_log_and_what_it_had_finished(project, undisturbed):
    project.variables["PROBE"] = "1"
    said = project(*project.overlay(count={"fail": "2", "message": "no such letter"}))
    assert said.code == 1
    assert "part 2 failed: no such letter" in said.text
    assert (project.folder / "counts/alpha/01.json").is_file()
    assert not (project.folder / "counts/alpha/02.json").exists()
    assert "no such letter" in project.log()
    assert not project.account.alive
    said = project("--configfile", "config.yaml")
    project.ends_like(undisturbed, said, pods=2)
    assert "part 0 is there" in project.log()


SCIENCE = [
    "datasets",
    "h5py",
    "matplotlib",
    "moe_outliers",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "torch",
    "xarray",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An environment of its own with nothing but the wheel, and what it requires."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    _pip(python, "wheel", "--no-deps", "--wheel-dir", folder, HERE.parent)
    (wheel,) = folder.glob("*.whl")
    pins = HERE.parents[2] / "envs/constraints.txt"
    _pip(python, "install", "--no-compile", *(["-c", pins] if pins.exists() else []), wheel)
    return python


def _pip(python, *words):
    done = subprocess.run(
        [python, "-m", "pip", *words, "--quiet"], capture_output=True, text=True, check=False
    )
    if done.returncode and re.search("No matching distribution|connection", done.stderr, re.I):
        pytest.skip(f"no index of packages here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_foreign_workflow_needs_the_wheel_alone(project, undisturbed, plain):
    """No science, and no package of RunPod's: then its API is asked by REST v2."""
    code = "import importlib.util as i, sys; print([n for n in sys.argv[1:] if i.find_spec(n)])"
    words = [plain, "-c", code, *SCIENCE, "runpod"]
    found = subprocess.run(words, cwd="/", capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    project.python = plain
    project.rehearse()
    project.ends_like(undisturbed, project("--runpod-api", "auto"), pods=1)
    doctor = [plain, "-m", "snakemake_executor_plugin_runpod", "doctor"]
    said = subprocess.run(
        doctor,
        cwd=project.folder,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "accepted (rest-v2)" in said.stdout
    assert said.returncode == 0, said.stdout
    said = project("--forceall", "--runpod-api", "sdk")
    assert said.code == 1
    assert "install this plugin with its extra `sdk`" in said.text


@pytest.mark.slow
def test_a_foreign_workflow_imports_nothing_of_this_projects_science(
    project, undisturbed, tmp_path
):
    """Here, on the pods and in the rehearsal, importing moe_outliers or torch fails."""
    for name in ("moe_outliers", "torch"):
        (tmp_path / "without" / name).mkdir(parents=True)
        (tmp_path / "without" / name / "__init__.py").write_text("raise ImportError('not here')\n")
    project.rehearse()
    path = f"{tmp_path / 'without'}:{project.folder / 'src'}"
    said = project(PYTHONPATH=path)
    project.ends_like(undisturbed, said, pods=1)


def test_importing_the_plugin_imports_nothing_heavy():
    code = (
        "import snakemake_executor_plugin_runpod, sys;"
        "print(sorted({'runpod', 'torch', 'asyncssh', 'httpx', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
