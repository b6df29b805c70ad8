"""A release in a bucket, on moto's server: whole or not a release, and never written over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.errors import OutputExists, OutputProblem, RecipeProblem, ToolProblem
from camelpress.core.runtime import optional_packages
from camelpress.publish.destinations.s3_destination import S3Destination
from camelpress.publish.publish_release import publish_release as deliver
from camelpress.publish.settings import PublishSettings
from ec_key import write_key

Judge = Callable[..., Path]
PLACE = "s3://camels/tulu/gptq"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs", reason="needs camelpress[s3]")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def system(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, and the client to look into it."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key-for-moto")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-for-moto")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "*")
    system = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    system.mkdir("camels")
    yield system
    system.rm("camels", recursive=True)


@pytest.fixture
def send(candidate: Path, judge: Judge, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    judge()

    def send(**settings: object) -> dict[str, Any]:
        chosen = PublishSettings.parse({"license": "tulu", "to": PLACE} | settings, source="test")
        report = deliver(candidate, tmp_path / "report", chosen, force=False)
        found: dict[str, Any] = report.facts.record["delivered"]
        return found

    return send


def objects(system: Any) -> dict[str, bytes]:
    names = system.find("camels")
    return {name.removeprefix("camels/tulu/gptq/"): system.cat_file(name) for name in names}


def test_a_release_arrives_whole(system: Any, send: Callable[..., dict[str, Any]]) -> None:
    told = send()
    there = objects(system)
    assert told["to"] == PLACE
    assert told["files"] == len(there)
    listed = [line.split("  ") for line in there["SHA256SUMS"].decode().splitlines()]
    assert {name for _, name in listed} | {"SHA256SUMS"} == there.keys()
    assert send() == told
    assert objects(system) == there


def test_the_list_of_hashes_comes_last_and_a_cut_upload_goes_on(
    system: Any, send: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    original = s3fs.S3FileSystem.put_file
    sent: list[str] = []
    room = 5

    def put(self: Any, here: str, there: str) -> None:
        if len(sent) == room:
            raise ConnectionResetError
        sent.append(there)
        original(self, here, there)

    monkeypatch.setattr(s3fs.S3FileSystem, "put_file", put)
    with pytest.raises(OutputProblem, match="failed, or cannot be reached .ConnectionResetError"):
        send()
    assert len(objects(system)) == 5
    assert "SHA256SUMS" not in objects(system)
    first = list(sent)
    room = 1000
    send()
    assert sent[-1].endswith("SHA256SUMS")
    assert not set(first) & set(sent[5:])


def test_a_cut_upload_of_a_signed_release_goes_on_with_another_signature(
    system: Any, send: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="needs camelpress[sign]")
    key = str(write_key(tmp_path / "key.pem"))
    send(sign_with=key)
    whole = objects(system)
    send(sign_with=key)
    assert objects(system) == whole
    system.rm("camels/tulu/gptq/SHA256SUMS")
    send(sign_with=key)
    differing = {name for name, content in objects(system).items() if whole[name] != content}
    assert differing == {"model.sig", "SHA256SUMS"}


def test_what_lies_beside_the_prefix_is_not_in_the_way(
    system: Any, send: Callable[..., dict[str, Any]]
) -> None:
    for name in ("camels/tulu/gptq-2/config.json", "camels/tulu/gptq.txt", "camels/tulu/a"):
        system.pipe(name, b"of somebody")
    told = send()
    assert len(system.find("camels/tulu/gptq")) == told["files"]
    assert system.cat_file("camels/tulu/gptq-2/config.json") == b"of somebody"


@pytest.mark.parametrize("other", ["notes.txt", "SHA256SUMS", "README.md"])
def test_what_is_there_is_never_replaced(
    system: Any, send: Callable[..., dict[str, Any]], other: str
) -> None:
    system.pipe(f"camels/tulu/gptq/{other}", b"of somebody")
    with pytest.raises(
        OutputExists, match=f"holds other objects, for example {other}; name another"
    ):
        send()
    assert objects(system) == {other: b"of somebody"}


def test_another_release_needs_another_prefix(
    system: Any, send: Callable[..., dict[str, Any]]
) -> None:
    send(name="one")
    before = objects(system)
    with pytest.raises(OutputExists, match="what is in a bucket is never replaced"):
        send(name="two")
    assert objects(system) == before


def test_no_bucket_and_no_login_are_one_line(
    system: Any, send: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputProblem, match="the bucket of s3://llamas/x does not exist"):
        send(to="s3://llamas/x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(OutputProblem, match="needs a login; set AWS_ACCESS_KEY_ID"):
        send()


@pytest.mark.parametrize("to", ["s3://", "s3://bucket", "s3://B/x", "s3://bucket/../x", "s3:/b/x"])
def test_a_place_that_is_none_is_told(to: str) -> None:
    with pytest.raises(RecipeProblem, match="is not an address in a bucket"):
        S3Destination.parse(to)


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda _name: None)
    with pytest.raises(ToolProblem, match=r'pip install "camelpress\[s3\]"'):
        S3Destination.parse(PLACE)
