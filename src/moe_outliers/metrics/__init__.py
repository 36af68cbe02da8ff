"""Metrics: from the statistics of one model to its tables.

The way in is `measure.measure`. Each metric is a pure function in a module of its topic: counts
(where a feature fires), selection (on which sequences it is chosen and scored), consistency and
classes, magnitude, moments, residual, routing, experts, language, legacy, surrogate.
`model_statistics` holds what they share; `by_sequence`, `by_site`, `by_feature` and `by_threshold`
make the tables, each by its unit. data/metrics.tsv names each metric, docs/method.md defines it.
"""
