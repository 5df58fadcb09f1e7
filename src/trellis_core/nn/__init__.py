"""Layers: norms, embeddings, attention, transformer blocks, sparse convolution."""
