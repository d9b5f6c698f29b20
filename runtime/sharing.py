"""Calls of several threads that meet share one run: those that come while it goes on wait, and make up the next."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class SharedRuns(Generic[Task, Result]):
    """Runs one group of tasks at a time, each in the thread of one of its callers.

    No task waits for others to come: a run starts as soon as the one before has ended, with those that are there.

    Parameters
    ----------
    run : does a group's tasks and returns their results in order; what it raises, all of the group's callers get
    fits : tells whether a task may join a group
    """

    def __init__(self, run: Callable[[list[Task]], list[Result]], fits: Callable[[list[Task], Task], bool]) -> None:
        self._run, self._fits = run, fits
        self._lock = threading.Lock()
        self._is_busy = False
        self._waiting: list[_Call[Task, Result]] = []

    def __call__(self, task: Task) -> Result:
        """Do a task, and return its result."""
        call: _Call[Task, Result] = _Call(task)
        with self._lock:
            self._waiting.append(call)
            if not self._is_busy:
                self._is_busy = True
                self._appoint()
        try:
            call.turn.wait()
        except BaseException:  # an interrupt; the others still count on a group that this thread was to run
            with self._lock:
                if call in self._waiting:
                    self._waiting.remove(call)
            self._lead(call.group)
            raise
        self._lead(call.group)
        if call.error is not None:
            raise call.error
        return call.results[0]

    def _appoint(self) -> None:
        """Let the first call that waits run those that fit it, in their order; nobody is busy if none waits."""
        group: list[_Call[Task, Result]] = []
        for call in self._waiting:
            if not group or self._fits([other.task for other in group], call.task):
                group.append(call)
        self._waiting = [call for call in self._waiting if call not in group]
        self._is_busy = bool(group)
        if group:
            group[0].group = group
            group[0].turn.set()

    def _lead(self, group: "list[_Call[Task, Result]]") -> None:
        """Run a group, if there is one; appoint the next."""
        if not group:
            return
        again: list[_Call[Task, Result]] = []
        try:
            results = self._run([call.task for call in group])
            for call, result in zip(group, results, strict=True):
                call.results.append(result)
        except Exception as error:
            for call in group:
                call.error = error
        except BaseException as interrupt:  # of this thread alone
            group[0].error = interrupt
            group, again = group[:1], group[1:]
        with self._lock:
            self._waiting[:0] = again
            self._appoint()
        for call in group:
            call.turn.set()


@dataclass(eq=False)
class _Call(Generic[Task, Result]):
    """A caller's task, its result or error, and the group that it is to run when its turn comes."""

    task: Task
    turn: threading.Event = field(default_factory=threading.Event)
    group: "list[_Call[Task, Result]]" = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    error: BaseException | None = None
