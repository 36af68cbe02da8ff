"""Checks the settings of a sweep and the table of models, with errors that name the fix."""

import csv
import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Row = dict[str, Any]
"""A model: the columns of config/models.tsv by name."""


def check(config: Mapping[str, Any], schemas: Path) -> None:
    """Check the settings against their schema, and for conditions that a schema cannot express.

    Args:
        config: the settings, merged from all files and the command line.
        schemas: the folder of config.schema.yaml.

    Raises:
        ValueError: on the first fault; the message names the key, the value and the fix.
    """
    schema = yaml.safe_load((schemas / "config.schema.yaml").read_text())
    for error in sorted(jsonschema.Draft202012Validator(schema).iter_errors(config), key=_depth):
        raise ValueError(f"config: {_explain(error)}")
    alphas = config["extract"]["alphas"]
    if alphas != sorted(alphas):
        raise ValueError(f"config: extract.alphas must ascend, got {alphas}")
    magnitude = config["outliers"]["magnitude"]
    own = [magnitude[b] for b in ("z", "x")] if isinstance(magnitude, Mapping) else [magnitude]
    for needed in (6, *own):
        if needed not in alphas:
            raise ValueError(f"config: extract.alphas must contain {needed:g}, got {alphas}")
    source, revision = config["data"]["source"], config["data"]["revision"]
    if source == "huggingface" and revision == "local":
        raise ValueError(
            "config: data.revision: pin a commit of the data set, 40 hexadecimal digits"
        )


def read_table(path: Path, schemas: Path) -> dict[str, Row]:
    """Read the table of models.

    Args:
        path: the table, tab-separated, with a header; lines that begin with # are comments.
        schemas: the folder of models.schema.yaml.

    Returns:
        The rows by slug, in the order of the file.

    Raises:
        ValueError: if the file is missing, or a cell is not as the schema says.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such table of models; see `table` in config/config.yaml")
    schema = yaml.safe_load((schemas / "models.schema.yaml").read_text())
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.strip() and not line.startswith("#")]
    rows: dict[str, Row] = {}
    for cells in csv.DictReader(lines, delimiter="\t"):
        row = {column: _typed(value, schema, column) for column, value in cells.items() if column}
        name = row.get("model", "?")
        for error in jsonschema.Draft202012Validator(schema).iter_errors(row):
            raise ValueError(f"{path}: row {name}: {_explain(error)}")
        if None in cells or name in rows:
            fault = "too many cells" if None in cells else "the slug stands twice"
            raise ValueError(f"{path}: row {name}: {fault}")
        if any(row["number"] == other["number"] for other in rows.values()):
            raise ValueError(f"{path}: row {name}: number {row['number']} stands twice")
        rows[name] = row
    return rows


def select(chosen: Any, table: Mapping[str, Row], path: Path) -> dict[str, Row]:
    """Select models of the table.

    Args:
        chosen: slugs or numbers, as a list or separated by commas, or `all`. A number may come as
            an integer: 1 is 01.
        table: all rows by slug.
        path: the table's path, for messages.

    Returns:
        The chosen rows by slug, in the order of the table, each once.

    Raises:
        ValueError: on an unknown name, with the nearest one; on a model of the hub without a
            revision.
    """
    names = [chosen] if isinstance(chosen, str | int) else chosen
    words = [word for name in names for word in str(name).replace(" ", "").split(",") if word]
    if not words:
        raise ValueError("config: models: name at least one model, or `all`")
    slugs = set(table) if words == ["all"] else {_slug(word, table, path) for word in words}
    for slug in table:
        if slug in slugs and not table[slug]["revision"]:
            raise ValueError(
                f"pin a revision for {slug} in {path}: the commit of {table[slug]['repo']} "
                "on the hub, 40 hexadecimal digits (or `local` if repo is a folder)"
            )
    return {slug: row for slug, row in table.items() if slug in slugs}


def models(config: Mapping[str, Any], path: Path, schemas: Path) -> dict[str, Row]:
    """Check the settings and return the rows of the selected models by slug.

    Args:
        config: the settings, merged from all files and the command line.
        path: the table of models.
        schemas: the folder of the schemas.

    Raises:
        ValueError: as `check`, `read_table` and `select` do.
    """
    check(config, schemas)
    table, dtype = read_table(path, schemas), config["extract"]["dtype"]
    for slug in dtype if isinstance(dtype, dict) else ():
        if slug not in {*table, "default"}:
            hint = nearest(slug, [*table, "default"])
            raise ValueError(f"config: extract.dtype: {path} has no model {slug}; {hint}")
    return select(config["models"], table, path)


def shape(row: Row) -> dict[str, int]:
    """Return the model's shape as its row gives it, for `verify` to compare with the checkpoint."""
    return {name: row[name] for name in ("layers", "width", "experts", "top_k")}


def local_files(row: Row, here: Callable[[str], str], pattern: str) -> list[str]:
    """List files of a model's checkpoint if it is a local folder; none if it is on the hub.

    Args:
        row: the model's row.
        here: turns a path of the workflow's folder into one of the working directory.
        pattern: which files, as a glob, or the name of one that must be there.
    """
    if row["revision"] != "local":
        return []
    folder = Path(here(row["repo"]))
    if "*" not in pattern:
        return [str(folder / pattern)]
    return sorted(str(path) for path in folder.glob(pattern))


def nearest(word: str, names: Iterable[str]) -> str:
    """Return a hint: the most similar name, or all names."""
    names = list(names)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"


def _slug(word: str, table: Mapping[str, Row], path: Path) -> str:
    if word in table:
        return word
    if word.isdecimal():
        for slug, row in table.items():
            if int(row["number"]) == int(word):
                return slug
        numbers = (f"{row['number']} {slug}" for slug, row in table.items())
        raise ValueError(
            f"config: models: {path} has no number {word}; there are: {', '.join(numbers)}"
        )
    raise ValueError(f"config: models: {path} has no model {word}; {nearest(word, table)}")


def _typed(cell: str | None, schema: Mapping[str, Any], column: str) -> Any:
    kinds = {"integer": int, "number": float}
    kind = kinds.get(schema["properties"].get(column, {}).get("type"), str)
    try:
        return kind(cell or "")
    except ValueError:
        return cell  # the schema then says what it should be


def _depth(error: jsonschema.ValidationError) -> int:
    return len(error.absolute_path)


def _explain(error: jsonschema.ValidationError) -> str:
    """Say in one line which key is wrong, its value and what it should be."""
    place = ".".join(str(part) for part in error.absolute_path)
    schema: Any = error.schema
    if error.validator == "additionalProperties":
        known = schema["properties"]
        unknown = next(key for key in error.instance if key not in known)
        return f"{place}{'.' if place else ''}{unknown} is not a key; {nearest(unknown, known)}"
    if error.validator == "required":
        return f"{place or 'top level'}: {error.message}"
    hint = f" ({schema['description']})" if "description" in schema else ""
    return f"{place}: {error.message}{hint}"
