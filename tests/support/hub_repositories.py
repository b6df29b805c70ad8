"""What a hub that takes uploads holds: repositories with commits and branches, and large files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LARGE = 4096  # bytes: from here on a file is a large one
Tree = Mapping[str, bytes]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with requests of one kind."""

    route: str  # a key of ROUTES
    status: int
    times: int = 1
    code: str = ""  # X-Error-Code
    words: str = ""  # X-Error-Message
    after: int = 0  # so many of them go well first
    cut: bool = False  # the connection breaks in the middle instead


@dataclass
class Repository:
    """Commits by their name, branches by theirs."""

    private: bool
    gated: str | bool = False
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, tree: Tree) -> str:
        """One commit on a branch."""
        text = f"{len(self.commits)} {self.branches.get(branch)} {sorted(tree)}"
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name] = dict(tree)
        self.branches[branch] = name
        return name

    def tree(self, branch: str) -> dict[str, bytes]:
        """What a branch holds, but for the hub's own file."""
        found = self.commits[self.branches[branch]]
        return {name: content for name, content in found.items() if name != ".gitattributes"}


@dataclass
class Hub:
    """What it holds, what it shall do wrong, and what it was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    writers: set[str] = field(default_factory=lambda: {"pico"})
    faults: list[Fault] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # requests of each kind
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)  # kinds of requests it answers, and does nothing
    flip: str | None = None  # a file that is stored with another byte
    step: Callable[[], None] = lambda: None  # called at every moment at which a client may die
    endpoint: str = ""

    def add(self, name: str, tree: Tree | None = None, *, private: bool = True) -> Repository:
        """A repository with its first commit."""
        found = self.repositories[name] = Repository(private)
        found.add("main", {".gitattributes": b"*.safetensors filter=lfs\n"} | dict(tree or {}))
        return found

    def fault(self, route: str) -> Fault | None:
        """What goes wrong with this request."""
        count = self.seen[route] = self.seen.get(route, 0) + 1
        for each in self.faults:
            if each.route == route and each.after < count <= each.after + each.times:
                return each
        return None


def git_oid(content: bytes) -> str:
    """The name of a file's bytes: SHA-256 of a large one, else that of git."""
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name: str, content: bytes) -> dict[str, Any]:
    """What the listing of a tree says of a file."""
    told: dict[str, Any] = {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": git_oid(content),
    }
    if len(content) >= LARGE:
        pointer = f"version 1\noid sha256:{git_oid(content)}\nsize {len(content)}\n".encode()
        told["oid"] = hashlib.sha1(pointer).hexdigest()
        told["lfs"] = {"oid": git_oid(content), "size": len(content), "pointerSize": len(pointer)}
    return told
