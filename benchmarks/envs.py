"""Environment steps per second through the public `env.step` and `env.step_and_maybe_reset`.

    python benchmarks/envs.py --ids GridNavi-v0 --num_envs 16 1024
    python benchmarks/envs.py --ids HalfCheetahDir-v0 AntDir-v0 --num_envs 64 --threads 1

Actions are drawn before the clock starts; a number is the median over repeats and counts single environments. For
robots of MuJoCo, `bare` is the same for the engine alone (`mujoco.batch` under the same controls), and `ratio` the
median of `step` over `bare`, taken in turn. Ends with one JSON line.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import torch
from common import Report, alternate, make_parser
from mujoco.batch import Batch
from tensordict import TensorDictBase

from hyperrl import keys
from hyperrl.envs import MetaEnv, env_ids, make_env
from hyperrl.envs.mujoco.base import MujocoMetaEnv
from hyperrl.envs.mujoco.models import ROBOTS, load_model

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
    "HalfCheetahDir-v0",
    "AntDir-v0",
    "Walker2DRandParams-v0",
)


def draw_actions(env: MetaEnv, count: int = 64) -> tuple[torch.Tensor, ...]:
    return tuple(env.action_spec.rand() for _ in range(count))


def play_step(env: MetaEnv, actions: tuple[torch.Tensor, ...], steps: int) -> None:
    """Step only; `next` becomes the root by hand, and all environments are reset at the horizon.

    Where episodes end early, environments wait for the others: what they do until then means nothing.
    """
    for t in range(steps):
        if t % env.horizon == 0:
            td = env.reset()
        td[keys.ACTION] = actions[t % len(actions)]
        td = env.step(td)[keys.NEXT]


def play_step_and_maybe_reset(env: MetaEnv, actions: tuple[torch.Tensor, ...], steps: int) -> None:
    """As collectors do it."""
    td: TensorDictBase = env.reset()
    for t in range(steps):
        td[keys.ACTION] = actions[t % len(actions)]
        _, td = env.step_and_maybe_reset(td)


def play_bare(env: MujocoMetaEnv, actions: tuple[torch.Tensor, ...], steps: int) -> None:
    """The engine alone: no observations, rewards and resets."""
    batch = Batch(load_model(env.robot), env.num_envs, torch.get_num_threads())
    batch.reset()
    control, controls = batch.bind("ctrl"), [action.numpy() for action in actions]
    for t in range(steps):
        control[:] = controls[t % len(controls)]
        batch.step(nstep=ROBOTS[env.robot].substeps)


def measure(env: MetaEnv, steps: int, repeats: int) -> dict[str, float]:
    """Medians of steps per second, over all environments, of each way to play, in turn."""
    plays: list[Callable[..., None]] = [play_step, play_step_and_maybe_reset]
    if isinstance(env, MujocoMetaEnv):
        plays.append(play_bare)
    actions = draw_actions(env)

    def run(play: Callable[..., None]) -> None:
        play(env, actions, steps)
        if env.device.type == "cuda":
            torch.cuda.synchronize()

    forms = {play.__name__.removeprefix("play_"): functools.partial(run, play) for play in plays}
    times = alternate(forms, repeats, warmup=1)
    frames = env.num_envs * steps
    speeds = {f"{name}_per_second": frames / statistics.median(seconds) for name, seconds in times.items()}
    if "bare" in times:
        ratios = [bare / own for own, bare in zip(times["step"], times["bare"], strict=True)]
        speeds["ratio"] = statistics.median(ratios)
    return speeds


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--ids", nargs="+", default=IDS, help="environment ids, or 'all'")
    parser.add_argument("--num_envs", nargs="+", type=int, default=[16, 64, 1024, 4096])
    parser.add_argument("--steps", type=int, default=300, help="vector steps per repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--publish", nargs="*", default=[], help="optional entries to publish, e.g. belief")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of MuJoCo")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    report = Report("envs", steps=args.steps, publish=args.publish, device=args.device)
    for env_id in env_ids() if args.ids == ["all"] else args.ids:
        for num_envs in args.num_envs:
            env = make_env(env_id, num_envs, device=args.device, publish=args.publish)
            report.add(f"{env_id} x {num_envs}", measure(env, args.steps, args.repeats))
            env.close()
    report.finish()


if __name__ == "__main__":
    main()
