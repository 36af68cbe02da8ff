"""Miniature models with planted outliers, for the demo and the tests."""
