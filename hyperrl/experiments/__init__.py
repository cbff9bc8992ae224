"""What is done with training runs and trained agents: sweeps, comparisons, analyses, pictures, export."""
