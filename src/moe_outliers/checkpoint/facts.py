"""What a checkpoint is: its size, stored type and shape, to be compared with the table of models.

A folder tells all of it in its config.json and the headers of its shards. Of a repository the
hub's listing tells what it has; the weights are not touched. Nothing here needs torch.
"""

import dataclasses
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_outliers.checkpoint import headers
from moe_outliers.checkpoint.config import EXPERTS
from moe_outliers.checkpoint.stored import ACTIVATION_SCALES, COMPANIONS
from moe_outliers.storage import files
from moe_outliers.workflow import paths

PATIENCE_S = 3.0
"""Seconds that all questions to the hub may take together."""

KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "experts": (*EXPERTS, "moe_num_experts"),
    "top_k": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"),
}
"""Keys of config.json that say a column of the table; families differ."""

ROUGH = {"weights_gb": 0.02, "params_b": 0.12, "active_b": 0.05}
"""How far a typed number may be from the counted one, as a share of it.

The hub counts what a model does not use, too: a layer that predicts further tokens, a stored mask.
"""

SCALES = (
    *(pair[1] for pairs in COMPANIONS.values() for pair in pairs),
    *(ending for endings in ACTIVATION_SCALES.values() for ending in endings),
)
"""Endings of tensors that are no parameters: they scale others."""


@dataclass(frozen=True)
class Facts:
    """What a checkpoint is; None where it is not known.

    Attributes:
        weights_gb: size of its safetensors files, in 10^9 bytes.
        stored_dtype: the type that most of its bytes have, or the method that quantised them.
        layers, width, experts, top_k: as in the table of models; no experts are 0.
        params_b: its parameters, in 10^9.
        active_b: fewest and most parameters that one token uses, in 10^9: without and with the
            embeddings.
    """

    weights_gb: float
    stored_dtype: str | None
    layers: int | None = None
    width: int | None = None
    experts: int | None = None
    top_k: int | None = None
    params_b: float | None = None
    active_b: tuple[float, float] | None = None


def of_folder(folder: Path) -> Facts:
    """Read the facts of a local checkpoint.

    Raises:
        ValueError: if it is none, or its config.json or a header is not sound.
    """
    config = files.read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'}: not the config.json of a model")
    size = sum((folder / name).stat().st_size for name in headers.shards(folder))
    return of_index(config, headers.read_index(folder), size)


def of_index(config: Mapping[str, Any], index: Mapping[str, headers.Tensor], size: int) -> Facts:
    """Return the facts of a checkpoint.

    Args:
        config: its config.json.
        index: every tensor by name.
        size: bytes of its shards.
    """
    values: Counter[str] = Counter()
    routed = embedded = 0
    for name, tensor in index.items():
        if name.endswith(SCALES):
            continue
        count = math.prod(tensor.shape) * (2 if name.endswith("_blocks") else 1)
        values[tensor.dtype] += count
        routed += count if ".experts." in name else 0
        embedded += count if "embed" in name or "wte" in name else 0
    shape = _shape(config)
    total, experts = sum(values.values()), shape["experts"]
    active = total - routed * (1 - (shape["top_k"] or 0) / experts if experts else 0)
    held = Counter({kind: n * headers.DTYPES[kind][1] for kind, n in values.items()})
    return Facts(
        size / 1e9,
        _stored(config, held),
        **shape,
        params_b=total / 1e9,
        active_b=((active - embedded) / 1e9, active / 1e9),
    )


def of_hub(repo: str, revision: str) -> Facts:
    """Ask the hub for the facts of a repository.

    Raises:
        ValueError: if the hub does not answer in time, or refuses.
    """
    from moe_outliers.checkpoint import hub

    listed, counts, text = hub.glance(repo, revision, PATIENCE_S)
    config = files.parse_json(text, f"{repo} at {revision}: config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{repo} at {revision}: not the config.json of a model")
    whole = {name: file for name, file in listed.items() if headers.SHARD.fullmatch(name)}
    own = {n: f for n, f in whole.items() if not n.startswith("consolidated")}
    single = {headers.SINGLE: own[headers.SINGLE]} if headers.SINGLE in own else own
    # The hub counts bytes of MXFP4: two values each, and one more for every 16 of their scales.
    values = {kind: n * 32 / 17 if kind == "U8" else n for kind, n in counts.items()}
    held = Counter({k: n * headers.DTYPES[k][1] for k, n in counts.items() if k in headers.DTYPES})
    return Facts(
        sum(file.size for file in single.values()) / 1e9,
        _stored(config, held),
        **_shape(config),
        params_b=sum(values.values()) / 1e9 if values else None,
    )


def faults(row: Mapping[str, Any], facts: Facts, table: str) -> Iterator[str]:
    """Compare a row of the table of models with its checkpoint.

    Args:
        row: the row.
        facts: of its checkpoint.
        table: path of the table, for messages.

    Yields:
        What is wrong, with the value to write.
    """
    for column, true in dataclasses.asdict(facts).items():
        said = row.get(column)
        if true is None or said in (None, ""):
            continue
        low, high = true if isinstance(true, tuple) else (true, true)
        if column in ROUGH:
            right = low * (1 - ROUGH[column]) <= said <= high * (1 + ROUGH[column])
            shown = f"{high:.3g}"
        else:
            right, shown = said == true, str(true)
        if not right:
            yield (
                f"{table}: row {row['model']}: {column} is {said}, the checkpoint has {shown}: "
                f"write {shown}"
            )


