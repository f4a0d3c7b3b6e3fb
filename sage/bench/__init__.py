"""Edits measured: benchmarks, metrics, a runner that survives being killed, and a report for people."""
