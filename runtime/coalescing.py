"""Request coalescing: concurrent requests that wait while others run are merged into the next run.

An interrupt (Ctrl-C, or an exception that another thread raises in this one) may end a call between any two of its
steps. So there are no locks, which an interrupt could leave locked. Every step that other threads see is one operation
of a list or a queue, every call records when it is over, and a call that waits looks again from time to time.
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

RECHECK_SECONDS = 0.2  # bounds the delay of a call that an interrupt kept from being woken; looking again costs little


class RequestCoalescer(Generic[Task, Result]):
    """Merges the tasks of concurrent calls into groups and runs each group in the thread of one of its calls.

    The first call that finds room leads a group: it takes the waiting tasks that fit and runs them with its own. No
    call waits for others to come. If the run of a group fails or is interrupted, its other calls run their own tasks
    alone, so each call raises only its own error.

    Parameters
    ----------
    fits : tells whether a task may join a group
    n_at_once : most groups that run at the same time
    errors : exceptions that one task of a group may cause; any other is raised by the leader
    """

    def __init__(
        self,
        fits: Callable[[list[Task], Task], bool],
        n_at_once: int = 1,
        errors: tuple[type[Exception], ...] = (Exception,),
    ) -> None:
        self._fits, self._n_at_once, self._errors = fits, n_at_once, errors
        self._process = os.getpid()
        self._calls: list[_Call[Task, Result]] = []  # in order of arrival; those that are over leave

    def __call__(self, task: Task, run: Callable[[list[Task]], list[Result]]) -> Result:
        """Run a task, alone or in a group, and return its result; ``run`` takes the tasks of a group."""
        thread = threading.get_ident()
        if any(other.caller.thread == thread and not other.caller.is_over for other in self._calls.copy()):
            return run([task])[0]  # for a signal handler: the call that it interrupts can end only after it
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
        """Wait until a call leads a group, or the call that led its group is over."""
        while True:
            check_process(self._process)  # a process forked meanwhile lacks the threads that it would wait for
            if call.leader is None and self._has_room(call):
                call.claims.append(call.caller)
            if call.leader is call.caller or (call.leader is not None and call.leader.is_over):
                return
            with contextlib.suppress(Empty):
                call.bell.get(timeout=RECHECK_SECONDS)

    def _has_room(self, call: "_Call[Task, Result]") -> bool:
        """Tell whether another group may run, beside running groups and groups that earlier calls will start."""
        calls = self._calls.copy()
        earlier = [other for other in calls[: calls.index(call)] if not other.caller.is_over]
        return sum(other.leader in (None, other.caller) for other in earlier) < self._n_at_once

    def _gather(self, call: "_Call[Task, Result]", group: "list[_Call[Task, Result]]") -> None:
        """Fill the group that a call leads: with itself, then with the waiting calls that fit, in order of arrival."""
        group.append(call)
        for other in self._calls.copy():
            if other.leader is None and self._fits([member.task for member in group], other.task):
                other.claims.append(call.caller)
                if other.leader is call.caller:
                    group.append(other)

    def _leave(self, call: "_Call[Task, Result]") -> None:
        """Remove the calls that are over, and wake the calls that waited for this one."""
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
    """The thread of a call, and whether the call is over, with a result, an error or an interrupt.

    It is apart from `_Call` so that calls do not refer to themselves through their claims: results are freed at once.
    """

    thread: int
    is_over: bool = False


@dataclass(eq=False)
class _Call(Generic[Task, Result]):
    """A call's task and its state."""

    task: Task
    caller: _Caller
    claims: list[_Caller] = field(default_factory=list)  # the first of these callers runs the task
    results: list[Result] = field(default_factory=list)  # one, or none yet
    bell: "SimpleQueue[None]" = field(default_factory=SimpleQueue)  # wakes the call

    @property
    def leader(self) -> _Caller | None:
        return self.claims[0] if self.claims else None
