"""Run work on files in processes that may die, hang or swell, here or on a Dask cluster.

Each costs its own file.
"""

import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait

import cloudpickle
import psutil

from cag_utils.cines.reasons import NotACine

MEMORY = 600 * 2**20  # bytes a worker may take beyond what its imports do (about 250 MB); choice
SECONDS = 60.0  # without a message from a worker; choice: the slowest frame takes one
AHEAD, HELD = 64, 2  # jobs begun before the first is consumed; messages held of a later job
BATCH = 8  # jobs of a Dask task; choice: a task costs the scheduler some milliseconds
PRELOADED = "cag_utils.cines.sampling"
READY, END = "ready", "end"
Work = Callable[[object], Iterable]  # of a job
Limit = float | Callable[[object], float]  # seconds, or a function of the job


@dataclass(eq=False)
class _Task:
    job: object
    messages: deque = field(default_factory=deque)
    has_ended: bool = False
    since: float = field(default_factory=time.monotonic)  # it was begun, or last heard of


class Guard(AbstractContextManager):
    """Worker processes, replaced when they are lost; a context manager.

    They start from a clean process, not from this one: nothing of the program is imported again,
    and no lock of a thread is copied.
    """

    def __init__(self, n_workers: int = 1):
        """Start nothing yet."""
        self._workers = [_Worker() for _ in range(n_workers)]

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.stop()

    def run(
        self, work: Work, jobs: Iterable, seconds: Limit = SECONDS
    ) -> Iterator[tuple[object, object]]:
        """Do the jobs; what `work` yields of each comes back in the order of the jobs.

        Args:
            work: A function of a job; a `NotACine` that it raises is its last message.
            jobs: Anything that can be pickled; asked for only `AHEAD` ahead.
            seconds: Of silence, or a function of the job, after which a process is given up; None
                as a message is swallowed, and breaks the silence.

        Yields:
            The job, and one message of it. A job whose process was lost ends with a `NotACine`.

        Raises:
            RuntimeError: Processes do not start.
            OSError: `work` raised it, as of a full disk; any other error costs its job.
        """
        waiting, tasks = iter(jobs), deque()
        try:
            while True:
                for worker in self._workers:
                    if worker.task is None and len(tasks) < AHEAD:
                        for job in waiting:
                            tasks.append(worker.begin(work, job))
                            break
                if not tasks:
                    return
                first = tasks[0]
                if first.messages:
                    yield first.job, first.messages.popleft()
                elif first.has_ended:
                    tasks.popleft()
                else:
                    self._hear(first, seconds)
        finally:
            for worker in self._workers:
                if worker.task:
                    worker.stop()

    def _hear(self, first: _Task, seconds: Limit) -> None:
        """Wait for a message; give up who has been silent for too long."""
        busy = [
            w for w in self._workers if w.task and (w.task is first or len(w.task.messages) < HELD)
        ]
        ready = wait([worker.pipe for worker in busy], timeout=0.5)
        now = time.monotonic()
        for worker in busy:
            limit = seconds(worker.task.job) if callable(seconds) else seconds
            if worker.pipe in ready:
                worker.hear()
            elif now - worker.task.since > limit:
                worker.lose(NotACine("the decoder took too long", f"more than {limit:.0f} s"))


class Cluster(AbstractContextManager):
    """A Dask cluster in the place of a `Guard`: each thread of its workers has one of its own.

    All machines have this package, and see the files under the same paths.
    """

    def __init__(self, scheduler: str):
        """Connect to a scheduler, e.g. `tcp://host:8786`.

        Raises:
            OSError: It does not answer.
        """
        from distributed import Client  # takes a second, and most runs need none

        self._client = Client(scheduler)

    def __exit__(self, *_: object) -> None:
        """Leave the cluster as it was."""
        self._client.close()

    def run(
        self, work: Work, jobs: Iterable, seconds: Limit = SECONDS
    ) -> Iterator[tuple[object, object]]:
        """Do the jobs; see `Guard.run`. A task whose machine is lost is done again by another."""
        rest, tasks = iter(jobs), deque()
        try:
            while True:
                n_threads = sum(self._client.nthreads().values())
                while len(tasks) < 2 * n_threads + 1 and (some := list(islice(rest, BATCH))):
                    limits = [(job, seconds(job) if callable(seconds) else seconds) for job in some]
                    tasks.append(self._client.submit(_do_guarded, work, limits, pure=False))
                if not tasks:
                    return
                yield from tasks.popleft().result()
        finally:
            self._client.cancel(list(tasks))


_own = threading.local()  # the guard of a thread of a Dask worker


def _do_guarded(work: Work, limits: list[tuple[object, float]]) -> list[tuple[object, object]]:
    if not hasattr(_own, "guard"):
        _own.guard = Guard()
    return list(_own.guard.run(work, [job for job, _ in limits], dict(limits).__getitem__))


class _Worker:
    """One process and the pipe to it; started when it is first needed."""

    def __init__(self):
        self.process, self.pipe, self.task = None, None, None

    def begin(self, work: Work, job: object) -> _Task:
        content = cloudpickle.dumps((work, job))
        if self.process is None or not self.process.is_alive():
            self._start()
        self.task = _Task(job)
        with suppress(BrokenPipeError):  # it is seen to be lost when it is listened to
            self.pipe.send_bytes(content)
        return self.task

    def _start(self) -> None:
        context = mp.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            context.set_forkserver_preload([PRELOADED])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _unseen_main():
            self.process.start()
        theirs.close()
        try:
            assert self.pipe.recv() == READY
        except EOFError:
            raise RuntimeError("worker processes end before they begin; is memory left?") from None

    def hear(self) -> None:
        try:
            kind, message = self.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self.process.join(5)
            code = self.process.exitcode or 0
            note = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self.lose(NotACine("the decoder died", note))
            return
        self.task.since = time.monotonic()
        if kind == "raised":
            self.task = None
            raise message
        if kind == END:
            self.task.has_ended, self.task = True, None
        elif message is not None:
            self.task.messages.append(message)

    def lose(self, problem: NotACine) -> None:
        self.task.messages.append(problem)
        self.task.has_ended = True
        self.stop()

    def stop(self) -> None:
        self.task = None
        if self.process:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


@contextmanager
def _unseen_main() -> Iterator[None]:
    """Hide the running program: a child would import it again, and needs nothing of it.

    A Dask worker is a daemon, which may have no children; these end when the pipe to them closes.
    """
    main, own = sys.modules["__main__"], mp.current_process()._config
    sys.modules["__main__"] = types.ModuleType("__main__")
    is_daemon = own.pop("daemon", None)
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if is_daemon is not None:
            own["daemon"] = is_daemon


def _serve(pipe: Connection) -> None:
    """Do what comes through the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - what decoders print may quote
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    _limit_memory()
    pipe.send(READY)
    with suppress(EOFError, BrokenPipeError):
        while True:
            work, job = cloudpickle.loads(pipe.recv_bytes())
            try:
                for message in work(job):
                    pipe.send(("", message))
            except NotACine as problem:
                pipe.send(("", problem))
            except MemoryError:
                pipe.send(("", NotACine("out of memory", f"{MEMORY // 2**20} MB")))
            except BrokenPipeError:
                raise
            except OSError as error:
                error.add_note(traceback.format_exc())
                pipe.send(("raised", error))
                continue
            except Exception as error:  # no file may stop the others
                pipe.send(("", NotACine("unexpected error", type(error).__name__, error)))
            pipe.send((END, None))


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows: sizes are checked before, and time
        return
    limit = psutil.Process().memory_info().vms + MEMORY
    with suppress(ValueError, OSError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
