"""Networks that both model versions share: structure flow and VAE, image encoders."""
