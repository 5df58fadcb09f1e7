"""Sparse voxel tensors, their plans and orders. Knows nothing about networks."""
