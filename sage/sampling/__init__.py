"""Noise levels, and the steps between them."""
