"""Everything TRELLIS and TRELLIS.2 share. Knows no model version."""
