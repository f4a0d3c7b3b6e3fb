"""Seconds and bytes of an edit, beside the released algorithm's way of computing and the floor of the machine."""
