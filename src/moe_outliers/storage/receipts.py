"""Receipts: the proof that a statistics file is whole, of this model, and of these settings.

A batch is a pair, `results/extract/{model}/{batch}.nc` and the receipt `{batch}.json`. The receipt
is written last; a batch without a valid receipt does not exist. Nothing parses a statistics file
before its sha256 has matched its receipt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_outliers import versions
from moe_outliers.storage import files

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Line = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class Pod(BaseModel):
    """What a rented machine cost."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Line
    price_usd_per_h: Annotated[float, Field(ge=0)] | None
    seconds: Annotated[float, Field(ge=0)]


class Receipt(BaseModel):
    """The receipt of one statistics file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = Field(description="format of the receipt")
    file: Line = Field(description="name of the statistics file, in the same folder")
    size: int = Field(ge=0, description="its bytes")
    sha256: Sha256 = Field(description="its digest")
    model: Line = Field(description="slug of the table of models")
    repo: Line = Field(description="repository on the hub, or a folder")
    revision: Line = Field(description="commit on the hub, or `local`")
    checkpoint: Sha256 | None = Field(
        description="digest of a local checkpoint's files; null on the hub"
    )
    batch: Line = Field(description="number of the batch, as in the file's name")
    sequences: list[int] = Field(description="global indices of its sequences")
    ids_sha256: list[Sha256] = Field(description="digest of the token ids of each sequence")
    settings: Sha256 = Field(description="digest of every setting that changes numbers")
    engine: int = Field(description="version of the extraction")
    versions: dict[Line, Line] = Field(description="versions of torch, transformers and CUDA")
    device: Line = Field(description="name of the GPU, or cpu")
    dtype: Line = Field(description="precision that was computed with")
    attempt: Line = Field(description="names the process that wrote it")
    plan: list[Line] = Field(
        description="what was stepped down for lack of memory; changes no number"
    )
    pod: Pod | None = Field(description="the rented machine; null for one's own")
    digest: Sha256 = Field(description="digest of all other keys: a receipt proves itself too")


@dataclass(frozen=True)
class Expected:
    """What the receipt of a batch must say.

    Attributes:
        ids_sha256: digests of the token ids, None where they are not known yet.
        checkpoint: digest of a local checkpoint's files, None where it is not known or on the hub.
    """

    model: str
    repo: str
    revision: str
    batch: str
    sequences: list[int]
    settings: str
    ids_sha256: list[str] | None = None
    checkpoint: str | None = None


class Pair(NamedTuple):
    """One batch: its statistics file, its receipt, and what the receipt must say."""

    statistics: Path
    receipt: Path
    expected: Expected


def identity(row: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all receipts of a model must agree with: its checkpoint and the settings.

    Args:
        row: the model's row of the table.
        config: all settings.

    Returns:
        repo, revision, sequences, batch_size, and settings: a digest of all that changes numbers.
    """
    extract = config["extract"]
    settings = {
        "repo": row["repo"],
        "revision": row["revision"],
        "dtype": dtype_of(row["model"], config),
        "micro_batch": extract["micro_batch"],
        "alphas": [float(alpha) for alpha in extract["alphas"]],
    }
    return {
        "repo": row["repo"],
        "revision": row["revision"],
        "settings": files.sha256_of(settings),
        "sequences": config["data"]["sequences"],
        "batch_size": config["data"]["batch_size"],
    }


def dtype_of(model: str, config: Mapping[str, Any]) -> str:
    """Return the precision that a model is computed in: auto, bfloat16 or float32.

    Args:
        model: its slug.
        config: all settings; `extract.dtype` is one for all, or names some models.
    """
    said = config["extract"]["dtype"]
    found = said.get(model, said.get("default", "auto")) if isinstance(said, dict) else said
    return str(found)


def read(path: str | Path) -> Receipt:
    """Read a receipt.

    Raises:
        ValueError: if it is no valid receipt, or not byte by byte as `write` writes it; the message
            names the file and the first fault.
    """
    value = files.read_json(path)
    try:
        receipt = Receipt.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
        place = files.printable(".".join(str(part) for part in fault["loc"]))[:100]
        raise ValueError(f"{path}: no valid receipt: {place}: {fault['msg']}") from None
    if receipt.digest != _digest(value) or files.json_bytes(value) != Path(path).read_bytes():
        raise ValueError(f"{path}: no valid receipt: it was changed after it was written")
    return receipt


