"""The commands of `chat`, grouped by topic."""
