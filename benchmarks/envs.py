"""Environment steps per second through the public `env.step` and `env.step_and_maybe_reset`.

    python benchmarks/envs.py --ids GridNavi-v0 --num_envs 16 1024 --json envs.json

Actions are drawn before the clock starts; a number is the median over repeats and counts single environments. One JSON
line is printed, and written to a file if asked for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDictBase

from hyperrl import keys
from hyperrl.envs import MetaEnv, env_ids, make_env

# One of each family, two where options make a difference.
IDS = (
    "GridNavi-v0",
    "Hall-L60H200-obs-rshape-v0",
    "T-LN-P1-v0",
    "T-LS-P1-v0",
    "MC-LS-v0",
    "MC-LSN-v0",
    "PlanningGame-3x3-v0",
    "PointEnv-v0",
    "SparsePointEnv-v0",
    "Semicircle-v0",
)


def draw_actions(env: MetaEnv, count: int = 64) -> tuple[torch.Tensor, ...]:
    return tuple(env.action_spec.rand() for _ in range(count))


def play_step(env: MetaEnv, actions: tuple[torch.Tensor, ...], steps: int) -> None:
    """Step only; `next` becomes the root by hand, and all environments are reset as soon as one is done."""
    td = env.reset()
    for t in range(steps):
        td[keys.ACTION] = actions[t % len(actions)]
        td = env.step(td)[keys.NEXT]
        if td[keys.DONE].any():
            td = env.reset()


def play_step_and_maybe_reset(env: MetaEnv, actions: tuple[torch.Tensor, ...], steps: int) -> None:
    """As collectors do it."""
    td: TensorDictBase = env.reset()
    for t in range(steps):
        td[keys.ACTION] = actions[t % len(actions)]
        _, td = env.step_and_maybe_reset(td)


def measure(env: MetaEnv, play: Callable[..., None], steps: int, repeats: int) -> float:
    """Median of steps per second, over all environments."""
    actions = draw_actions(env)
    play(env, actions, min(steps, 50))
    synchronize = torch.cuda.synchronize if env.device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        play(env, actions, steps)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return env.num_envs * steps / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", nargs="+", default=IDS, help="environment ids, or 'all'")
    parser.add_argument("--num_envs", nargs="+", type=int, default=[16, 64, 1024, 4096])
    parser.add_argument("--steps", type=int, default=300, help="vector steps per repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--publish", nargs="*", default=[], help="optional entries to publish, e.g. belief")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()

    results = []
    for env_id in env_ids() if args.ids == ["all"] else args.ids:
        for num_envs in args.num_envs:
            env = make_env(env_id, num_envs, device=args.device, publish=args.publish)
            row: dict[str, object] = {"id": env_id, "num_envs": num_envs}
            for play in (play_step, play_step_and_maybe_reset):
                row[play.__name__.removeprefix("play_")] = round(measure(env, play, args.steps, args.repeats))
            results.append(row)
    settings = {"steps": args.steps, "repeats": args.repeats, "publish": args.publish, "device": args.device}
    line = json.dumps(
        {
            "benchmark": "envs",
            "unit": "environment steps per second, median",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            **settings,
            "results": results,
        }
    )
    print(line)
    if args.json:
        args.json.write_text(line + "\n")


if __name__ == "__main__":
    main()
