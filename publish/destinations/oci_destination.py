"""Uploads a release to an OCI registry in the CNCF ModelPack format, one layer per file.

A registry refuses a blob with a wrong digest, and a manifest with missing blobs. The tag comes
last, with the manifest. Therefore a partial release is never visible, and the same command
continues an interrupted upload. The login comes from `docker login`.
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
from camelpress.publish.destinations.response_limit import limit_body
from camelpress.publish.release.checksums import ReleaseFiles
from camelpress.reporting.number_format import format_count

OCI_SCHEME = "oci://"
OCI_URL = re.compile(
    r"oci://(?P<host>[\w.-]+(:\d+)?)/(?P<name>[a-z0-9]+([._/-][a-z0-9]+)*)"
    r"(:(?P<tag>\w[\w.-]{0,127}))?",
    re.ASCII,
)
LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1)(:\d+)?")  # hosts without TLS, as in docker
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MANIFEST_MEDIA_TYPES = (  # accepted types; a registry hides manifests of unlisted types
    MANIFEST_TYPE,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
LAYER_TYPES = (  # file pattern and media type; the first match applies
    ("*.safetensors",    "application/vnd.cncf.model.weight.v1.raw"),
    ("*config.json",     "application/vnd.cncf.model.weight.config.v1.raw"),
    ("tokenizer*",       "application/vnd.cncf.model.weight.config.v1.raw"),
    ("*",                "application/vnd.cncf.model.doc.v1.raw"),
)  # fmt: skip
TITLE, FILEPATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
STORAGE_FULL_STATUSES = (413, 507)  # HTTP codes
MAX_SINGLE_UPLOAD_BYTES = 32_000_000  # bytes; larger files are uploaded in chunks


@dataclass(frozen=True)
class OciDestination:
    """Tag of a repository in an OCI registry.

    Args:
        host: host name with an optional port.
        name: name of the repository.
        tag: tag of the release.
        force: move the tag from another release.
    """

    host: str
    name: str
    tag: str
    force: bool

    @classmethod
    def parse(cls, address: str, variant: str, *, force: bool) -> OciDestination:
        """Parses `oci://host/name` or `oci://host/name:tag`; the default tag is the variant.

        Raises:
            RecipeProblem: the address has another form.
            ToolProblem: the package oras is not installed.
        """
        match = OCI_URL.fullmatch(address)
        if match is None:
            raise RecipeProblem(
                f"{address!r} is not an address in a registry",
                next_step=f"write it as {OCI_SCHEME}host/name:tag",
            )
        optional_packages.require_package(
            "oras", need="registries need the package oras", extra="oci"
        )
        return cls(match["host"], match["name"], match["tag"] or variant, force)

    def __str__(self) -> str:
        return f"{OCI_SCHEME}{self.host}/{self.name}:{self.tag}"

    @property
    def title(self) -> str:
        """Default title of the release."""
        return self.name.rpartition("/")[2]

    def require_ready(self) -> tuple[str, ...]:
        """Checks that the registry answers.

        Returns:
            An empty tuple, since cards link to variants on the hub only.
        Raises:
            OutputProblem: the registry does not answer.
        """
        with _oci_errors(str(self)):
            self._manifest(*self._client())
        return ()

    def upload(self, folder: Path) -> dict[str, Any]:
        """Uploads a finished release, and returns its address, tag and layer count.

        Raises:
            OutputExists: the tag belongs to another artifact, and `force` is False.
            OutputProblem: the registry fails, or the login lacks write access.
        """
        release = ReleaseFiles.of(folder)
        layers = [_layer_descriptor(release, name) for name in sorted(release.files)]
        with _oci_errors(str(self)):
            client, container = self._client()
            manifest = self._manifest(client, container)
            if manifest is None or not _is_release(manifest, release):
                if manifest is not None and not self.force:
                    raise OutputExists(
                        f"{self} is another artifact",
                        next_step="name another tag, or give --force to move this one",
                    )
                self._push(client, container, release, layers)
        return {"to": str(self), "commit": self.tag, "files": len(layers)}

    def _push(
        self, client: Any, container: Any, release: ReleaseFiles, layers: list[dict[str, Any]]
    ) -> None:
        """Uploads every blob, then the manifest with the tag."""
        for layer in track(layers, "upload"):
            self._upload(client, container, release.files[layer["annotations"][TITLE]], layer)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
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
        remote_manifest = self._manifest(client, container)
        if remote_manifest is None or not _is_release(remote_manifest, release):
            raise OutputProblem(
                f"{self} differs from the uploaded release", next_step="run the same command again"
            )

    def _client(self) -> tuple[Any, Any]:
        from oras.provider import Registry as Client

        client = Client(hostname=self.host, insecure=LOCAL_HOST.fullmatch(self.host) is not None)
        container = client.get_container(f"{self.host}/{self.name}:{self.tag}")
        client.auth.load_configs(container)
        client.session.hooks["response"].append(limit_body)
        return client, container

    def _manifest(self, client: Any, container: Any) -> dict[str, Any] | None:
        """Returns the manifest of the tag; None if the tag does not exist."""
        url = f"{client.prefix}://{container.manifest_url()}"
        response = client.do_request(
            url, "GET", headers={"Accept": ", ".join(MANIFEST_MEDIA_TYPES)}
        )
        if response.status_code == 404:
            return None
        _require_success(response)
        if len(response.content) > MAX_ANSWER_BYTES:
            raise OutputProblem(
                f"{self} has a manifest of more than {format_count(MAX_ANSWER_BYTES)} bytes",
                next_step="check that this is the address of a registry",
            )
        manifest: dict[str, Any] = response.json()
        return manifest

    def _upload(self, client: Any, container: Any, path: Path, blob: dict[str, Any]) -> None:
        if not client.blob_exists(blob, container):
            chunked = blob["size"] > MAX_SINGLE_UPLOAD_BYTES
            _require_success(client.upload_blob(str(path), container, blob, do_chunked=chunked))


def _blob_descriptor(media_type: str, path: Path, sha256: str) -> dict[str, Any]:
    return {"mediaType": media_type, "size": path.stat().st_size, "digest": f"sha256:{sha256}"}


def _layer_descriptor(release: ReleaseFiles, name: str) -> dict[str, Any]:
    media_type = next(
        media_type for pattern, media_type in LAYER_TYPES if PurePath(name).match(pattern)
    )
    blob = _blob_descriptor(media_type, release.files[name], release.sha256[name])
    return blob | {"annotations": {TITLE: name, FILEPATH: name}}


def _is_release(manifest: Mapping[str, Any], release: ReleaseFiles) -> bool:
    """Returns True if a manifest holds the release, apart from its signature."""
    digests: dict[str, str] = {}
    for layer in manifest.get("layers") or []:
        title = (layer.get("annotations") or {}).get(TITLE, "")
        digests[title] = str(layer.get("digest")).removeprefix("sha256:")
    names = digests.keys() | release.sha256.keys()
    different_names = [name for name in names if digests.get(name) != release.sha256.get(name)]
    return release.matches_remote(different_names, digests)


def _model_config(
    name: str, release: ReleaseFiles, layers: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    model_config = json.loads(release.files["config.json"].read_text(encoding="utf-8"))
    return {
        "descriptor": {"name": name, "family": str(model_config.get("model_type"))},
        "config": {"architecture": "transformer", "format": "safetensors", "quantization": "gptq"},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }


class _StatusError(ValueError):
    def __init__(self, status: int) -> None:
        self.status = status


def _require_success(response: Any) -> None:
    if response.status_code not in (200, 201, 202):
        raise _StatusError(response.status_code)


@contextmanager
def _oci_errors(address: str) -> Iterator[None]:
    """Turns every error of the registry client into a one-line problem.

    Raises:
        OutputProblem: the client raised an error.
    """
    from requests import RequestException

    try:
        yield
    except (RequestException, ValueError, OSError) as error:
        status = error.status if isinstance(error, _StatusError) else None
        if status in (401, 403) or "authenticat" in str(error):  # oras has no class for it
            raise OutputProblem(
                f"{address} does not let this login write",
                next_step="log in to that registry with `docker login`",
            ) from error
        if status in STORAGE_FULL_STATUSES:
            raise OutputProblem(
                f"{address} has no storage left",
                next_step="free some storage there, then run the same command again",
            ) from error
        raise OutputProblem(
            f"{address} failed, or cannot be reached ({status or type(error).__name__})",
            next_step="run the same command again: it continues with the missing files",
        ) from error
