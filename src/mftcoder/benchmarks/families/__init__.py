"""One family of exams a file."""
