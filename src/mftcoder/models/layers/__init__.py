"""Layers that replace a model's own: LoRA, 4 and 8 bits, fp8."""
