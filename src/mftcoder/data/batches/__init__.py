"""From samples to the batches of a step: packing, mixture, loader."""
