"""A slice of the workflow: two small models, three batches, texts to verdicts."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from support.snake import ROOT, Said, snakemake

MODELS = ("small-olmoe", "small-mixtral")

COLUMNS = "model number repo revision params_b active_b layers width experts top_k weights_gb"

BUILD = """
import sys
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from moe_outliers import texts

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
tokenizer.train_from_iterator([texts.read_bundled()], trainer)
size = dict(vocab_size=320, hidden_size=64, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, num_experts_per_tok=2,
            bos_token_id=None, eos_token_id=None, pad_token_id=None)
made = {
    "small-olmoe": transformers.OlmoeForCausalLM(transformers.OlmoeConfig(num_experts=8, **size)),
    "small-mixtral": transformers.MixtralForCausalLM(
        transformers.MixtralConfig(num_local_experts=4, **size)),
}
for name, model in made.items():
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.to(torch.bfloat16).save_pretrained(f"{sys.argv[1]}/{name}")
    tokenizer.save(f"{sys.argv[1]}/{name}/tokenizer.json")
"""


class Slice:
    """A folder with checkpoints, settings and, once run, results.

    Attributes:
        folder: where results go.
        overlay: the settings, valid for every copy, since they name the checkpoints absolutely.
    """

    def __init__(self, folder: Path, overlay: Path) -> None:
        self.folder, self.overlay = folder, overlay

    def __call__(self, *arguments: str, **environment: str) -> Said:
        return snakemake(*arguments, directory=self.folder, overlay=self.overlay, **environment)

    def copy(self, folder: Path) -> "Slice":
        """Copy the results and Snakemake's own records, with their times."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Slice(folder, self.overlay)

    def pair(self, model: str, batch: int) -> tuple[Path, Path]:
        """Return the statistics file and the receipt of a batch."""
        below = self.folder / "results/extract" / model / f"{batch:02d}"
        return below.with_suffix(".nc"), below.with_suffix(".json")

    def digests(self) -> dict[str, str]:
        """Hash every result; of receipts and digests only what they prove."""
        found = {}
        for path in sorted((self.folder / "results").rglob("*")):
            if not path.is_file() or path.name == ".snakemake_timestamp":
                continue
            data = path.read_bytes()
            if path.parent.parent.name == "extract" and path.suffix == ".json":
                data = json.loads(data)["sha256"].encode()
            found[str(path.relative_to(self.folder))] = hashlib.sha256(data).hexdigest()
        return found

    def contents(self) -> dict[str, bytes]:
        """Return the bytes of every file below results/extract."""
        below = self.folder / "results/extract"
        return {str(p.relative_to(below)): p.read_bytes() for p in below.rglob("*") if p.is_file()}


def build(folder: Path) -> Slice:
    """Make two small checkpoints in the hub's layout, and the settings of the slice."""
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], check=True, capture_output=True)
    rows = [COLUMNS.split()]
    for number, (model, experts) in enumerate(zip(MODELS, (8, 4), strict=True), 1):
        shape = [2, 64, experts, 2]
        repo = [str(folder / model), "local"]
        size = sum(path.stat().st_size for path in (folder / model).glob("*.safetensors")) / 1e9
        idle = (experts - 2) * 2 * 6144e-9  # of each layer, three matrices of 64 by 32 an expert
        counts = [f"{size / 2:.6f}", f"{size / 2 - idle:.6f}"]
        rows.append([model, f"0{number}", *repo, *counts, *map(str, shape), f"{size:.6f}"])
    (folder / "models.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    overlay = {
        "table": str(folder / "models.tsv"),
        "models": "all",
        "data": {"source": "bundled", "sequences": 3, "tokens": 64},
        "extract": {"device": "cpu"},
    }
    (folder / "overlay.yaml").write_text(json.dumps(overlay))
    (folder / "run").mkdir()
    return Slice(folder / "run", folder / "overlay.yaml")


VERDICTS = [f"results/verify/{model}.json" for model in MODELS]
"""The targets of the slice; with the pairs, which `rule all` names too."""

__all__ = ["MODELS", "ROOT", "VERDICTS", "Slice", "build"]
