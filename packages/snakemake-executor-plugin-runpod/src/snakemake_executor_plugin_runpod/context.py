"""What all jobs of a run share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from snakemake_executor_plugin_runpod.digests import Digests
from snakemake_executor_plugin_runpod.ledger import Ledger
from snakemake_executor_plugin_runpod.limits import Limits
from snakemake_executor_plugin_runpod.settings import ExecutorSettings


@dataclass(frozen=True)
class Context:
    """What all attempts of a run share.

    Attributes:
        say: tells people something about one pod.
        poll_s: seconds between two looks at a job.
        digests: of files here, shared by all jobs.
    """

    settings: ExecutorSettings
    ledger: Ledger
    limits: Limits
    say: Callable[[str], None]
    poll_s: float
    digests: Digests = field(default_factory=Digests)
