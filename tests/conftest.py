"""What several tests share: small checkpoints, and one undisturbed run over them."""

import os
import signal
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import disks
import pytest
import yaml
from canaries import CANARIES, spilt
from hypothesis import settings
from support.faults import GROUPS as TITLES
from support.slice import ROOT, VERDICTS, Slice, build

signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and & leave them ignored,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which the programs under test would inherit

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")  # the same examples each time, however busy the machine

GROUPS = {
    "A": ["test_faults_api"],
    "B": ["test_faults_pods"],
    "C": ["test_faults_transfer", "test_faults_wire"],
    "D": ["test_faults_controller", "test_killing", "test_disk_full"],
    "E": [
        "test_http_ranges",
        "test_download",
        "test_headers",
        "test_streamed_faults",
        "test_tokenization",
    ],
    "F": ["test_streamed", "test_recorder", "test_verify"],
    "G": ["test_healing", "test_fuzz", "test_files"],
    "H": ["test_faults_money"],
}
"""Modules whose tests inject the faults of each group of tests/support/faults.py."""

seconds: Counter[str] = Counter()

TESTS = Path(__file__).parent

SHARED = {"demo", "undisturbed", "analysed"}
"""Fixtures that take long to make: all tests here that use one run in the same process."""

TORCH = [
    "unit/demo",
    "unit/engine",
    "unit/recording",
    "unit/checkpoint/test_headers.py",
    "unit/test_extract.py",
]
"""What `--quick` does not even import, since it imports torch."""


def pytest_addoption(parser):
    told = "only tests that start no process and import no torch: those of `make quick`"
    parser.addoption("--quick", action="store_true", help=told)


def pytest_configure(config):
    if config.getoption("--quick"):
        sys.addaudithook(_refuse)


def _refuse(event, arguments):
    """Hold every test of `--quick` to what the option promises."""
    if event == "subprocess.Popen" and arguments[0] not in {"git", "uname"}:  # h5py asks `uname`
        raise AssertionError("a test of `make quick` starts a process: mark it `waits`")
    if event == "import" and arguments[0] == "torch":
        raise AssertionError("a test of `make quick` imports torch: list it in TORCH")


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--quick") and any(collection_path == TESTS / name for name in TORCH):
        return True
    return None


@pytest.hookimpl(tryfirst=True)  # the scheduler of the processes reads the marks after it
def pytest_collection_modifyitems(items, config):
    for item in items:
        if TESTS in item.path.parents and (shared := SHARED.intersection(item.fixturenames)):
            item.add_marker(pytest.mark.xdist_group(min(shared)))
            item.add_marker(pytest.mark.waits)
    if config.getoption("--quick"):
        left_out = {"slow", "gpu", "waits"}
        chosen = [i for i in items if not left_out.intersection(m.name for m in i.iter_markers())]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def pytest_runtest_logreport(report):
    module = report.nodeid.partition(".py")[0].rpartition("/")[2]
    for group, modules in GROUPS.items():
        seconds[group] += report.duration if module in modules else 0


def pytest_terminal_summary(terminalreporter):
    for group, spent in sorted(seconds.items()):
        if spent:
            terminalreporter.write_line(f"faults of group {group}, {TITLES[group]}: {spent:.0f} s")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Slice:
    """The slice, run once to its end; tests copy it and never change it."""
    made = build(tmp_path_factory.mktemp("slice"))
    said = made(*VERDICTS, **CANARIES)
    assert said.code == 0, said.text
    assert not spilt(made.folder, said.text)
    return made


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Slice:
    """The demo, run once to its end as `make demo` runs it; tests copy it, never change it."""
    folder = tmp_path_factory.mktemp("demo")
    miniatures = [sys.executable, "-m", "moe_outliers.demo.miniatures", str(folder / "models")]
    subprocess.run(miniatures, check=True, capture_output=True)
    table = (ROOT / "config/demo.tsv").read_text().replace("demo/models", str(folder / "models"))
    (folder / "demo.tsv").write_text(table)
    overlay = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay | {"table": f"{folder}/demo.tsv"}))
    (folder / "run").mkdir()
    made = Slice(folder / "run", folder / "overlay.yaml")
    said = made("--report", "report.html", "--report-after-run", **CANARIES)
    assert said.code == 0, said.text
    assert not spilt(made.folder, said.text)
    return made


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Give a tiny checkpoint by its name in tests/support/tiny.py; nobody writes to it."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def get(name: str) -> Path:
        if name not in made:
            from support import tiny

            made[name] = tiny.make(name, root / name)
        return made[name]

    return get


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB of its own."""
    with disks.small(tmp_path / "disk") as place:
        yield place
