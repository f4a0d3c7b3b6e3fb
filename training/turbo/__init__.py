"""A few-step student of any model folder, and the network that inverts it (Wu et al. 2408.08332)."""
