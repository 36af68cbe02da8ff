"""Outlier features of Mixture-of-Experts language models.

Everything that is meant to be used from Python is here; docs/api.md describes it. Nothing is
imported before it is asked for: PyTorch by `record` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moe_outliers.versions import __version__

if TYPE_CHECKING:
    from moe_outliers.checkpoint.origin import tokenize
    from moe_outliers.metrics.criteria import Criteria
    from moe_outliers.metrics.values import METRICS
    from moe_outliers.report.figures.catalogue import FIGURES
    from moe_outliers.results import Results, firing, plot
    from moe_outliers.results import measure_model as measure
    from moe_outliers.results import open_results as open  # noqa: A004 - as in xarray
    from moe_outliers.run_model import record

__all__ = [
    "FIGURES",
    "METRICS",
    "Criteria",
    "Results",
    "__version__",
    "firing",
    "measure",
    "open",
    "plot",
    "record",
    "tokenize",
]

_HOMES = {
    "FIGURES": "report.figures.catalogue:FIGURES",
    "METRICS": "metrics.values:METRICS",
    "Criteria": "metrics.criteria:Criteria",
    "Results": "results:Results",
    "firing": "results:firing",
    "measure": "results:measure_model",
    "open": "results:open_results",
    "plot": "results:plot",
    "record": "run_model:record",
    "tokenize": "checkpoint.origin:tokenize",
}
"""Where each name is, as MODULE:NAME; the imports above say the same to programs that read them."""


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what is meant to be used, imported or not."""
    return list(__all__)
