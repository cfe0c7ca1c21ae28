"""Policy updates: from a batch of weighted transitions to new parameters."""
