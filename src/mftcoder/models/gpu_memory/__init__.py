"""What a run takes of a GPU's memory, and the plans that fit."""
