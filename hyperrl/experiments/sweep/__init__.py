"""Sweeps: a grid of models, settings and seeds as MLflow runs, each trained once, whatever is killed on the way.

Three kinds of process, each of which can be killed at any time:

* the command (`command`) plans the jobs (`sweep_file`, `resolve`), asks MLflow what is finished (`ledger`) and shows
  a table (`table`);
* the scheduler (`scheduler`) hands jobs to Ray;
* a supervisor per running job (`supervisor`) claims it and runs ``hyperrl fit``, again if it must.

They share nothing but MLflow and one folder per job (`folder`).
"""
