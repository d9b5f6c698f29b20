"""Calls of several threads that meet share one run: those that come while others run wait, and make up the next."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class SharedRuns(Generic[Task, Result]):
    """Runs groups of tasks, each in the thread of one of its callers.

    No task waits for others to come: a run starts as soon as one before has ended, with those that are there. Nobody
    gets another's error: where a run fails or is interrupted, those that shared it do their tasks alone.

    Parameters
    ----------
    fits : tells whether a task may join a group
    n_at_once : most groups that run at the same time
    """

    def __init__(self, fits: Callable[[list[Task], Task], bool], n_at_once: int = 1) -> None:
        self._fits, self._n_at_once = fits, n_at_once
        self._changed = threading.Condition()
        self._waiting: list[_Call[Task, Result]] = []
        self._running: list[_Call[Task, Result]] = []  # those whose threads run a group

    def __call__(self, task: Task, run: Callable[[list[Task]], list[Result]]) -> Result:
        """Return a task's result.

        Parameters
        ----------
        run : does a group's tasks and returns their results in order; any of the group's callers' may be taken
        """
        call: _Call[Task, Result] = _Call(task)
        try:
            with self._changed:
                self._waiting.append(call)
                self._changed.wait_for(lambda: call.is_done or (not call.is_taken and self._has_room()))
                if not call.is_done:
                    self._take_along(call)
            if call.group:
                results = run([member.task for member in call.group])
                for member, result in zip(call.group, results, strict=True):
                    member.results.append(result)
        except Exception:
            if len(call.group) == 1:
                raise
        finally:  # after an interrupt, too
            with self._changed:
                for calls in (self._waiting, self._running):
                    if call in calls:
                        calls.remove(call)
                for member in call.group:
                    member.is_done = True
                self._changed.notify_all()
        return call.results[0] if call.results else run([task])[0]

    def _has_room(self) -> bool:
        return len(self._running) < self._n_at_once

    def _take_along(self, call: "_Call[Task, Result]") -> None:
        """Let a call's thread run its task, and those of the calls that wait and fit it, in their order."""
        self._running.append(call)
        call.group.append(call)
        for other in self._waiting:
            if other is not call and self._fits([member.task for member in call.group], other.task):
                call.group.append(other)
        for member in call.group:
            member.is_taken = True
            self._waiting.remove(member)


@dataclass(eq=False)
class _Call(Generic[Task, Result]):
    """A caller's task, what became of it, and the calls that its thread runs."""

    task: Task
    is_taken: bool = False
    is_done: bool = False
    results: list[Result] = field(default_factory=list)
    group: "list[_Call[Task, Result]]" = field(default_factory=list)
