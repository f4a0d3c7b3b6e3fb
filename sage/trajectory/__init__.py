"""The way to noise as a value, and on disk."""
