"""Environments that Python steps one by one, and the processes that share this work.

Nothing in here imports torch: a worker then starts in a third of a second instead of three, and is 250 MB smaller.
"""
