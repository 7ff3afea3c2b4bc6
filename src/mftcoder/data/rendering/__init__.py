"""From a conversation to text and ids, with what is trained."""
