"""All samples, tokenized once and stored on disk, in bounded memory."""
