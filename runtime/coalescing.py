"""Request coalescing: calls that wait while others run are done together in the next run.

Nothing here can be left locked, because nothing is locked. An interrupt (Ctrl-C, or an exception that another thread
raises in this one) may end a call between any two of its steps. So every step that other threads see is one operation
of a list or queue, every call says when it is over, and whoever waits looks again from time to time.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from bgem3.runtime.forks import check_process

Task = TypeVar("Task")
Result = TypeVar("Result")

RECHECK_SECONDS = 0.2  # how long an interrupt at the wrong moment may delay another call; waking up costs little


class SharedRuns(Generic[Task, Result]):
    """Runs groups of tasks, each group in the thread of one of its callers.

    The first call that finds room leads: it takes the waiting tasks that fit its own and runs them as one group. No
    call waits for others to come. Where a run fails or is interrupted, the calls that shared it do their tasks alone,
    so that each raises only its own error.

    Parameters
    ----------
    fits : tells whether a task may join a group
    n_at_once : most groups that run at the same time
    errors : exceptions with which a run of several tasks may fail because of one of them; any other is raised by the
        call whose thread ran the group
    """

    def __init__(
        self,
        fits: Callable[[list[Task], Task], bool],
        n_at_once: int = 1,
        errors: tuple[type[Exception], ...] = (Exception,),
    ) -> None:
        self._fits, self._n_at_once, self._errors = fits, n_at_once, errors
        self._process = os.getpid()
        self._calls: list[_Call[Task, Result]] = []  # that are not over, in order of arrival

    def __call__(self, task: Task, run: Callable[[list[Task]], list[Result]]) -> Result:
        """Return a task's result; in a signal handler that interrupts a call of this thread, run the task alone.

        Parameters
        ----------
        run : does a group's tasks and returns their results in order; any of the group's callers' may be taken
        """
        thread = threading.get_ident()
        if any(other.caller.thread == thread and not other.caller.is_over for other in self._calls.copy()):
            return run([task])[0]  # the call of this thread can end only after this one
        call: _Call[Task, Result] = _Call(task, _Caller(thread))
        group: list[_Call[Task, Result]] = []
        try:
            try:
                self._calls.append(call)
                self._wait(call)
                if call.leader is call.caller:
                    self._gather(call, group)
                    results = run([member.task for member in group])
                    for member, result in zip(group, results, strict=True):
                        member.results.append(result)
            except self._errors:
                if len(group) <= 1:
                    raise
            finally:
                call.caller.is_over = True
        finally:  # once more, for an interrupt within the first
            call.caller.is_over = True
            self._leave(call)
        return call.results[0] if call.results else run([task])[0]

    def _wait(self, call: "_Call[Task, Result]") -> None:
        """Return once a call leads, or its leader is over."""
        while True:
            check_process(self._process)  # a process that was forked meanwhile waits for threads that it lacks
            if call.leader is None and self._has_room(call):
                call.claims.append(call.caller)
            if call.leader is call.caller or (call.leader is not None and call.leader.is_over):
                return
            with contextlib.suppress(Empty):
                call.bell.get(timeout=RECHECK_SECONDS)

    def _has_room(self, call: "_Call[Task, Result]") -> bool:
        """Tell whether fewer groups run than may, counting those that earlier calls are about to start."""
        n_earlier = 0
        for other in self._calls.copy():
            if other is call:
                break
            n_earlier += not other.caller.is_over and (other.leader is None or other.leader is other.caller)
        return n_earlier < self._n_at_once

    def _gather(self, call: "_Call[Task, Result]", group: "list[_Call[Task, Result]]") -> None:
        """Fill the group that a call leads: its own task first, then those that wait and fit, in their order."""
        group.append(call)
        for other in self._calls.copy():
            if other.leader is None and self._fits([member.task for member in group], other.task):
                other.claims.append(call.caller)
                if other.leader is call.caller:
                    group.append(other)

    def _leave(self, call: "_Call[Task, Result]") -> None:
        """Forget the calls that are over, and wake those that waited for this one."""
        n_woken = 0
        for other in self._calls.copy():
            if other.caller.is_over:
                with contextlib.suppress(ValueError):  # another thread was faster
                    self._calls.remove(other)
            elif other.leader is call.caller:
                other.bell.put(None)
            elif other.leader is None and n_woken < self._n_at_once:
                other.bell.put(None)
                n_woken += 1


@dataclass(eq=False)
class _Caller:
    """The thread of a call, and whether the call is over: it has its result, an error or an interrupt."""

    thread: int
    is_over: bool = False


@dataclass(eq=False)
class _Call(Generic[Task, Result]):
    """A caller's task and what became of it.

    Attributes
    ----------
    claims : the callers that wanted to run the task, this one or others; the first of them does
    results : the result, once there is one
    bell : wakes the caller
    """

    task: Task
    caller: _Caller
    claims: list[_Caller] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    bell: "SimpleQueue[None]" = field(default_factory=SimpleQueue)

    @property
    def leader(self) -> _Caller | None:
        return self.claims[0] if self.claims else None
