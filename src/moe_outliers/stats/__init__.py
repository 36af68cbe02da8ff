"""Intervals, tests and random draws: pure functions of arrays, with no model in sight."""
