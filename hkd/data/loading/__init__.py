"""From data sets to batches: augmentation, RandAugment, dense targets, and the loader that joins them."""
