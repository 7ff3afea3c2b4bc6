"""The engines that carry a step."""
