"""An upload to a hub that is killed, or whose disk or connection fails, at one operation."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import constants
from huggingface_hub.utils import _http

from fault_trial import MINE, TOKEN, Contents, Inputs, Trial, contents, run
from hub_process import HubProcess, Repositories
from processes import forked

CANDIDATE = "candidate"  # folder of the model that is published
REPOSITORY = "pico/whole"
BRANCH = "gptq-4bit-32g"
STAGING = "staging-"
FILE = "{repo_id}/resolve/{revision}/{filename}"  # path of a file below the hub's address
VISIBLE = "--public --i-have-the-right --license apache-2.0"


@dataclass(frozen=True)
class UploadTrial(Trial):
    """One fault at one operation of an upload.

    Args:
        hub: the destination.
        title: of the release.
        repositories: content of the hub before the upload.
        releases: name to bytes of the files of each release that may be seen there.
    """

    hub: HubProcess
    title: str
    repositories: Repositories
    releases: tuple[Mapping[str, bytes], ...]

    def _is_swept(self, path: str) -> bool:
        """Returns whether a path is of a release that is being made, as `publish` makes it."""
        return path.startswith(f"{CANDIDATE}.uploading-") and ".partial" in path

    def _prepare(self, place: Path) -> None:
        place.mkdir()
        (place / MINE).write_text("beside")
        shutil.copytree(self.inputs.folder / "quantize", place / CANDIDATE)
        self.hub.reset(self.repositories)

    def _command(self, place: Path) -> list[str]:
        words = ["publish", str(place / CANDIDATE), *VISIBLE.split()]
        words += ["--report", str(self.inputs.folder / "validate"), "--to", f"hf:{REPOSITORY}"]
        return [*words, "--name", self.title, "-q", *(["--force"] if self.replaces else [])]

    def _enter(self) -> None:
        super()._enter()
        connect(self.hub)

    def _state(self, place: Path) -> Contents:
        return hub_contents(self.hub)

    def _false_output(self, place: Path) -> Iterator[str]:
        """Whoever may look sees no branch that is half a release."""
        for name, repository in self.hub.repositories().items():
            for branch in repository.branches:
                files = repository.tree(branch)
                is_hidden = repository.private and branch.startswith(STAGING)
                if files and files not in self.releases and not is_hidden:
                    yield f"half a release is {branch} of {name}: {sorted(files)}"
            if self.replaces and BRANCH not in repository.branches:
                yield f"the earlier release is gone from {name}"

    def _strangers(self, place: Path) -> Iterator[str]:
        if contents(place / CANDIDATE) != contents(self.inputs.folder / "quantize"):
            yield "the candidate has changed"
        if left := {path.name for path in place.iterdir()} - {CANDIDATE, MINE}:
            yield f"{sorted(left)} is left"
        if TOKEN in repr(hub_contents(self.hub)):
            yield "the hub holds the token"


def upload_trial(inputs: Inputs, hub: HubProcess, place: Path, *, replaces: bool) -> UploadTrial:
    """Returns a trial that knows the releases before and after, both verified."""
    upload = UploadTrial(inputs, "upload", replaces, {}, hub, "Old", {}, ())
    old_release = _published(upload, place / "old")
    repositories = hub.repositories() if replaces else {}
    upload = replace(upload, title="New", repositories=repositories)
    new_release = _published(upload, place / "new")
    return replace(upload, expected=hub_contents(hub), releases=(old_release, new_release))


def connect(hub: HubProcess) -> None:
    """Lets the hub's client in this process talk to a hub here, without pauses between tries."""
    constants.ENDPOINT = hub.endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{hub.endpoint}/{FILE}"
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True
    os.environ["NO_PROXY"] = "*"
    quick = vars(time) | {"sleep": lambda seconds: None}
    setattr(_http, "time", SimpleNamespace(**quick))  # noqa: B010 - mypy sees no such name
    _http.close_session()


def hub_contents(hub: HubProcess) -> Contents:
    """Returns who sees each repository, and the files of its branches."""
    return {
        name: {
            "private": repository.private,
            "gated": repository.gated,
            "branches": {branch: repository.tree(branch) for branch in repository.branches},
        }
        for name, repository in hub.repositories().items()
    }


def _published(trial: UploadTrial, place: Path) -> dict[str, bytes]:
    """Publishes a release, has it verified from the hub, and returns its files."""
    place.mkdir()
    trial._prepare(place / "there")
    verify = ["verify", f"hf:{REPOSITORY}@{BRANCH}", "-q"]
    for command in (trial._command(place / "there"), verify):
        if code := forked(partial(_run, trial, command, place / "cache")):
            raise RuntimeError(f"{command[0]} of the release {trial.title} ended with {code}")
    return trial.hub.repositories()[REPOSITORY].tree(BRANCH)


def _run(trial: UploadTrial, command: list[str], cache: Path) -> None:
    trial._enter()
    constants.HF_HUB_CACHE = str(cache)
    run(command)
