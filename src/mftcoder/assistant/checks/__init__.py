"""What an answer must hold before it is accepted."""
