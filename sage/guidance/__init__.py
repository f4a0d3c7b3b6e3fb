"""Guidance: contexts that listen to a network and change what passes in it, losses, masks."""
