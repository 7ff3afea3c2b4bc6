"""Find a trained model on disk, merge its adapter, and write it as a folder."""
