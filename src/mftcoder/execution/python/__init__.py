"""Python answers: a judge and a candidate in two processes."""
