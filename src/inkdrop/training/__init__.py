"""Training: the loop, the averaged weights, and checkpoints that survive a kill."""
