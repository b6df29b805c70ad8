"""A release in an OCI registry: Debian's docker-registry, on this machine, driven by oras."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from camelpress.core.errors import OutputExists, OutputProblem, RecipeProblem, ToolProblem
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.input_limits import MAX_ANSWER_BYTES
from camelpress.core.runtime import optional_packages
from camelpress.publish.destinations.oci_destination import OciDestination
from camelpress.publish.publish_release import publish_release as deliver
from camelpress.publish.run import run
from camelpress.publish.settings import PublishSettings
from ec_key import write_key
from long_answers import Reply, endless, replying, send_head

requests = pytest.importorskip("requests", reason="needs camelpress[oci]")
Judge = Callable[..., Path]
Sender = Callable[..., dict[str, Any]]
UNPACKED = Path(__file__).parents[2] / ".models" / "docker-registry" / "usr/bin/docker-registry"
CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {place}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that answers while the tests run."""
    pytest.importorskip("oras", reason="needs camelpress[oci]")
    program = shutil.which("docker-registry") or str(UNPACKED)
    if not Path(program).exists():
        pytest.skip("run tests/models/docker_registry.sh .models/docker-registry (Debian)")
    place = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "config.yml").write_text(CONFIG.format(place=place / "data", port=port))
    with subprocess.Popen(
        [program, "serve", str(place / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        for _ in range(100):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
        running.terminate()


@pytest.fixture
def send(candidate: Path, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sender:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HOME", str(tmp_path))  # no login of docker's
    judge()

    def send(to: str, force: bool = False, **settings: object) -> dict[str, Any]:
        chosen = PublishSettings.parse({"license": "tulu", "to": to} | settings, source="test")
        report = deliver(candidate, tmp_path / "report", chosen, force=force)
        found: dict[str, Any] = report.facts.record["delivered"]
        return found

    return send


def manifest(host: str, name: str, tag: str) -> dict[str, Any]:
    from oras.provider import Registry as Client

    found: dict[str, Any] = Client(host, insecure=True).get_manifest(f"{host}/{name}:{tag}")
    return found


def test_a_release_arrives_whole_and_comes_back(
    host: str, send: Sender, candidate: Path, tmp_path: Path
) -> None:
    from oras.provider import Registry as Client

    told = send(f"oci://{host}/tulu/gptq")
    assert told["to"] == f"oci://{host}/tulu/gptq:gptq-4bit-32g"
    found = manifest(host, "tulu/gptq", "gptq-4bit-32g")
    assert found["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert found["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    layers = {each["annotations"]["org.cncf.model.filepath"]: each for each in found["layers"]}
    assert len(layers) == told["files"]
    weights = layers["model.safetensors"]
    assert weights["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert weights["digest"] == f"sha256:{sha256_file(candidate / 'model.safetensors')}"
    client = Client(host, insecure=True)
    container = client.get_container(f"{host}/tulu/gptq:gptq-4bit-32g")
    config = client.get_blob(container, found["config"]["digest"]).json()
    assert config["modelfs"]["diffIds"] == [each["digest"] for each in found["layers"]]
    for name, layer in layers.items():
        client.download_blob(container, layer["digest"], str(tmp_path / "back" / name))
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "back", check=True)


def test_a_tag_moves_only_by_force(host: str, send: Sender) -> None:
    to = f"oci://{host}/camel:v1"
    send(to, name="one")
    before = manifest(host, "camel", "v1")
    assert send(to, name="one")["to"] == to
    with pytest.raises(OutputExists, match="camel:v1 is another artifact; name another tag"):
        send(to, name="two")
    assert manifest(host, "camel", "v1") == before
    send(to, name="two", force=True)
    assert manifest(host, "camel", "v1") != before


def test_the_same_release_is_the_same_artifact_under_every_tag(
    host: str, send: Sender, candidate: Path, tmp_path: Path
) -> None:
    settings = PublishSettings.parse({"license": "tulu", "name": "Tulu"}, source="test")
    run(candidate, tmp_path / "report", tmp_path / "release", settings)
    for tag in ("v1", "v2"):
        OciDestination(host, "same", tag, force=False).upload(tmp_path / "release")
    assert manifest(host, "same", "v1") == manifest(host, "same", "v2")


def test_the_tag_of_another_kind_of_manifest_is_not_taken(
    host: str, send: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "application/vnd.oci.image.index.v1+json"
    content = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": []})
    place = f"http://{host}/v2/taken/manifests/v1"
    told = requests.put(place, data=content, headers={"Content-Type": kind}, timeout=10)
    assert told.status_code == 201
    with pytest.raises(OutputExists, match="taken:v1 is another artifact"):
        send(f"oci://{host}/taken:v1")
    assert requests.get(place, headers={"Accept": kind}, timeout=10).text == content


def test_another_signature_of_the_same_files_is_the_same_release(
    host: str, send: Sender, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="needs camelpress[sign]")
    key = str(write_key(tmp_path / "key.pem"))
    send(f"oci://{host}/signed:v1", sign_with=key)
    before = manifest(host, "signed", "v1")
    send(f"oci://{host}/signed:v1", sign_with=key)
    assert manifest(host, "signed", "v1") == before


@pytest.mark.parametrize(("status", "said"), [(507, "has no storage left"), (403, "does not let")])
def test_what_a_registry_refuses_is_one_line(
    host: str, send: Sender, monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    from oras.provider import Registry as Client

    answer = requests.Response()
    answer.status_code = status
    monkeypatch.setattr(Client, "upload_blob", lambda *_arguments, **_options: answer)
    with pytest.raises(OutputProblem, match=f"refused-{status}:v1 {said}"):
        send(f"oci://{host}/refused-{status}:v1")
    assert (
        requests.get(f"http://{host}/v2/refused-{status}/tags/list", timeout=10).status_code == 404
    )


def test_a_cut_upload_gives_no_tag_and_goes_on(
    host: str, send: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oras.provider import Registry as Client

    original = Client.upload_blob
    sent: list[str] = []
    room = 4

    def upload(self: Any, blob: str, *arguments: Any, **options: Any) -> Any:
        if len(sent) == room:
            raise ConnectionResetError
        sent.append(blob)
        return original(self, blob, *arguments, **options)

    monkeypatch.setattr(Client, "upload_blob", upload)
    with pytest.raises(OutputProblem, match="failed, or cannot be reached .ConnectionResetError"):
        send(f"oci://{host}/cut:v1", name="cut")
    tags = Client(host, insecure=True).do_request(f"http://{host}/v2/cut/tags/list")
    assert tags.status_code == 404 or not json.loads(tags.content).get("tags")
    room = 1000
    told = send(f"oci://{host}/cut:v1", name="cut")
    assert len(sent) <= told["files"] + 1
    assert len(manifest(host, "cut", "v1")["layers"]) == told["files"]


def test_a_registry_that_is_not_there_is_one_line(
    host: str, send: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oras.decorator.time", SimpleNamespace(sleep=lambda _seconds: None))
    with pytest.raises(OutputProblem, match="failed, or cannot be reached"):
        send("oci://127.0.0.1:9/camel:v1")


@pytest.mark.parametrize("to", ["oci://", "oci://host", "oci://host/Upper", "oci://host/a:b:c"])
def test_a_place_that_is_none_is_told(to: str) -> None:
    with pytest.raises(RecipeProblem, match="is not an address in a registry"):
        OciDestination.parse(to, "v", force=False)


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda _name: None)
    with pytest.raises(ToolProblem, match=r'pip install "camelpress\[oci\]"'):
        OciDestination.parse("oci://host/name:tag", "v", force=False)


def without_login(handler: BaseHTTPRequestHandler) -> None:
    """Sends for a token to an address that answers without end."""
    if "/token" in handler.path:
        return endless(handler)
    realm = f"http://{handler.headers['Host']}/token"
    send_head(handler, 401, WWW_Authenticate=f'Bearer realm="{realm}"', Content_Length=0)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (
            endless,
            "has a manifest of more than 16,777,216 bytes; check that this is the",
        ),
        (without_login, "failed, or cannot be reached (JSONDecodeError); run the same command"),
    ],
)
def test_an_answer_without_end_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply, problem: str
) -> None:
    decorator = pytest.importorskip("oras.decorator", reason="needs camelpress[oci]")
    monkeypatch.setattr(decorator, "time", SimpleNamespace(sleep=lambda _seconds: None))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HOME", str(tmp_path))  # no login of docker's
    with replying(reply) as address:
        place = f"{address.replace('http', 'oci')}/tulu/gptq:v1"
        tracemalloc.start()
        with pytest.raises(OutputProblem) as refused:
            OciDestination.parse(place, "v1", force=False).require_ready()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(refused.value).startswith(f"{place} {problem}")
    assert peak < 6 * MAX_ANSWER_BYTES  # bytes, and where they are parsed as text
