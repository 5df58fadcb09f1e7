"""TRELLIS v1."""
