"""Commands killed at random moments and at their renames; `scripts/kill_test` runs it at length."""
