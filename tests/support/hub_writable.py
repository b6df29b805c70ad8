"""A Hugging Face hub on this machine that takes uploads, as far as huggingface_hub makes them.

    POST   /api/repos/create                      a repository with a first commit
    POST   /api/validate-yaml                     whether the metadata of a card will do
    GET    /api/models/ID                         who sees it, and its head
    PUT    /api/models/ID/settings                who shall see it
    GET    /api/models/ID/refs                    its branches
    POST   /api/models/ID/branch/NAME             a branch of a commit;  DELETE  it goes
    GET    /api/models/ID/revision/REV            a commit
    GET    /api/models/ID/tree/REV                its files with their hashes
    POST   /api/models/ID/preupload/REV           large files or regular ones
    POST   /ID.git/info/lfs/objects/batch         where large files go
    PUT    /lfs/SHA256                            one of them
    POST   /api/models/ID/commit/REV              a header and a line for each change
    HEAD, GET /ID/resolve/REV/FILE                a file

Source: what huggingface/huggingface_hub v2.4.0 asks for in hf_api.py, _commit_api.py, lfs.py and
file_download.py with Xet off, and the error codes that it knows in utils/_http.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import hub_metadata
from hub_repositories import LARGE, Hub, Repository, Tree, entry, git_oid
from local_server import answering

API = r"/api/models/(?P<id>[^/]+/[^/]+)"
ROUTES = {
    "create": r"POST /api/repos/create",
    "yaml": r"POST /api/validate-yaml",
    "info": rf"GET {API}",
    "settings": rf"PUT {API}/settings",
    "refs": rf"GET {API}/refs",
    "branch": rf"POST {API}/branch/(?P<rev>[^/]+)",
    "unbranch": rf"DELETE {API}/branch/(?P<rev>[^/]+)",
    "revision": rf"GET {API}/revision/(?P<rev>[^/]+)",
    "tree": rf"GET {API}/tree/(?P<rev>[^/]+)",
    "preupload": rf"POST {API}/preupload/(?P<rev>[^/]+)",
    "batch": r"POST /(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "put": r"PUT /lfs/(?P<oid>[0-9a-f]{64})",
    "commit": rf"POST {API}/commit/(?P<rev>[^/]+)",
    "resolve": r"(HEAD|GET) /(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)",
}
BODIES = ("POST", "PUT")  # requests that say how long they are


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    with answering(partial(_Handler, hub)) as hub.endpoint:
        yield hub


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", words: str = "") -> None:
        self.status, self.code, self.words = status, code, words


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement
    wbufsize = -1

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stderr is what the tests look at."""

    def handle(self) -> None:
        """A client that was killed says no goodbye."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer by route."""
        path = urlsplit(self.path).path
        route, found = next(
            (route, match)
            for route, pattern in {**ROUTES, "none": ".*"}.items()
            if (match := re.fullmatch(pattern, f"{self.command} {path}"))
        )
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers["Authorization"])
        fault = self.hub.fault(route)
        self.hub.step()
        content = self._body(cut=fault is not None and fault.cut)
        if content is None:
            return
        self.hub.step()
        try:
            if fault is not None:
                raise _Refused(fault.status, fault.code, fault.words)
            if route == "none":
                raise _Refused(404)
            named = {key: unquote(value) for key, value in found.groupdict().items()}
            answer = getattr(self, f"_{route}")
            told = {} if route in self.hub.deaf else answer(content, **named)
        except _Refused as no:
            about = {"X-Error-Code": no.code, "X-Error-Message": no.words}
            about = {key: value for key, value in about.items() if value}
            body = {  # the client reads the address from a 409, and the errors from a 400
                "url": f"{self.hub.endpoint}/of/it",
                "errors": [{"message": no.words}],
            }
            return self._send(no.status, about, json.dumps(body).encode())
        self.hub.step()
        if isinstance(told, tuple):
            return self._send(200, *told)
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(told).encode())

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _body(self, *, cut: bool) -> bytes | None:
        """What comes with the request, or None where it does not come whole."""
        if self.command in BODIES and "Content-Length" not in self.headers:
            self.close_connection = True  # the client died within the headers
            return None
        left = int(self.headers["Content-Length"] or 0)
        parts = []
        while left > 0:
            parts.append(part := self.rfile.read(min(left, LARGE)))
            left -= len(part)
            self.hub.step()
            if cut or not part:
                self.close_connection = True
                self.connection.close()
                return None
        return b"".join(parts)

    def _send(self, status: int, about: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for key, value in about.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def _repository(self, name: str) -> Repository:
        if name not in self.hub.repositories:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        return self.hub.repositories[name]

    def _at(self, name: str, rev: str) -> tuple[str, Tree]:
        found = self._repository(name)
        commit = found.branches.get(rev, rev)
        if commit not in found.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return commit, found.commits[commit]

    def _create(self, content: bytes) -> Any:
        told = json.loads(content)
        name = f"{told['organization']}/{told['name']}"
        if told["organization"] not in self.hub.writers:
            raise _Refused(403, words="You don't have the rights to create a model under it")
        if name in self.hub.repositories:
            raise _Refused(409, words="You already created this model repo")
        self.hub.add(name, private=told.get("visibility") == "private")
        return {"url": f"{self.hub.endpoint}/{name}"}

    def _yaml(self, content: bytes) -> Any:
        if found := hub_metadata.faults(json.loads(content)["content"]):
            raise _Refused(400, words=", ".join(found))
        return {"errors": [], "warnings": []}

    def _info(self, content: bytes, id: str) -> Any:
        found = self._repository(id)
        return {
            "id": id,
            "sha": found.branches["main"],
            "private": found.private,
            "gated": found.gated,
        }

    def _settings(self, content: bytes, id: str) -> Any:
        told = json.loads(content)
        found = self._repository(id)
        found.gated = told.get("gated", found.gated)
        found.private = told.get("visibility", "private" if found.private else "") == "private"
        return {}

    def _refs(self, content: bytes, id: str) -> Any:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in self._repository(id).branches.items()
        ]
        return {"branches": branches, "converts": [], "tags": []}

    def _branch(self, content: bytes, id: str, rev: str) -> Any:
        found = self._repository(id)
        if rev in found.branches:
            raise _Refused(409, words="Reference already exists")
        start = json.loads(content).get("startingPoint", "main")
        found.branches[rev] = self._at(id, start)[0]
        return {}

    def _unbranch(self, content: bytes, id: str, rev: str) -> Any:
        self._repository(id).branches.pop(rev, None)
        return {}

    def _revision(self, content: bytes, id: str, rev: str) -> Any:
        return {"id": id, "sha": self._at(id, rev)[0]}

    def _tree(self, content: bytes, id: str, rev: str) -> Any:
        return [entry(name, each) for name, each in sorted(self._at(id, rev)[1].items())]

    def _preupload(self, content: bytes, id: str, rev: str) -> Any:
        tree = self._at(id, rev)[1]
        return {
            "files": [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                    "oid": git_oid(tree[each["path"]]) if each["path"] in tree else None,
                }
                for each in json.loads(content)["files"]
            ]
        }

    def _batch(self, content: bytes, id: str) -> Any:
        self._repository(id)
        objects = []
        for each in json.loads(content)["objects"]:
            place = {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"}}
            has = each["oid"] in self.hub.large
            objects.append(each if has else each | {"actions": place})
        return {"transfer": "basic", "objects": objects}

    def _put(self, content: bytes, oid: str) -> Any:
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, words="the content is another")
        self.hub.large[oid] = content
        return {}

    def _commit(self, content: bytes, id: str, rev: str) -> Any:
        found = self._repository(id)
        if rev not in found.branches:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        head, *changes = (json.loads(line) for line in content.splitlines())
        if head["value"].get("parentCommit", found.branches[rev]) != found.branches[rev]:
            raise _Refused(412, words="A commit has happened since")
        tree = dict(found.commits[found.branches[rev]])
        for change in changes:
            value = change["value"]
            if change["key"] == "deletedFile":
                del tree[value["path"]]
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise _Refused(400, words="a large file was not uploaded")
                tree[value["path"]] = self.hub.large[value["oid"]]
            else:
                tree[value["path"]] = base64.b64decode(value["content"])
        if self.hub.flip in tree:
            tree[self.hub.flip] = tree[self.hub.flip][:-1] + b"\0"
        return {"commitUrl": f"{self.hub.endpoint}/{id}", "commitOid": found.add(rev, tree)}

    def _resolve(self, content: bytes, id: str, rev: str, file: str) -> Any:
        commit, tree = self._at(id, rev)
        if file not in tree:
            raise _Refused(404, "EntryNotFound")
        return {"X-Repo-Commit": commit, "ETag": f'"{git_oid(tree[file])}"'}, tree[file]
