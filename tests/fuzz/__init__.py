"""The fuzz harness: mutants of every file that is read."""
