"""The memory that a run takes on a GPU, and the memory plans that fit."""
