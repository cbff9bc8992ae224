"""Recorded meta-episodes: playing them, the file, and the pictures that are drawn from it."""
