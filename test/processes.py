"""Running a function in several processes as torchrun does, for tests of training together."""

from collections.abc import Callable
import multiprocessing
from multiprocessing.connection import Connection, wait
import os
import socket
from typing import Any

# The server loads the slow modules once; each process is a fork of it.
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['lightning_fabric', 'nerfmatch_ros.mapping.build_map'])


class WorkerDiedError(Exception):
    """A process ended before its work; the others were ended then, as torchrun does."""


def run_together(count: int, worker: Callable, *arguments: Any) -> list:
    """Call `worker(*arguments)` in `count` processes and give what it returned in each, by rank.

    worker: a function of a module, which is imported again in each process; it returns plain
    values and arrays, no tensors, which would live in the memory of the process.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(count)]
    processes = [
        CONTEXT.Process(target=_work, args=(rank, count, port, pipe, worker, arguments))
        for rank, (_, pipe) in enumerate(pipes)]
    for process, (_, sending) in zip(processes, pipes):
        process.start()
        sending.close()
    results: dict[int, Any] = {}
    try:
        while len(results) < count:
            waiting = {pipes[rank][0]: rank for rank in range(count) if rank not in results}
            for pipe in wait(list(waiting)):
                try:
                    results[waiting[pipe]] = pipe.recv()
                except (EOFError, ConnectionResetError):
                    processes[waiting[pipe]].join()
                    raise WorkerDiedError(f'process {waiting[pipe]} ended with code '
                                          f'{processes[waiting[pipe]].exitcode}') from None
    finally:
        for process in processes:
            if len(results) < count:
                process.kill()
            process.join()
    return [results[rank] for rank in range(count)]


def _work(rank: int, count: int, port: int, pipe: Connection, worker: Callable,
          arguments: tuple) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
                      LOCAL_WORLD_SIZE=str(count), MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    pipe.send(worker(*arguments))
