"""Nested, validated configuration: schema, loading with overrides, and the published MFTCoder JSON."""
