"""The files of a model: fetched, checked, listed with checksums."""
