"""What a file holds: from bytes to conversations."""
