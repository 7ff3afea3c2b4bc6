"""Model families and file formats that transformers does not support."""
