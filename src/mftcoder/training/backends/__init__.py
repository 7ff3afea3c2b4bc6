"""The engines that run a step: one device, DDP, FSDP2, DeepSpeed."""
