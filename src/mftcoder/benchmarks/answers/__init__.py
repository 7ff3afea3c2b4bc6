"""From a completion to an answer, and from an answer to the parts of a program."""
