"""Many edits by a table: `sage batch`."""
