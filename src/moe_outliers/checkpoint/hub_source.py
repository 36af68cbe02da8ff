"""A repository of the hub as a source of shards."""

from pathlib import Path

from huggingface_hub import constants, get_token, try_to_load_from_cache

from moe_outliers.checkpoint import headers, hub
from moe_outliers.checkpoint.download import Shards
from moe_outliers.checkpoint.http_ranges import Ranges
from moe_outliers.checkpoint.shard_cache import ShardCache
from moe_outliers.progress import Progress


def from_hub(repo: str, revision: str, *, disk_bytes: int, progress: Progress) -> Shards:
    """Open a repository of the hub as a source; only its JSON files are downloaded yet.

    A copy of a shard in the cache of huggingface_hub is used if its digest is right.

    Args:
        repo: its name.
        revision: a commit.
        disk_bytes: disk that may be filled with shards.
        progress: takes a line from time to time.

    Raises:
        ValueError: if the hub refuses, or has no safetensors files there.
    """
    files = hub.listing(repo, revision)
    if "config.json" not in files:
        raise ValueError(f"{repo} at {revision} has no config.json: it is no model of transformers")
    for name in ("config.json", headers.INDEX):
        if name in files:
            folder = hub.fetch_intact(repo, revision, name, files[name]).parent
    names = headers.shards(folder, files)
    ranges = Ranges(constants.ENDPOINT, repo, revision, files, token=get_token() or None)

    def cached(name: str) -> Path | None:
        path = try_to_load_from_cache(repo, name, revision=revision)
        return Path(path) if isinstance(path, str) else None

    cache = ShardCache(
        Path(constants.HF_HOME, "moe-outliers", repo.replace("/", "--"), revision),
        {name: files[name] for name in names},
        budget=disk_bytes,
        progress=progress,
        elsewhere=cached,
    )
    return Shards(ranges, folder, names, cache, progress=progress)
