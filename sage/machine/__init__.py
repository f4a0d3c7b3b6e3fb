"""What the machine is asked for: memory, threads, and the time that an edit takes on it."""
