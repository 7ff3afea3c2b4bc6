"""A model in fewer bits: the methods, the files they write, what they cost."""
