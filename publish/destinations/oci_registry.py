"""A release in an OCI registry, as CNCF ModelPack lays models out: a layer a file, the tag last.

A registry refuses a blob whose bytes are not those of its name, and a manifest whose blobs it does
not have; the tag is given with the manifest. So nobody sees half a release, and the same command
goes on.
A login is that of `docker login`.
Source: modelpack/model-spec, docs/spec.md and docs/config.md; oras-py 0.2.43, oras/provider.py.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from camelpress.core.errors import OutputExists, OutputProblem, RecipeProblem
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.input_limits import MAX_ANSWER_BYTES
from camelpress.core.progress import track
from camelpress.core.runtime import optional_packages
from camelpress.publish.destinations.short_answers import cut_body
from camelpress.publish.release.checksums import ReleaseFiles

OCI_SCHEME = "oci://"
OCI_URL = re.compile(
    r"oci://(?P<host>[\w.-]+(:\d+)?)/(?P<name>[a-z0-9]+([._/-][a-z0-9]+)*)"
    r"(:(?P<tag>\w[\w.-]{0,127}))?",
    re.ASCII,
)
LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1)(:\d+)?")  # without TLS, as docker has it
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MANIFEST_MEDIA_TYPES = (  # of what may have the tag already; a registry hides what is not asked for
    MANIFEST_TYPE,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
LAYER_TYPES = (  # the first pattern that fits a file's name
    ("*.safetensors",    "application/vnd.cncf.model.weight.v1.raw"),
    ("*config.json",     "application/vnd.cncf.model.weight.config.v1.raw"),
    ("tokenizer*",       "application/vnd.cncf.model.weight.config.v1.raw"),
    ("*",                "application/vnd.cncf.model.doc.v1.raw"),
)  # fmt: skip
TITLE, FILEPATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
STORAGE_FULL_STATUSES = (413, 507)
MAX_SINGLE_UPLOAD_BYTES = 32_000_000  # bytes: a larger file is not read into memory at once


@dataclass(frozen=True)
class OciDestination:
    """A tag of a repository.

    Args:
        host: with its port.
        name: of the repository.
        tag: that the release gets.
        force: give the tag of another release to this one.
    """

    host: str
    name: str
    tag: str
    force: bool

    @classmethod
    def parse(cls, to: str, variant: str, *, force: bool) -> OciDestination:
        """From `oci://host/name` or `oci://host/name:tag`; without one, the variant is the tag.

        Raises:
            RecipeProblem: it is neither.
            EngineProblem: oras is not there.
        """
        found = OCI_URL.fullmatch(to)
        if found is None:
            raise RecipeProblem(
                f"{to!r} is no place in a registry",
                next_step=f"write it as {OCI_SCHEME}host/name:tag",
            )
        optional_packages.require_package(
            "oras", need="registries need the package oras", extra="oci"
        )
        return cls(found["host"], found["name"], found["tag"] or variant, force)

    def __str__(self) -> str:
        return f"{OCI_SCHEME}{self.host}/{self.name}:{self.tag}"

    @property
    def title(self) -> str:
        """A name for the release where nobody gave one."""
        return self.name.rpartition("/")[2]

    def require_ready(self) -> tuple[str, ...]:
        """See that the registry answers.

        Returns:
            Nothing: cards link to variants on the hub only.
        Raises:
            OutputProblem: it does not.
        """
        with _oci_errors(str(self)):
            self._manifest(*self._client())
        return ()

    def upload(self, folder: Path) -> dict[str, Any]:
        """Bring a finished release there.

        Raises:
            OutputExists: the tag is that of something else, and `force` is not given.
            OutputProblem: the registry fails or does not let this login write.
        """
        release = ReleaseFiles.of(folder)
        layers = [_layer_descriptor(release, name) for name in sorted(release.files)]
        with _oci_errors(str(self)):
            client, container = self._client()
            there = self._manifest(client, container)
            if there is None or not _is_release(there, release):
                if there is not None and not self.force:
                    raise OutputExists(
                        f"{self} is something else",
                        next_step="name another tag, or give --force to move this one",
                    )
                self._push(client, container, release, layers)
        return {"to": str(self), "commit": self.tag, "files": len(layers)}

    def _push(
        self, client: Any, container: Any, release: ReleaseFiles, layers: list[dict[str, Any]]
    ) -> None:
        """Every blob, then the manifest with the tag."""
        for layer in track(layers, "upload"):
            self._upload(client, container, release.files[layer["annotations"][TITLE]], layer)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "config.json"
            path.write_text(
                json.dumps(_model_config(self.title, release, layers)), encoding="utf-8"
            )
            config = _blob_descriptor(CONFIG_TYPE, path, sha256_file(path))
            self._upload(client, container, path, config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": config,
            "layers": layers,
        }
        _require_success(client.upload_manifest(manifest, container))
        kept = self._manifest(client, container)
        if kept is None or not _is_release(kept, release):
            raise OutputProblem(
                f"{self} is not what was sent", next_step="run the same command again"
            )

    def _client(self) -> tuple[Any, Any]:
        from oras.provider import Registry as Client

        client = Client(hostname=self.host, insecure=LOCAL_HOST.fullmatch(self.host) is not None)
        container = client.get_container(f"{self.host}/{self.name}:{self.tag}")
        client.auth.load_configs(container)
        client.session.hooks["response"].append(cut_body)
        return client, container

    def _manifest(self, client: Any, container: Any) -> dict[str, Any] | None:
        """What the tag is given to; None where there is no such tag."""
        place = f"{client.prefix}://{container.manifest_url()}"
        answer = client.do_request(
            place, "GET", headers={"Accept": ", ".join(MANIFEST_MEDIA_TYPES)}
        )
        if answer.status_code == 404:
            return None
        _require_success(answer)
        if len(answer.content) > MAX_ANSWER_BYTES:
            raise OutputProblem(
                f"{self} is described in more than {MAX_ANSWER_BYTES:,} bytes",
                next_step="see whether that address is one of a registry",
            )
        found: dict[str, Any] = answer.json()
        return found

    def _upload(self, client: Any, container: Any, path: Path, blob: dict[str, Any]) -> None:
        if not client.blob_exists(blob, container):
            chunked = blob["size"] > MAX_SINGLE_UPLOAD_BYTES
            _require_success(client.upload_blob(str(path), container, blob, do_chunked=chunked))


def _blob_descriptor(kind: str, path: Path, sha256: str) -> dict[str, Any]:
    return {"mediaType": kind, "size": path.stat().st_size, "digest": f"sha256:{sha256}"}


def _layer_descriptor(release: ReleaseFiles, name: str) -> dict[str, Any]:
    kind = next(kind for pattern, kind in LAYER_TYPES if PurePath(name).match(pattern))
    blob = _blob_descriptor(kind, release.files[name], release.sha256[name])
    return blob | {"annotations": {TITLE: name, FILEPATH: name}}


def _is_release(manifest: Mapping[str, Any], release: ReleaseFiles) -> bool:
    """Whether a manifest is that of a release, perhaps with another signature of it."""
    held: dict[str, str] = {}
    for layer in manifest.get("layers") or []:
        title = (layer.get("annotations") or {}).get(TITLE, "")
        held[title] = str(layer.get("digest")).removeprefix("sha256:")
    names = held.keys() | release.sha256.keys()
    differing = [name for name in names if held.get(name) != release.sha256.get(name)]
    return release.matches_remote(differing, held)


def _model_config(
    name: str, release: ReleaseFiles, layers: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    found = json.loads(release.files["config.json"].read_text(encoding="utf-8"))
    return {
        "descriptor": {"name": name, "family": str(found.get("model_type"))},
        "config": {"architecture": "transformer", "format": "safetensors", "quantization": "gptq"},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }


class _StatusError(ValueError):
    def __init__(self, status: int) -> None:
        self.status = status


def _require_success(answer: Any) -> None:
    if answer.status_code not in (200, 201, 202):
        raise _StatusError(answer.status_code)


@contextmanager
def _oci_errors(place: str) -> Iterator[None]:
    """Turn every error of the client into one line.

    Raises:
        OutputProblem: in place of what the client raises.
    """
    from requests import RequestException

    try:
        yield
    except (RequestException, ValueError, OSError) as error:
        status = error.status if isinstance(error, _StatusError) else None
        if status in (401, 403) or "authenticat" in str(error):  # oras has no kind for it
            raise OutputProblem(
                f"{place} does not let this login write",
                next_step="log in to that registry with `docker login`",
            ) from error
        if status in STORAGE_FULL_STATUSES:
            raise OutputProblem(
                f"{place} has no room left",
                next_step="free some there, then run the same command again",
            ) from error
        raise OutputProblem(
            f"{place} failed, or cannot be reached ({status or type(error).__name__})",
            next_step="run the same command again: it goes on with what is missing",
        ) from error
