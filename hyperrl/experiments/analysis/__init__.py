"""How a memory, untrained or trained, passes on information and gradients (spec/tooling.md section 3).

From AMRL (Beck et al. 2020) and SplAgger (2024). `docs/analysis.md` lists the quantities and the published commands.

| file | what it has |
|---|---|
| `command.py` | `analyze`, which is ``hyperrl analyze`` |
| `memories.py` | the memory of a configuration or a checkpoint, behind its embeddings |
| `inputs.py` `trajectories.py` `feed.py` | what it is fed with: noise and signals, or what an environment answers |
| `gradients.py` `order.py` `outputs.py` | what is measured, as pure functions |
| `quantities.py` | all of that by name, with what it needs and how it is drawn |
| `pictures.py` | curves and bars, and their numbers |
"""

from hyperrl.experiments.analysis.command import analyze

__all__ = ["analyze"]
