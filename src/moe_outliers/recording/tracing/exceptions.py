"""What a run without weights cannot show, by `model_type`: the only place that names families.

Each row says why it is needed; tests/unit/test_observed.py fails if one is needed no longer.
"""

from collections.abc import Callable
from typing import Any

WINDOWED: dict[str, Callable[[Any, int], bool]] = {
    # Its windows are holes in a buffer that it fills itself: on the meta device they have no
    # values, and all of its blocks look alike. Its configuration says which are local.
    "gpt_neo": lambda config, block: config.attention_layers[block] == "local",
}
"""Whether the attention of a block leaves out positions that are far away."""
