"""Who sends a request, and what they may do: tokens, their rights, and how they are checked."""
