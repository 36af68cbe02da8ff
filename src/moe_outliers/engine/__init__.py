"""Runs a model: its layers streamed through one device, or the whole model resident on it."""
