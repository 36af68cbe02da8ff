"""What `import moe_outliers as mo` gives: nothing is imported before it is asked for."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from importlib import import_module

import numpy as np
import pytest
import xarray as xr
import yaml
from support.snake import ROOT

import moe_outliers as mo
from moe_outliers import run_model
from moe_outliers.storage import statistics_file

SOURCE = (ROOT / "src/moe_outliers/__init__.py").read_text()

IMPORT = """
import sys
before = set(sys.modules)
import moe_outliers as mo
dir(mo), mo.__version__
print(*set(sys.modules) - before)
mo.open, mo.Criteria, mo.METRICS, mo.FIGURES, mo.tokenize, mo.measure, mo.firing, mo.plot
print(*set(sys.modules) - before)
"""


def test_the_import_brings_nothing_and_only_record_brings_torch():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    at_once, later = (set(line.split()) for line in done.stdout.splitlines())
    foreign = {name for name in at_once if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"moe_outliers", "moe_outliers.versions"}
    assert {"pandas", "moe_outliers.results"} <= later
    assert not later & {"torch", "transformers", "snakemake"}


def test_all_names_what_can_be_had_and_programs_read_the_same():
    """`__all__`, the table of homes, and the imports that a type checker sees agree."""
    (typed,) = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    read = {
        (alias.asname or alias.name): f"{node.module}:{alias.name}"
        for node in typed.body
        for alias in node.names
    }
    assert read == {name: f"moe_outliers.{home}" for name, home in mo._HOMES.items()}
    assert sorted([*read, "__version__"]) == sorted(mo.__all__)
    assert dir(mo) == sorted(mo.__all__)
    for name, home in read.items():
        module, _, attribute = home.partition(":")
        assert getattr(mo, name) is getattr(import_module(module), attribute)


def test_no_name_is_that_of_a_module_which_would_take_its_place():
    top = ROOT / "src/moe_outliers"
    assert not set(mo.__all__) & {path.stem for path in top.iterdir()}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'recrod'"):
        _ = mo.recrod


def test_the_version_stands_in_one_place_and_the_citation_has_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/moe_outliers/versions.py"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == mo.__version__
    released = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == mo.__version__


def test_record_has_the_settings_of_the_sweep_where_none_are_given():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    defaults = {n: p.default for n, p in inspect.signature(mo.record).parameters.items()}
    assert list(defaults["alphas"]) == config["extract"]["alphas"]
    assert defaults["alphas"] is run_model.ALPHAS
    assert defaults["tokens"] == config["data"]["tokens"]
    assert defaults["bos"] == config["data"]["bos"]
    for name in ("device", "dtype", "micro_batch"):
        assert defaults[name] == config["extract"][name]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alphas": [3, 6, 5]}, "alphas must ascend and contain 3 and 6"),
        ({"alphas": [3, 5]}, "alphas must ascend and contain 3 and 6"),
        ({"device": "gpu"}, "device is 'gpu': it must be auto, cpu or cuda"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"tokens": 63}, "tokens is 63: it must be 64 to 65535"),
        ({"tokens": 65_536}, "tokens is 65536: it must be 64 to 65535"),
        ({"bos": "yes"}, "bos is 'yes': it must be none or model"),
        ({"engine": "fast"}, "engine 'fast' is not one of streamed, resident"),
        ({"model": "./nowhere"}, "no such folder; a repository of the hub is named OWNER/NAME"),
        ({"model": 3}, "model is a int: it must be a repository of the hub"),
        ({"tokenizer": 3}, "tokenizer is a int: a fast one is needed"),
        ({"texts": ["too short"]}, r"document text 0 \(sequence 0\): \d ids, 64 are needed"),
    ],
)
def test_what_record_is_given_is_checked_before_anything_is_run(wrong, message, tiny_checkpoint):
    folder = tiny_checkpoint("olmoe")
    given = {"model": folder, "texts": ["word " * 80], "tokens": 64, "device": "cpu"}
    given |= {"tokenizer": _letters()} | wrong
    with pytest.raises(ValueError, match=message):
        mo.record(given.pop("model"), given.pop("texts"), **given)


def _letters():
    """A tokenizer with one id a byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:128]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, [], unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def test_a_loaded_model_is_run_as_it_is_and_left_as_it_was(tiny_checkpoint):
    """The same numbers as streamed from its folder; no hook stays, even after an error."""
    import torch
    import transformers

    folder = tiny_checkpoint("olmoe")
    texts = ["A text, of letters. " * 5, "Another one, longer than it must be. " * 5]
    how = {"tokens": 64, "device": "cpu", "tokenizer": _letters()}
    said = []
    streamed = mo.record(folder, texts, progress=said.append, **how)
    assert said
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        mo.record(loaded.train(), texts, **how)
    loaded.eval()
    with pytest.raises(ValueError, match="has its revision and dtype"):
        mo.record(loaded, texts, dtype="float32", **how)
    with pytest.raises(ValueError, match="without its tokenizer: give `tokenizer`"):
        mo.record(loaded, texts, **how | {"tokenizer": None})
    threads = torch.get_num_threads()
    held = mo.record(loaded, texts, name=folder.name, **how)
    assert torch.get_num_threads() == threads
    assert held.attrs["revision"] == "loaded"
    xr.testing.assert_identical(held.assign_attrs(streamed.attrs), streamed)
    with torch.no_grad():
        loaded.model.embed_tokens.weight[:] = np.nan
    with pytest.raises(ValueError, match="sequence 0: NaN or infinite activations at block 0"):
        mo.record(loaded, texts, **how)
    modules = list(loaded.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_one_text_may_be_given_alone_and_tokens_instead_of_texts(tiny_checkpoint):
    folder = tiny_checkpoint("mixtral")
    text, letters = "One text is enough, for once. " * 4, _letters()
    ids = mo.tokenize(folder, text, tokens=64, tokenizer=letters)
    assert letters.truncation is None
    whole = mo.record(folder, text, tokens=64, device="cpu", tokenizer=letters)
    xr.testing.assert_identical(whole, mo.record(folder, ids, device="cpu"))
    assert whole["sequence"].values.tolist() == [0]
    assert whole["ids_sha256"].values.tolist() == ids["ids_sha256"].to_pylist()


def test_some_sequences_are_only_written_of_what_record_gave(tiny_checkpoint, tmp_path):
    data = mo.record(
        tiny_checkpoint("olmoe"), "letters " * 20, tokens=64, device="cpu", tokenizer=_letters()
    )
    with pytest.raises(ValueError, match=r"no sequences \[1\]; there are \[0\]"):
        statistics_file.write(data, tmp_path / "00.nc", [0, 1])
    with pytest.raises(ValueError, match="no coordinate ids_sha256"):
        statistics_file.write(data.drop_vars("ids_sha256"), tmp_path / "00.nc", [0])
    assert not list(tmp_path.iterdir())


def test_firing_is_counted_by_the_definition():
    """A feature fires at a site where enough positions of the sequence reach the threshold."""
    rng = np.random.default_rng(0)
    alphas, shape = [3.0, 6.0], (2, 4, 2, 5)
    x = np.sort(rng.integers(0, 101, shape), axis=2)[:, :, ::-1].astype("uint16")
    z = np.sort(rng.integers(0, 101, shape), axis=2)[:, :, ::-1].astype("uint16")
    statistics = xr.Dataset(
        {
            "x_count": (("sequence", "site", "alpha", "feature"), x),
            "z_count": (("sequence", "site", "alpha", "feature"), z),
            "positions": ("sequence", [100, 100]),
        },
        {
            "alpha": alphas,
            "sequence": [4, 7],
            "site_block": ("site", [0, 0, 1, 1]),
            "site_kind": ("site", ["attn_in", "mlp_in"] * 2),
            "site_mixer": ("site", ["attention", "moe"] * 2),
        },
    )
    criteria = mo.Criteria(magnitude=6, layer_share=0.5, position_share=0.3)
    fires = mo.firing(statistics, criteria)
    assert fires.dims == ("sequence", "site", "feature")
    assert fires["sequence"].values.tolist() == [4, 7]
    assert fires["site_kind"].values.tolist() == ["attn_in", "mlp_in"] * 2
    for place in np.ndindex(2, 4, 5):
        s, i, f = place
        assert bool(fires.values[place]) is (int(z[s, i, 1, f]) >= 30), place
    assert np.array_equal(mo.firing(statistics, criteria, "x").values, x[:, :, 1] >= 30)
    with pytest.raises(ValueError, match="no counts of z at threshold 7"):
        mo.firing(statistics, mo.Criteria(7, 0.5, 0.3))
