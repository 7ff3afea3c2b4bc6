"""The fast path: attention inside packed rows and the weighted cross entropy, with plain-torch twins."""
