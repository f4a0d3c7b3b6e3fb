"""Trajectories on disk: an inversion is written once, and edits start from it whenever they like.

The file is safetensors, with one JSON text about everything that the recording depends on (`label`).
"""
