"""A hub in a process of its own, which outlives a client that is killed."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from hub_repositories import Repository
from hub_writable import serving

REQUESTS = "process_request_thread"  # in the name that socketserver gives a connection's thread
Repositories = Mapping[str, Repository]


@dataclass(frozen=True)
class HubProcess:
    """The hub, seen from the process that started it.

    Args:
        endpoint: address of the hub.
        pipe: to the process.
    """

    endpoint: str
    pipe: Connection

    def repositories(self) -> Repositories:
        """Returns the repositories once every connection has ended."""
        self.pipe.send(None)
        repositories: Repositories = self.pipe.recv()
        return repositories

    def reset(self, repositories: Repositories) -> None:
        """Replaces the repositories, and forgets large files."""
        self.pipe.send(repositories)
        self.pipe.recv()


@contextmanager
def started() -> Iterator[HubProcess]:
    """Yields a hub that answers while the block runs."""
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe()
    process = context.Process(target=_serve, args=(far,), daemon=True)
    process.start()
    try:
        yield HubProcess(near.recv(), near)
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection) -> None:
    with serving() as hub:
        pipe.send(hub.endpoint)
        while True:
            repositories = pipe.recv()
            _wait_for_connections()
            if repositories is not None:
                hub.repositories = dict(repositories)
                hub.large.clear()
            pipe.send(hub.repositories)


def _wait_for_connections() -> None:
    for thread in threading.enumerate():
        if REQUESTS in thread.name:
            thread.join()
