"""Programs in other languages: build and run the candidate and its judge, and control each pass."""
