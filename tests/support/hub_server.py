"""A Hugging Face hub on this machine, as far as huggingface_hub asks one for models and files.

    /api/models/ORG/NAME/revision/REVISION   the commit of a revision
    /api/models/ORG/NAME/tree/COMMIT         the files of a commit
    /ORG/NAME/resolve/COMMIT/FILE            a file; for weights, where on another host they lie
    /weights/ORG/NAME/COMMIT/FILE            that other host
    /datasets/ORG/NAME/resolve/COMMIT/FILE   a file of a data set, which may lie in a folder

Source: what huggingface/huggingface_hub v2.4.0 asks for in _snapshot_download.py and
file_download.py, and the error codes that it knows in utils/_http.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from local_server import answering

MODEL = r"(?P<name>[^/]+/[^/]+)"
ROUTES = (
    rf"/api/models/{MODEL}/(?P<kind>revision|tree)/(?P<revision>[^/]+)",
    rf"/{MODEL}/(?P<kind>resolve)/(?P<revision>[^/]+)/(?P<file>.+)",
    rf"/(?P<kind>datasets)/{MODEL}/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
    rf"/(?P<kind>weights)/{MODEL}/(?P<revision>[^/]+)/(?P<file>[^/]+)",
)
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Asked:
    """One request for a file: HEAD or GET, and the headers that matter."""

    host: str  # "resolve" for the hub, "weights" for the other one
    method: str
    name: str
    file: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """What it serves, what it shall do wrong, and what it was asked for."""

    models: Mapping[str, Mapping[str, Path]]  # name to revision to folder
    gated: set[str] = field(default_factory=set)
    expired: set[str] = field(default_factory=set)  # models for which no token is good
    cut: dict[str, int] = field(default_factory=dict)  # model to bytes of its weights sent at first
    reset: set[str] = field(default_factory=set)  # models of which a cut connection is reset
    datasets: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    endpoint: str = ""

    def sent(self, name: str) -> set[str]:
        """The files of a model of which something was sent."""
        return {each.file for each in self.asked if (each.method, each.name) == ("GET", name)}


def commit(name: str, revision: str = "main") -> str:
    """The commit of a revision."""
    return hashlib.sha1(f"{name} {revision}".encode()).hexdigest()


@contextmanager
def serving(models: Mapping[str, Mapping[str, Path]]) -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub(models)
    with answering(partial(_Handler, hub)) as hub.endpoint:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stderr is what the tests look at."""

    def do_HEAD(self) -> None:
        """As GET, without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer by route."""
        path = urlsplit(self.path).path
        found = next((match for route in ROUTES if (match := re.fullmatch(route, path))), None)
        if found is None:
            return self._send(404)
        name, kind, revision = found["name"], found["kind"], unquote(found["revision"])
        token = self.headers["Authorization"]
        if name in self.hub.expired:
            why = "Invalid credentials in Authorization header"
            return self._send(401, {"X-Error-Message": why})
        repositories = self.hub.datasets if kind == "datasets" else self.hub.models
        if name not in repositories:
            return self._send(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
        folders = repositories[name]
        known = {commit(name, each): each for each in folders}
        revision = known.get(revision, revision)
        if revision not in folders:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        sha, folder = commit(name, revision), folders[revision]
        if kind == "revision":
            return self._send(200, content=json.dumps({"id": name, "sha": sha}).encode())
        if kind == "tree":
            return self._send(200, content=json.dumps(_tree(folder)).encode())
        file = found["file"]
        self.hub.asked.append(Asked(kind, self.command, name, file, self.headers["Range"], token))
        if name in self.hub.gated:
            return self._send(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        if not (folder / file).is_file():
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        content = (folder / file).read_bytes()
        about = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if kind in ("weights", "datasets"):
            return self._send_part(name, content, about)
        if not file.endswith(WEIGHTS):
            return self._send(200, about, content)
        port = self.hub.endpoint.rpartition(":")[2]
        place = f"http://localhost:{port}/weights/{name}/{sha}/{file}"
        linked = {"X-Linked-Etag": about["ETag"], "X-Linked-Size": str(len(content))}
        return self._send(302, about | linked | {"Location": place})

    def _send_part(self, name: str, content: bytes, about: dict[str, str]) -> None:
        start = int(re.sub(r"\D", "", self.headers["Range"] or "0"))
        if start:
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.hub.cut.pop(name, None) if self.command == "GET" else None
        self._send(206 if start else 200, about, content[start:], cut)
        if cut is not None:
            self.close_connection = True
            if name in self.hub.reset:
                self._reset()

    def _send(
        self,
        status: int,
        about: Mapping[str, str] | None = None,
        content: bytes = b"",
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (about or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])

    def _reset(self) -> None:
        """A socket that may not linger does not say goodbye when it closes."""
        now = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self.rfile.close()
        self.connection.close()


def _tree(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "type": "file",
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
