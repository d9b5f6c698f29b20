"""Worker threads that callers may wait for, and be interrupted at any moment.

`concurrent.futures` waits under locks that an interrupt can leave locked for every other caller. Here every wait and
every wake-up is one operation of a queue.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

from bgem3.runtime.encoder_session import CLOSED

RECHECK_SECONDS = 0.2  # bounds how long a caller waits for workers that have ended; looking again costs little


class Task:
    """A function for a worker to call; ``outcome`` holds its error, or None, when it is done."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self.outcome: SimpleQueue[BaseException | None] = SimpleQueue()
        self.has_begun = self.is_done = self.is_cancelled = False

    def run(self) -> None:
        """Call the function, in a worker's thread."""
        error: BaseException | None = None
        self.has_begun = True
        try:
            if not self.is_cancelled:
                self._function()
        except BaseException as raised:
            error = raised
        self.is_done = True
        self.outcome.put(error)


class Workers:
    """Threads that run tasks in the order of submission, until :meth:`close` or until nothing refers to this object."""

    def __init__(self, n_workers: int, name: str) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(self._tasks,), name=f"{name}_{i}", daemon=True)
            for i in range(n_workers)
        ]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, _end, self._tasks, self._threads, waits=True)

    def submit(self, task: Task) -> None:
        """Let a worker run a task."""
        self._tasks.put(task)

    def wait(self, task: Task) -> None:
        """Wait for a task and raise its error; raise RuntimeError if the workers ended before it."""
        while True:
            try:
                error = task.outcome.get(timeout=RECHECK_SECONDS)
            except Empty:
                if not task.is_done and not any(thread.is_alive() for thread in self._threads):
                    raise RuntimeError(CLOSED) from None
                continue
            if error is not None:
                raise error
            return

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Keep tasks from beginning, and wait for those that have begun."""
        for task in tasks:
            task.is_cancelled = True
        for task in tasks:
            while task.has_begun and not task.is_done:
                with contextlib.suppress(Empty):
                    task.outcome.get(timeout=RECHECK_SECONDS)

    def close(self, *, waits: bool) -> None:
        """End the threads after the tasks that were submitted, and wait for their end if ``waits``."""
        _end(self._tasks, self._threads, waits=waits)


def _work(tasks: "SimpleQueue[Task | None]") -> None:
    while (task := tasks.get()) is not None:
        task.run()
        del task  # frees what it refers to before the next one comes


def _end(tasks: "SimpleQueue[Task | None]", threads: list[threading.Thread], *, waits: bool) -> None:
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        # A worker's thread may itself drop the last reference to its workers.
        if waits and thread.is_alive() and thread is not threading.current_thread():
            thread.join()
