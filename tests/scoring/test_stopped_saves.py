"""Saves that are killed, interrupted or raced by other processes leave the old state or the new one, whole."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.scoring.racing import race
from tests.scoring.stopping import stop_saves


def in_a_process(call: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a process that has one thread and can be forked."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(call, *arguments).result(600)


@pytest.mark.parametrize("is_thorough", [False, pytest.param(True, marks=pytest.mark.stress)])
@pytest.mark.parametrize("is_kill", [True, False], ids=["killed", "interrupted"])
def test_a_save_that_is_stopped_leaves_old_or_new_and_the_next_one_cleans_up(
    is_kill: bool, is_thorough: bool, tmp_path: Path
) -> None:
    in_a_process(stop_saves, tmp_path, is_kill, is_thorough)


@pytest.mark.parametrize("n", [2, pytest.param(60, marks=pytest.mark.stress)])
def test_processes_that_save_at_once_leave_one_save_whole_and_lose_nothing(n: int, tmp_path: Path) -> None:
    in_a_process(race, tmp_path, n)
