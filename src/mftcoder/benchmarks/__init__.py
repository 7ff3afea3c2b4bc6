"""Benchmarks as problems, code extraction, program assembly and pass@k. Torch-free."""
