"""What a checkpoint contains, and when it is written."""
