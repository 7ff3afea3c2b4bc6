"""Products with a frozen weight, and LoRA over them."""
