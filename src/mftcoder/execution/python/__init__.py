"""Python programs: a judge and a candidate in two processes, and the fork server of a slot."""
