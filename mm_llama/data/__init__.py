"""From rows on disk to batches, in four plain steps: source rows, decoded tensors, samples, Batch."""