def compare(
    rows: Iterable[Mapping[str, Any]], here: Callable[[str], str], table: str
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Compare rows of the table of models with their checkpoints.

    Args:
        rows: of the table of models.
        here: turns a path of the workflow's folder into one of the working directory.
        table: path of the table, for messages.

    Returns:
        What is wrong with each row, by slug; and why a row could not be compared.
    """
    by_slug, known = {row["model"]: row for row in rows}, Known()
    found = known.of(by_slug.values(), here)
    wrong = {model: list(faults(by_slug[model], facts, table)) for model, facts in found.items()}
    return {model: said for model, said in wrong.items() if said}, known.unknown


def by_reason(unknown: Mapping[str, str]) -> dict[str, str]:
    """Return the models that could not be compared, listed, by the reason."""
    return {
        reason: ", ".join(model for model, why in unknown.items() if why == reason)
        for reason in dict.fromkeys(unknown.values())
    }


def refuse(wrong: Mapping[str, list[str]], models: Collection[str]) -> None:
    """Stop before a model is extracted whose row does not describe its checkpoint.

    Args:
        wrong: what `compare` found, by model.
        models: those that would be extracted.

    Raises:
        ValueError: with what to write in the table.
    """
    if said := [line for model in wrong if model in models for line in wrong[model]]:
        raise ValueError("\n".join(said))


class Known:
    """Facts that were found before: of repositories by commit, of folders by their files.

    Attributes:
        unknown: why the facts of a model could not be had, by slug.
    """

    def __init__(self, cache: Path = paths.FACTS) -> None:
        """Read the cache; a damaged one counts as empty."""
        self._cache, self.unknown = cache, dict[str, str]()
        try:
            found = files.read_json(cache)
        except (OSError, ValueError):
            found = {}
        self._found: dict[str, Any] = found if isinstance(found, dict) else {}

    def of(self, rows: Iterable[Mapping[str, Any]], here: Callable[[str], str]) -> dict[str, Facts]:
        """Return the facts of models by slug; leave out those that cannot be had.

        The hub is asked for what is not known, for all models at once, for at most PATIENCE_S; it
        is not asked offline.

        Args:
            rows: of the table of models.
            here: turns a path of the workflow's folder into one of the working directory.
        """
        asked, known, before = {}, {}, dict(self._found)
        for row in rows:
            local = row["revision"] == "local"
            key = _key(Path(here(row["repo"]))) if local else f"{row['repo']}@{row['revision']}"
            if key in self._found:
                known[row["model"]] = _facts(self._found[key])
            elif local:
                try:
                    known[row["model"]] = of_folder(Path(here(row["repo"])))
                except (OSError, ValueError) as error:
                    self.unknown[row["model"]] = str(error)
                else:
                    self._found[key] = dataclasses.asdict(known[row["model"]])
            else:
                asked[row["model"]] = (row["repo"], row["revision"], key)
        for model, facts in self._ask(asked).items():
            known[model] = facts
            self._found[asked[model][2]] = dataclasses.asdict(facts)
        if self._found != before:
            with suppress(FileNotFoundError):  # a run that begins now tidies up; it is a cache
                files.write_json(self._cache, self._found)
        return known

    def _ask(self, asked: Mapping[str, tuple[str, str, str]]) -> dict[str, Facts]:
        if asked and _is_offline():
            self.unknown |= dict.fromkeys(asked, "the hub is not asked: HF_HUB_OFFLINE is set")
            return {}
        found: dict[str, Facts] = {}
        late = f"the hub did not answer within {PATIENCE_S:g} s"
        reasons = dict.fromkeys(asked, late)

        def ask(model: str, repo: str, revision: str) -> None:
            try:
                found[model] = of_hub(repo, revision)
            except Exception as error:  # whatever the network brings: nothing depends on it
                reasons[model] = str(error)

        threads = [
            threading.Thread(target=ask, args=(model, repo, revision), daemon=True)
            for model, (repo, revision, _) in asked.items()
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + PATIENCE_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        there = dict(found)  # what comes later is left out
        self.unknown |= {model: why for model, why in reasons.items() if model not in there}
        return there


def _facts(found: Mapping[str, Any]) -> Facts:
    active = found.get("active_b")
    return Facts(**{**found, "active_b": tuple(active) if active else None})


def _key(folder: Path) -> str:
    """Name a folder's checkpoint by the sizes and times of its files."""
    paths = sorted(p for p in folder.glob("*") if p.suffix in (".safetensors", ".json"))
    states = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    return f"{folder.absolute()}#{files.sha256_of(states)}"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the shape of a model from its config.json, or the part of it that describes the text."""
    inner = config.get("text_config")
    parts = [inner, config] if isinstance(inner, dict) else [config]
    found: dict[str, Any] = {}
    for column, keys in KEYS.items():
        values = [part[key] for part in parts for key in keys if type(part.get(key)) is int]
        found[column] = values[0] if values else None
    if found["experts"] is None:
        found["experts"] = found["top_k"] = 0
    return found


def _stored(config: Mapping[str, Any], held: Counter[str]) -> str | None:
    settings = config.get("quantization_config")
    if isinstance(settings, dict) and isinstance(settings.get("quant_method"), str):
        return str(settings["quant_method"])
    most = held.most_common(1)
    return headers.DTYPES[most[0][0]][0] if most else None
