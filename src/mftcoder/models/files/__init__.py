"""The files of a model: downloaded, checked, listed with checksums."""
