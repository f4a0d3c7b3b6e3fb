"""Stable Diffusion 1.x and 2.x, and smaller models of the same build."""
