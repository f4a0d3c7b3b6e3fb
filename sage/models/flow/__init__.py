"""FLUX.1, and smaller rectified flows of the same build."""
