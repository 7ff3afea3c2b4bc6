"""From a conversation to text and token ids, and which of them are trained."""