def write(path: str | Path, **fields: Any) -> None:
    """Write a receipt atomically.

    Args:
        path: the receipt.
        fields: of Receipt, all but `digest`.
    """
    receipt = Receipt(**fields, digest=_digest(fields))
    files.write_json(path, receipt.model_dump())


def _digest(fields: dict[str, Any]) -> str:
    plain = {name: value for name, value in fields.items() if name != "digest"}
    return files.sha256_of(plain)


def fault(
    statistics: str | Path,
    receipt: str | Path,
    expected: Expected,
    sha256: Callable[[Path], str] = files.sha256,
) -> str | None:
    """Return what is wrong with a pair.

    Args:
        statistics: the statistics file; it is hashed, never parsed.
        receipt: its receipt.
        expected: what the receipt must say.
        sha256: hashes a file; a cache may stand in.

    Returns:
        None if the pair is valid, else the reason in a few words.
    """
    statistics, receipt = Path(statistics), Path(receipt)
    for path, what in ((statistics, "statistics file"), (receipt, "receipt")):
        if not path.is_file():
            return f"the {what} is missing"
    try:
        stated = read(receipt)
    except (ValueError, OSError) as error:
        return f"the receipt is invalid: {error}"
    return mismatch(stated, expected) or damage(statistics, stated, sha256)


def damage(
    statistics: Path, stated: Receipt, sha256: Callable[[Path], str] = files.sha256
) -> str | None:
    """Return in what a statistics file differs from what its receipt states, or None.

    Args:
        statistics: the file, which must exist; it is hashed, never parsed.
        stated: its receipt.
        sha256: hashes a file; a cache may stand in.
    """
    size = statistics.stat().st_size
    if stated.file != statistics.name:
        return f"the receipt is of {stated.file}"
    if size != stated.size:
        return f"{size} bytes, the receipt says {stated.size}"
    if sha256(statistics) != stated.sha256:
        return "the content differs from its receipt (sha256)"
    return None


def mismatch(stated: Receipt, expected: Expected) -> str | None:
    """Return in what a receipt differs from what is expected, or None."""
    for name in ("model", "repo", "revision", "batch", "sequences"):
        wanted, got = getattr(expected, name), getattr(stated, name)
        if wanted != got:
            return f"made for {name} {got}, expected {wanted}"
    if stated.engine != versions.EXTRACT:
        return f"made by version {stated.engine} of the extraction, this is {versions.EXTRACT}"
    if stated.settings != expected.settings:
        return "made with other settings of `extract`"
    if expected.ids_sha256 is not None and stated.ids_sha256 != expected.ids_sha256:
        return "made from other token ids"
    if expected.checkpoint is not None and stated.checkpoint != expected.checkpoint:
        return "made from other weights"
    return None


def batches(sequences: int, batch_size: int) -> list[str]:
    """Name the batches of a sweep: 00, 01 and so on."""
    count = -(-sequences // batch_size)
    digits = max(2, len(str(count - 1)))
    return [f"{number:0{digits}d}" for number in range(count)]


def expectations(model: str, identity: dict[str, Any]) -> list[Expected]:
    """Return what the receipts of a model's batches must say, in order of the batches.

    Args:
        model: slug of the model.
        identity: as `identity` returns it; the last batch may have fewer sequences than batch_size.
    """
    sequences, size = identity["sequences"], identity["batch_size"]
    common = (model, identity["repo"], identity["revision"])
    return [
        Expected(
            *common, batch, list(range(start, min(start + size, sequences))), identity["settings"]
        )
        for batch, start in zip(batches(sequences, size), range(0, sequences, size), strict=True)
    ]


def pairs(model: str, identity: dict[str, Any], statistics: str, receipt: str) -> list[Pair]:
    """Return the pairs of a model.

    Args:
        model: slug of the model.
        identity: as `identity` returns it.
        statistics: path of a statistics file, with {model} and {batch}.
        receipt: path of its receipt, likewise.
    """
    expected = expectations(model, identity)
    paths = (
        (p.format(model=model, batch=e.batch) for p in (statistics, receipt)) for e in expected
    )
    return [Pair(Path(s), Path(r), e) for (s, r), e in zip(paths, expected, strict=True)]
