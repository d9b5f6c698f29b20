"""Worker threads whose callers may be interrupted at any moment.

`concurrent.futures` waits under locks whose Python code an interrupt can leave locked, for every other caller too.
Here each wait and each wake-up is one operation of a queue.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

from bgem3.runtime.cpu_session import CLOSED

RECHECK_SECONDS = 0.2  # how soon a caller notices that the workers have ended


class Task:
    """A function for a worker to call.

    Attributes
    ----------
    has_begun, is_done : how far a worker has come with it
    is_cancelled : set it to keep a worker from beginning
    outcome : holds the function's error, or None, once it is done
    """

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
    """Threads that run tasks in the order in which they are submitted.

    They end with :meth:`close`, with this object, or with the process.

    Parameters
    ----------
    n_workers : number of threads
    name : prefix of the threads' names
    """

    def __init__(self, n_workers: int, name: str) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(self._tasks,), name=f"{name}_{i}", daemon=True)
            for i in range(n_workers)
        ]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, _end, self._tasks, self._threads)

    def submit(self, task: Task) -> None:
        """Let a worker run a task."""
        self._tasks.put(task)

    def wait(self, task: Task) -> None:
        """Wait for a task and raise what it raised; RuntimeError if the workers ended before it."""
        error: BaseException | None
        while True:
            try:
                error = task.outcome.get(timeout=RECHECK_SECONDS)
                break
            except Empty:
                if not task.is_done and not any(thread.is_alive() for thread in self._threads):
                    raise RuntimeError(CLOSED) from None
        if error is not None:
            raise error

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
    """Run tasks until there is None."""
    while True:
        task = tasks.get()
        if task is None:
            return
        task.run()
        del task  # with all that it refers to, before the next one comes


def _end(tasks: "SimpleQueue[Task | None]", threads: list[threading.Thread], *, waits: bool = True) -> None:
    """Tell threads to end, and wait for them."""
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        # A worker's thread may be the one that drops the last reference to its workers.
        if waits and thread.is_alive() and thread is not threading.current_thread():
            thread.join()
