"""Training: objectives, optimisers, the loop, checkpoints, the procedural dataset. Inference imports none of it."""
