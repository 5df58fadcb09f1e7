"""Training: objectives, optimisers, the loop, checkpoints, procedural data. Inference imports none of it."""
