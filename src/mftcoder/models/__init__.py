"""Base models, adapters, merging and checksums of model folders."""
