"""Intervals, tests and random draws: pure functions of arrays, with no model in sight."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of NumPy; docstrings name its axes, and the unit or range of its values."""
