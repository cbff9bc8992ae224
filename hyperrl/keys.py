"""The data contract: every TensorDict key used in HyperRL, in one place.

A rollout is a TensorDict of batch size ``[B, T]`` (``B`` parallel environments, ``T`` steps). Entries of a step sit at
its root; what the environment returns after the action sits under ``next``.

| key | shape after ``[B, T]`` | dtype | written by | read by |
|---|---|---|---|---|
| ``observation`` | ``[O]`` | float32 | environment | policy, encoder (as s') |
| ``action`` | ``[]`` discrete, ``[A]`` continuous | int64, float32 | policy | environment, loss |
| ``reward`` (under ``next``) | ``[1]`` | float32, raw units | environment | reward normaliser, metrics |
| ``done`` | ``[1]`` | bool | environment: end of the **meta-episode** | TorchRL, returns |
| ``terminated`` / ``truncated`` | ``[1]`` | bool | environment | returns |
| ``episode_done`` | ``[1]`` | bool | environment: end of an inner episode | metrics only |
| ``is_init`` | ``[1]`` | bool | environment: first step of a task | memory (reset to the prior) |
| ``prev_observation`` | ``[O]`` | float32 | environment: s of the last transition | encoder |
| ``prev_action`` | ``[A]``, a discrete index as ``[1]`` | float32 | environment | encoder |
| ``prev_reward`` | ``[1]`` | float32, raw units | environment | encoder |
| ``task`` | ``[task_dim]`` | float32 | environment, if published | oracles, decoders |
| ``task_id`` / ``state_id`` | ``[]`` | int64 | environment, if published | one-hot inputs, decoders |
| ``belief`` | ``[belief_dim]`` | float32 | environment, if published | belief oracle |
| ``success`` | ``[1]`` | bool | environment, if published | metrics |
| ``start_memory`` | ``[ceil(S / T)]`` | float32 | policy: memory before the rollout, a piece per step | learner |
| ``action_log_prob`` | ``[]`` | float32 | policy | loss |
| ``logits`` or ``loc``, ``scale`` | ``[num_actions]`` or ``[A]`` | float32 | learner | loss |
| ``state_value`` | ``[1]`` | float32 | learner: value under the old parameters | returns, loss |
| ``new_value`` | ``[1]`` | float32 | learner: value under the current parameters | loss |
| ``latent`` | ``[2L]`` | float32 | learner: latent at decision time, where the RL loss does not train it | loss |
| ``latent_noise`` | ``[L]`` | float32 | policy, if it samples latents | learner |
| ``task_shown`` | ``[]`` | bool | policy, if the task may stand in for the latent | learner |
| ``advantage`` / ``value_target`` | ``[1]`` | float32 | learner | loss |

A trajectory is everything of one finished task: a TensorDict of batch size ``[n]`` with the entries ``observation``,
``prev_observation``, ``prev_action``, ``prev_reward`` and maybe ``state_id`` of its ``H`` transitions, ``[n, H, ...]``,
zero behind ``length [n]``, and maybe ``task [n, task_dim]`` and ``task_id [n]``.
"""

from __future__ import annotations

NEXT = "next"
OBSERVATION = "observation"
ACTION = "action"
REWARD = "reward"
DONE = "done"
TERMINATED = "terminated"
TRUNCATED = "truncated"
EPISODE_DONE = "episode_done"
IS_INIT = "is_init"
PREV_OBSERVATION = "prev_observation"
PREV_ACTION = "prev_action"
PREV_REWARD = "prev_reward"
TASK = "task"
TASK_ID = "task_id"
STATE_ID = "state_id"
BELIEF = "belief"
SUCCESS = "success"
START_MEMORY = "start_memory"
LATENT = "latent"
LATENT_NOISE = "latent_noise"
TASK_SHOWN = "task_shown"
LENGTH = "length"
TRAJECTORIES = "trajectories"
ACTION_LOG_PROB = "action_log_prob"
LOGITS = "logits"
LOC = "loc"
SCALE = "scale"
STATE_VALUE = "state_value"
NEW_VALUE = "new_value"
ADVANTAGE = "advantage"
VALUE_TARGET = "value_target"
