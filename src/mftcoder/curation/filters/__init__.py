"""Rules that look at one record: what each measures, and the bounds in which a record is kept."""
