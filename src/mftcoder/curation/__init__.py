"""Raw data to training data: mining tasks from source code. Torch-free."""
