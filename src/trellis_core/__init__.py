"""Everything TRELLIS and TRELLIS.2 share. Knows no model version."""

__version__ = "0.1.0"
