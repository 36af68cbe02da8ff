"""`moe-outliers` starts at once, and says in one line what it cannot do."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.snake import ROOT

from moe_outliers.cli import doctor

pytestmark = pytest.mark.waits

PROGRAM = Path(sys.executable).with_name("moe-outliers")
START_S = 0.5
HEAVY = {"torch", "transformers", "numpy", "pandas", "scipy", "matplotlib", "pyarrow", "snakemake"}


def run(*words, cwd=ROOT):
    done = subprocess.run(
        [PROGRAM, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_it_starts_within_half_a_second_of_work():
    """In time of the processor, which a busy machine does not lengthen; the best of three."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help")[0] == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < START_S


@pytest.mark.parametrize("words", [("status",), ("status", "--json"), ("doctor", "--help")])
def test_no_command_imports_torch_or_the_tools_of_the_analysis(words):
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from moe_outliers.cli.app import app\n"
        f"assert CliRunner().invoke(app, {list(words)}).exit_code == 0\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("sede: 3", "config: sede is not a key; did you mean seed?"),
        ("models: [olmoe-1b-7]", "has no model olmoe-1b-7; did you mean olmoe-1b-7b?"),
        ("models: [", "no valid YAML"),
        ("- a", "it must hold keys with values"),
        ("\xff", "no valid YAML"),
    ],
)
@pytest.mark.parametrize("command", ["status", "explain", "export"])
def test_a_fault_in_the_settings_is_one_line(tmp_path, command, settings, said):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_bytes(settings.encode("latin-1"))
    words = {"status": [], "explain": ["results/figures"], "export": ["post", tmp_path / "post"]}
    code, printed, complaint = run(command, *words[command], "--configfile", overlay)
    assert (code, printed) == (1, "")
    assert complaint.startswith("error: ")
    assert said in complaint
    assert complaint.count("\n") == 1


def test_doctor_names_a_fault_in_the_settings(tmp_path):
    for name in ("Snakefile", "envs", "config/schemas", "config/models.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    text = (ROOT / "config/config.yaml").read_text()
    (tmp_path / "config/config.yaml").write_text(text)
    found = doctor.settings(tmp_path)
    assert (found.state, found.found.partition(":")[0]) == ("ok", "7 models")
    (tmp_path / "config/config.yaml").write_text(text.replace("\nseed:", "\nsede:"))
    found = doctor.settings(tmp_path)
    assert (found.state, bool(found.fix)) == ("fault", True)
    assert "sede is not a key; did you mean seed?" in found.found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "--directory", "nowhere"], "nowhere: no such folder"),
        (["status", "--configfile", "none.yaml"], "none.yaml: no such settings file"),
        (["status", "--workflow", "config"], "config: no Snakefile here or above"),
        (["export", "post", "docs"], "docs exists: name a folder that does not"),
        (["export", "post", "FOLDER"], "results/tables/summary.json is not there"),
        (["export", "rocrate", "FOLDER"], "is not there: run snakemake first"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, words, said):
    if words[0] == "export":
        words = [*words, "--directory", tmp_path]
    code, printed, complaint = run(*(tmp_path / w if w == "FOLDER" else w for w in words))
    assert (code, printed) == (1, "")
    assert complaint.startswith("error: ")
    assert said in complaint
    assert complaint.count("\n") == 1
