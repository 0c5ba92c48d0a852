"""Training: one loop for every method, recipes as data, checkpoints that resume exactly."""
