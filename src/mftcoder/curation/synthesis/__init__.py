"""New training data written by a model: exercises on topics, harder questions, problems from code, tests, repaired answers."""
