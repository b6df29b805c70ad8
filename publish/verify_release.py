"""Is this release still what was published? Every hash, and the card against the files."""

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
from camelpress.core.hub.model_location import DOWNLOAD_CACHE, GITATTRIBUTES_FILE, is_hub_name
from camelpress.core.progress import track
from camelpress.core.runtime import optional_packages
from camelpress.publish.card import model_card
from camelpress.publish.card.release_quotes import read_release_facts
from camelpress.publish.release import checksums, model_files, signing
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict

DOWNLOAD_FOLDER_FILES = (
    f"{DOWNLOAD_CACHE}/.gitignore",
    f"{DOWNLOAD_CACHE}/CACHEDIR.TAG",
)  # of its folder itself
DOWNLOAD_TREES = f"{DOWNLOAD_CACHE}/trees"  # of its lists of files, one a commit
CLIENT_SUFFIXES = (".metadata", ".lock", ".incomplete")  # of its notes on each download


def verify_release(
    folder: Path, *, cache: Path | None = None, public_key: Path | None = None
) -> Report:
    """Compare a release with its checksums, and its card with its config and provenance.

    Args:
        folder: with `SHA256SUMS` in it, as `publish` wrote it or as it was downloaded.
        cache: of the hub's client, whose folders are links into it.
        public_key: of whom the release has to be signed by.
    Returns:
        FAIL with every fault under `problems`, or PASS.
    Raises:
        CheckpointProblem: there is no `SHA256SUMS`.
    """
    watch = Stopwatch()
    listed, problems = checksums.read_checksums(folder / CHECKSUM_FILE)
    if cache is None and (folder / CHECKSUM_FILE).is_symlink():
        problems.append(f"{CHECKSUM_FILE!r} is a link")
    for name, digest in track(sorted(listed.items()), "verify"):
        problems += _check_file(folder, name, digest, cache)
    found = _files(folder, linked=cache is not None)
    problems += [f"{name!r} is not listed" for name in found if name not in listed]
    if not problems:
        problems += _release_contradictions(folder, listed)
        problems += signing.signature_problems(folder, public_key, links=cache is not None)
    return Report(
        stage="verify",
        inputs={CHECKSUM_FILE: sha256_file(folder / CHECKSUM_FILE)},
        settings={},
        facts={
            "files": len(listed),
            "signed": _signature_state(listed, public_key),
            "problems": problems,
        },
        verdict=Verdict.FAIL if problems else Verdict.PASS,
        cost=watch.cost(),
    )


def _signature_state(listed: dict[str, str], public_key: Path | None) -> str:
    """What the signature was held against."""
    if signing.SIGNATURE_FILE not in listed:
        return "no"
    if not optional_packages.is_installed("model_signing"):
        return 'not checked: pip install "camelpress[sign]"'
    return f"by the key {(public_key or Path(signing.PUBLIC_KEY_FILE)).name}"


def verify_release_at(place: Path, public_key: Path | None = None) -> Report:
    """The same of a folder, or of `hf:org/name[@revision]`: fetched, unless the cache has it.

    Raises:
        CheckpointProblem: as `verify` and `origin.locate`.
    """
    if not is_hub_name(place):
        return verify_release(place, public_key=public_key)
    from camelpress.core.hub.hub_download import download_release

    folder, cache = download_release(place)
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
        elif (found := sha256_file(path)) != digest:
            yield f"{name!r} has changed: sha256 {found}, listed {digest}"
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself, before Python 3.13
        yield f"{name!r} cannot be read ({error})"


def _has_link(folder: Path, name: str) -> bool:
    """Returns whether a file or a folder on the way to it is a link, which may change unnoticed."""
    parts = PurePosixPath(name).parts
    return any(folder.joinpath(*parts[:count]).is_symlink() for count in range(1, len(parts) + 1))


def _files(folder: Path, *, linked: bool) -> Iterator[str]:
    """Everything in the folder but the hub's own: files, links to folders, unreadable folders."""
    unreadable: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=unreadable.append):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted([*links, *files]):
            path = Path(place) / name
            shown = path.relative_to(folder).as_posix()
            if shown != CHECKSUM_FILE and not _is_of_hub(path, shown, linked=linked):
                yield shown
    for error in unreadable:
        yield Path(error.filename).relative_to(folder).as_posix()


def _is_of_hub(path: Path, name: str, *, linked: bool) -> bool:
    """Returns whether a file is what the hub or its client puts beside what they are given."""
    if not path.is_file() or (path.is_symlink() and not linked):
        return False
    if name == GITATTRIBUTES_FILE or name in DOWNLOAD_FOLDER_FILES:
        return True
    if name.startswith(f"{DOWNLOAD_CACHE}/download/"):
        return path.suffix in CLIENT_SUFFIXES
    return PurePosixPath(name).parent.as_posix() == DOWNLOAD_TREES and path.suffix == ".json"


def _release_contradictions(folder: Path, listed: dict[str, str]) -> Iterator[str]:
    """Where card, config, report and provenance do not say the same."""
    try:
        facts = read_release_facts(folder)
        yield from model_card.card_contradictions(model_card.read_release_card(folder), facts)
        provenance = Report.read_report(folder / PROVENANCE_FILE)
    except Problem as error:
        yield str(error)
        return
    model = provenance.facts.get("model")
    if not isinstance(model, dict) or sha256_json(model) != facts.validation.inputs.get(
        "candidate"
    ):
        yield f"{PROVENANCE_FILE} describes another model than the one that was validated"
        return
    changed = model_files.changed_model_files(model, listed, recipe_only=facts.settings.recipe_only)
    yield from (f"{name!r} is not what was validated" for name in changed)
    told = provenance.outputs
    sealed = listed.keys() - {PROVENANCE_FILE, signing.SIGNATURE_FILE, *changed}
    for name in sorted(told.keys() - set(changed) | sealed):
        if told.get(name) != listed.get(name):
            yield f"{name!r} is not what {PROVENANCE_FILE} says that it was published with"
