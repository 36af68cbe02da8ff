"""Pods: chosen, paid for, rented, watched and ended."""
