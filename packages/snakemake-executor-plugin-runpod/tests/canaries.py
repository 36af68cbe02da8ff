"""Secrets that a run is given, and that may be found nowhere afterwards."""

from pathlib import Path

CANARIES = {
    "HF_TOKEN": "hf_canary0123456789abcdefghijklmnop",
    "RUNPOD_API_KEY": "rpa_CANARY0123456789ABCDEFGHIJKLMNOP",
}
"""Secrets that may be found nowhere, by the variables that hold them."""


def spilt(folder: Path, text: str = "", *secrets: str) -> list[str]:
    """Name the files below a folder that hold a secret; and the text, if it does."""
    wanted = [secret.encode() for secret in secrets or CANARIES.values()]
    found = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    held = found | {"what was said": text.encode()}
    return [name for name, data in held.items() if any(secret in data for secret in wanted)]
