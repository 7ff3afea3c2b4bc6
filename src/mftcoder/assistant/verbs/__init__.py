"""What the assistant does: one verb asks, checks, and returns a proposal."""
