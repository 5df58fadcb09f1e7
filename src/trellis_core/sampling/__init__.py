"""Flow sampling: schedule, guidance, Euler. Knows nothing about networks."""
