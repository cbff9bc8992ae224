"""Robots of MuJoCo: half-cheetahs, ants, and walkers and hoppers with random physics (`spec/envs-mujoco.md`)."""
