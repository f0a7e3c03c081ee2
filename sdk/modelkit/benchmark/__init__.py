"""Measure served language models: load, metrics, report. `modelkit bench` is the command line over it."""
