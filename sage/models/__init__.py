"""Networks, and how their weights come from a disk or the hub."""
