"""Comparing runs: where they are read, statistics over seeds, the choice of settings, tables, pictures and reports."""
