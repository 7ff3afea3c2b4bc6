"""Exact and near-duplicates: what of a record is compared, which records are candidates, and which of them is kept."""
