"""Workers: the same numbers however many there are, errors in one line, and an end with whoever started them."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
import torch
from gymnasium_cases import Count, OnlyHere, Walk
from test_meta_env import assert_equal, play

from hyperrl import keys
from hyperrl.envs import GymnasiumMetaEnv, MetaEnv, make_env
from hyperrl.workers.batch import GymnasiumBatch
from hyperrl.workers.pool import Pool, WorkerError

gymnasium.register("test/WorkedWalk-v0", entry_point=Walk, max_episode_steps=10)
SPEC = gymnasium.spec("test/WorkedWalk-v0")


def walk(num_workers: int, num_envs: int = 5, **options: Any) -> GymnasiumMetaEnv:
    given = {"env_id": "test/WorkedWalk-v0", "set_task": "options", "task_low": [-1, 2], "task_high": [1, 4]}
    return GymnasiumMetaEnv(num_envs, num_workers=num_workers, publish=["task", "success"], **given, **options)


def reach(num_workers: int, **options: Any) -> MetaEnv:
    given = {"episode_length": 12, "publish": ["task", "success"]}
    return make_env("ML1-reach-v0", 5, num_workers=num_workers, **given, **options)


def ml10(num_workers: int, **options: Any) -> MetaEnv:
    given = {"episode_length": 5, "task_split": "train", "publish": ["task", "task_id"]}
    return make_env("ML10-v0", 4, num_workers=num_workers, **given, **options)


def processes(env: MetaEnv) -> list[subprocess.Popen[bytes]]:
    """The workers that have been started."""
    assert hasattr(env, "_pool")
    return [part.process for part in env._pool._parts[1:]]


def alive(pids: list[int]) -> list[int]:
    """Those that have not ended; a process that nobody has waited for yet has ended, too."""
    living = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return [process.pid for process in living if process.status() != psutil.STATUS_ZOMBIE]


def wait_for_the_end(pids: list[int], seconds: float = 10.0) -> None:
    limit = time.monotonic() + seconds
    while alive(pids):
        assert time.monotonic() < limit, f"processes {alive(pids)} are still there"
        time.sleep(0.02)


class TestNumbers:
    """The number of workers changes nothing but the speed."""

    @pytest.mark.parametrize(("build", "numbers"), [(walk, (1, 2, 3)), (reach, (1, 2, 3)), (ml10, (2,))])
    def test_rollouts_are_equal_for_every_number_of_workers(
        self, build: Callable[..., MetaEnv], numbers: tuple[int, ...]
    ) -> None:
        here = build(0, seed=3)
        expected = play(here, 2 * here.horizon + 3)
        assert expected[keys.NEXT, keys.DONE].any()
        for number in numbers:
            env = build(number, seed=3)
            assert_equal(play(env, 2 * here.horizon + 3), expected)
            assert len(processes(env)) == number
            env.close()

    def test_states_go_from_one_number_of_workers_to_another(self) -> None:
        one, other = reach(1, seed=3), reach(2, seed=4)
        td = play(one, 17)[:, -1][keys.NEXT].exclude(keys.REWARD)
        state, expected = one.state_dict(), play(one, 30, td=td.clone())
        other.load_state_dict(state)
        assert_equal(play(other, 30, td=td.clone()), expected)
        for env in (one, other):
            env.close()

    def test_parts_are_as_equal_as_possible(self) -> None:
        assert np.diff(Pool(Count, 7, 2)._bounds).tolist() == [2, 2, 3]
        assert np.diff(Pool(Count, 2, 7)._bounds).tolist() == [1, 1]
        assert np.diff(Pool(Count, 3, 0)._bounds).tolist() == [3]

    def test_rows_reach_their_owners(self) -> None:
        pool = Pool(partial(GymnasiumBatch, spec=SPEC, set_task="options"), 5, 1)
        tasks = np.arange(10, dtype=np.float32).reshape(5, 2)
        (every,) = pool.call("reset", np.arange(5), tasks, np.arange(5))
        for rows in ([1], [4], [0, 3], [2, 3, 4]):
            (some,) = pool.call("reset", np.array(rows), tasks[rows], np.array(rows))
            np.testing.assert_array_equal(some, every[rows])
        pool.close()

    def test_pictures_come_from_workers(self) -> None:
        frames = []
        for workers in (0, 2):
            env = walk(workers, seed=2)
            play(env, 4)
            frames.append([env.render_frame(index) for index in range(5)])
            env.close()
        np.testing.assert_array_equal(*frames)
        assert not np.array_equal(frames[0][0], frames[0][4])


class TestErrors:
    """What goes wrong in a worker is said here."""

    def test_an_error_is_one_line_with_the_workers_traceback_as_a_note_and_the_others_go_on(self) -> None:
        pool, rows = Pool(Count, 6, 2), np.arange(6)
        with pytest.raises(WorkerError, match=r"^worker 2 of 2: KeyError: 'row 1\\nhas a bad action'") as error:
            pool.call("step", rows, np.array([1, 1, 1, 1, 1, 13]))
        assert "in advance" in error.value.__notes__[0]
        observations, *_ = pool.call("step", rows, np.ones(6))
        assert observations[:, 0].tolist() == [2, 2, 2, 2, 2, 1]
        with pytest.raises(WorkerError, match="^worker 1 of 2: AttributeError: .*'dance'"):
            pool.call("dance", rows[2:4])
        with pytest.raises(KeyError, match="has a bad action"):  # this process says it in its own words
            pool.call("step", rows[:1], np.array([13]))
        pool.close()

    def test_a_part_that_cannot_be_built(self) -> None:
        pool = Pool(OnlyHere(), 2, 1)
        with pytest.raises(WorkerError, match="^worker 1 of 1: OSError: no such place"):
            pool.call("reset", np.arange(2))
        pool.close()

    @pytest.mark.parametrize("build", [Count, partial(Count, bytes(2**24))])  # more than a pipe holds
    def test_a_worker_that_dies_at_its_start(self, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", shutil.which("false"))
        with pytest.raises(WorkerError, match=r"^worker 1 of 1 has died \(exit code 1\)$"):
            Pool(build, 2, 1).call("reset", np.arange(2))

    def test_what_a_worker_cannot_import_is_named(self) -> None:
        code = (
            "import numpy as np\n"
            "from hyperrl.workers.pool import Pool\n"
            "class Mine:\n"
            "    def __init__(self, num_envs): pass\n"
            "    def close(self): pass\n"
            "pool = Pool(Mine, 2, 1)\n"
            "try:\n    pool.call('reset', np.array([1]))\n"
            "except RuntimeError as error:\n    print(error)\n"
        )
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert process.stdout.startswith("worker 1 of 1: AttributeError: Can't get attribute 'Mine'"), process.stderr

    def test_a_dead_worker_is_noticed_and_the_others_end(self) -> None:
        pool, rows = Pool(Count, 6, 2), np.arange(6)
        pool.call("reset", rows)
        pids = [part.process.pid for part in pool._parts[1:]]
        with pytest.raises(WorkerError, match=r"^worker 1 of 2 has died \(exit code -9\)$"):
            pool.call("step", rows, np.array([1, 1, 66, 1, 1, 1]))
        wait_for_the_end(pids)

    def test_a_worker_that_died_in_between(self) -> None:
        env = walk(1)
        td = env.reset()
        (process,) = processes(env)
        process.kill()
        process.wait()
        with pytest.raises(WorkerError, match=r"^worker 1 of 1 has died \(exit code -9\)$"):
            env.step(td.set(keys.ACTION, torch.zeros(5, 2)))
        env.close()

    def test_an_interruption_leaves_no_late_replies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pool, rows = Pool(Count, 4, 1), np.arange(4)
        pool.call("step", rows, np.ones(4))

        def interrupt() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(pool._parts[1], "reply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.call("step", rows, np.ones(4))
        observations, *_ = pool.call("step", rows, np.full(4, 5.0))
        assert observations[:, 0].tolist() == [5] * 4
        pool.close()


class TestEnds:
    """Workers do not outlive what they work for."""

    def test_nothing_is_started_before_it_is_needed(self) -> None:
        env = walk(2)
        assert processes(env) == []
        env.reset()
        assert len(processes(env)) == 2
        env.close()

    def test_they_end_when_they_are_closed(self) -> None:
        env = walk(2)
        env.reset()
        pids = [process.pid for process in processes(env)]
        assert alive(pids) == pids
        env.close()
        assert alive(pids) == []

    def test_they_end_when_nobody_knows_the_environment_any_more(self) -> None:
        env = walk(2)
        env.reset()
        pids = [process.pid for process in processes(env)]
        del env
        gc.collect()
        wait_for_the_end(pids)

    @pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9)])
    def test_they_end_with_a_script_that_has_no_guard(self, tmp_path: Path, ending: str, code: int) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "import os, sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "import gymnasium, numpy as np\n"
            "from functools import partial\n"
            "from gymnasium_cases import Count, OnlyHere, Walk\n"
            "from hyperrl.workers.batch import GymnasiumBatch\n"
            "from hyperrl.workers.pool import Pool\n"
            "gymnasium.register('test/Walk-v0', entry_point=Walk, max_episode_steps=10)\n"
            "build = partial(GymnasiumBatch, spec=gymnasium.spec('test/Walk-v0'), set_task='options')\n"
            "pool = Pool(build, 6, 2)\n"
            "pool.call('reset', np.arange(6), np.ones((6, 2), dtype=np.float32), np.arange(6))\n"
            "print(*(part.process.pid for part in pool._parts[1:]), flush=True)\n"
            f"{ending}\n"
        )
        process = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
        assert process.returncode == code, process.stderr
        assert process.stderr == ""
        pids = [int(pid) for pid in process.stdout.split()]
        assert len(pids) == 2
        wait_for_the_end(pids)
