"""What hardware is here, and how a run fits into it."""
