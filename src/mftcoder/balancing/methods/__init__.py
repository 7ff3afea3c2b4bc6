"""One balancing method a file."""
