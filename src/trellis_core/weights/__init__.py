"""Model files: finding, checking, loading strictly; saved runs."""
