"""How things are shown: in the terminal, and in pages."""
