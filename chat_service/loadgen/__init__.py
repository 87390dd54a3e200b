"""The load generator behind `chat load` and `scripts/bench`."""
