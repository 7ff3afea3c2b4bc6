"""One file per family of benchmarks."""
