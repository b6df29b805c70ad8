"""Verifies a published release: every checksum, the signature, and the card against the files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from camelpress.core.errors import Problem
from camelpress.core.files.file_hashes import (
    CHECKSUM_FILE,
    PROVENANCE_FILE,
    sha256_file,
    sha256_json,
)
from camelpress.core.hub.model_location import is_hub_name
from camelpress.core.hub.repo_id import DOWNLOAD_CACHE, GITATTRIBUTES_FILE
from camelpress.core.progress import track
from camelpress.core.runtime import optional_packages
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.publish.card import model_card
from camelpress.publish.card.release_quotes import read_release_facts
from camelpress.publish.release import checksums, model_files, signing
from camelpress.reporting.facts.release_facts import ProblemFacts
from camelpress.reporting.report_classes import ProblemReport, PublishReport
from camelpress.reporting.verdict import Verdict

DOWNLOAD_FOLDER_FILES = (
    f"{DOWNLOAD_CACHE}/.gitignore",
    f"{DOWNLOAD_CACHE}/CACHEDIR.TAG",
)  # files of the download cache folder
DOWNLOAD_TREES = f"{DOWNLOAD_CACHE}/trees"  # folder of file lists, one per commit
CLIENT_SUFFIXES = (".metadata", ".lock", ".incomplete")  # suffixes of download records


def verify_release(
    folder: Path, *, cache: Path | None = None, public_key: Path | None = None
) -> ProblemReport:
    """Compares a release with its checksums, and its card with its config and provenance.

    Args:
        folder: release folder with `SHA256SUMS`, from `publish` or from a download.
        cache: cache folder of the hub client, if the release consists of links into it.
        public_key: public key of the expected signer.
    Returns:
        FAIL with every fault under `problems`, or PASS.
    Raises:
        CheckpointProblem: the folder has no `SHA256SUMS`.
    """
    watch = Stopwatch()
    digests, problems = checksums.read_checksums(folder / CHECKSUM_FILE)
    if cache is None and (folder / CHECKSUM_FILE).is_symlink():
        problems.append(f"{CHECKSUM_FILE!r} is a link")
    for name, digest in track(sorted(digests.items()), "verify"):
        problems += _check_file(folder, name, digest, cache)
    names = _files(folder, linked=cache is not None)
    problems += [f"{name!r} is not listed" for name in names if name not in digests]
    if not problems:
        problems += _release_contradictions(folder, digests)
        problems += signing.signature_problems(folder, public_key, links=cache is not None)
    return ProblemReport(
        stage="verify",
        inputs={CHECKSUM_FILE: sha256_file(folder / CHECKSUM_FILE)},
        settings={},
        facts=ProblemFacts.build(
            {
                "files": len(digests),
                "signed": _signature_state(digests, public_key),
                "problems": problems,
            }
        ),
        verdict=Verdict.FAIL if problems else Verdict.PASS,
        cost=watch.cost(),
    )


def _signature_state(digests: dict[str, str], public_key: Path | None) -> str:
    """Describes the signature check in a word or two for the report."""
    if signing.SIGNATURE_FILE not in digests:
        return "no"
    if not optional_packages.is_installed("model_signing"):
        return 'not checked: pip install "camelpress[sign]"'
    return f"by the key {(public_key or Path(signing.PUBLIC_KEY_FILE)).name}"


def verify_release_at(location: Path, public_key: Path | None = None) -> ProblemReport:
    """Verifies a release in a folder or at `hf:org/name[@revision]`, after a download if needed.

    Raises:
        CheckpointProblem: as `verify_release` and `download_release`.
    """
    if not is_hub_name(location):
        return verify_release(location, public_key=public_key)
    from camelpress.core.hub.hub_download import download_release

    folder, cache = download_release(location)
    return verify_release(folder, cache=cache, public_key=public_key)


def _check_file(folder: Path, name: str, digest: str, cache: Path | None) -> Iterator[str]:
    path = folder / name
    try:
        if cache is None and _has_link(folder, name):
            yield f"{name!r} is a link, or lies behind one"
        elif not path.resolve().is_relative_to((cache or folder).resolve()):
            yield f"{name!r} is a link that leads out of the folder"
        elif not path.is_file():
            yield f"{name!r} is missing"
        elif (current_digest := sha256_file(path)) != digest:
            yield f"{name!r} has changed: sha256 {current_digest}, listed {digest}"
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself, before Python 3.13
        yield f"{name!r} cannot be read ({error})"


def _has_link(folder: Path, name: str) -> bool:
    """Returns True if the file or one of its parent folders is a link."""
    parts = PurePosixPath(name).parts
    return any(folder.joinpath(*parts[:count]).is_symlink() for count in range(1, len(parts) + 1))


def _files(folder: Path, *, linked: bool) -> Iterator[str]:
    """Yields files, folder links and unreadable folders, without files of the hub client."""
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*links, *files]):
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if relative != CHECKSUM_FILE and not _is_of_hub(path, relative, linked=linked):
                yield relative
    for error in unreadable:
        yield Path(error.filename).relative_to(folder).as_posix()


def _is_of_hub(path: Path, name: str, *, linked: bool) -> bool:
    """Returns True for a file written by the hub or its client."""
    if not path.is_file() or (path.is_symlink() and not linked):
        return False
    if name == GITATTRIBUTES_FILE or name in DOWNLOAD_FOLDER_FILES:
        return True
    if name.startswith(f"{DOWNLOAD_CACHE}/download/"):
        return path.suffix in CLIENT_SUFFIXES
    return PurePosixPath(name).parent.as_posix() == DOWNLOAD_TREES and path.suffix == ".json"


def _release_contradictions(folder: Path, digests: dict[str, str]) -> Iterator[str]:
    """Yields contradictions between card, config, report and provenance."""
    try:
        facts = read_release_facts(folder)
        yield from model_card.card_contradictions(model_card.read_release_card(folder), facts)
        provenance = PublishReport.read(folder / PROVENANCE_FILE)
    except Problem as error:
        yield str(error)
        return
    model = provenance.facts.model
    if model is None or sha256_json(model) != facts.validation.inputs.get("candidate"):
        yield f"{PROVENANCE_FILE} describes another model than the one that was validated"
        return
    changed_files = model_files.changed_model_files(
        model, digests, recipe_only=facts.settings.recipe_only
    )
    yield from (f"{name!r} is not what was validated" for name in changed_files)
    outputs = provenance.outputs
    sealed_names = digests.keys() - {PROVENANCE_FILE, signing.SIGNATURE_FILE, *changed_files}
    for name in sorted(outputs.keys() - set(changed_files) | sealed_names):
        if outputs.get(name) != digests.get(name):
            yield f"{name!r} is not the file that {PROVENANCE_FILE} lists"
