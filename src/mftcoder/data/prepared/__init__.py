"""All samples tokenized once, on disk, in bounded memory."""
