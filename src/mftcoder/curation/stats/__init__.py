"""What is in sets of records, and how they overlap."""
