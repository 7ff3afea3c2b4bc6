"""Verification by running: what of a record can be executed, how it is run in the sandbox, and what the result says of the record."""
