"""Raw data to training data: tasks mined from source code. Torch-free."""
