"""Is this release still what was published? Every hash, and the card against the files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from camelpress.core.errors import Problem
from camelpress.core.files.file_hashes import MANIFEST, PROVENANCE, sha256_file, sha256_json
from camelpress.core.hub.model_location import ATTRIBUTES, DOWNLOADS, on_hub
from camelpress.core.progress import track
from camelpress.core.runtime import optional_packages
from camelpress.publish.card import model_card
from camelpress.publish.card.release_quotes import of_release
from camelpress.publish.release import checksums, model_files, signing
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict

CLIENT_FILES = (f"{DOWNLOADS}/.gitignore", f"{DOWNLOADS}/CACHEDIR.TAG")  # of its folder itself
TREES = f"{DOWNLOADS}/trees"  # of its lists of files, one a commit
CLIENT_SUFFIXES = (".metadata", ".lock", ".incomplete")  # of its notes on each download


def verify(folder: Path, *, cache: Path | None = None, public_key: Path | None = None) -> Report:
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
    listed, problems = checksums.read(folder / MANIFEST)
    if cache is None and (folder / MANIFEST).is_symlink():
        problems.append(f"{MANIFEST!r} is a link")
    for name, digest in track(sorted(listed.items()), "verify"):
        problems += _compare(folder, name, digest, cache)
    found = _files(folder, linked=cache is not None)
    problems += [f"{name!r} is not listed" for name in found if name not in listed]
    if not problems:
        problems += _contradictions(folder, listed)
        problems += signing.faults(folder, public_key, links=cache is not None)
    return Report(
        stage="verify",
        inputs={MANIFEST: sha256_file(folder / MANIFEST)},
        settings={},
        facts={"files": len(listed), "signed": _signed(listed, public_key), "problems": problems},
        verdict=Verdict.FAIL if problems else Verdict.PASS,
        cost=watch.cost(),
    )


def _signed(listed: dict[str, str], public_key: Path | None) -> str:
    """What the signature was held against."""
    if signing.SIGNATURE not in listed:
        return "no"
    if not optional_packages.is_there("model_signing"):
        return 'not checked: pip install "camelpress[sign]"'
    return f"by the key {(public_key or Path(signing.PUBLIC_KEY)).name}"


def verify_at(place: Path, public_key: Path | None = None) -> Report:
    """The same of a folder, or of `hf:org/name[@revision]`: fetched, unless the cache has it.

    Raises:
        CheckpointProblem: as `verify` and `origin.locate`.
    """
    if not on_hub(place):
        return verify(place, public_key=public_key)
    from camelpress.core.hub.hub_download import fetch_release

    folder, cache = fetch_release(place)
    return verify(folder, cache=cache, public_key=public_key)


def _compare(folder: Path, name: str, digest: str, cache: Path | None) -> Iterator[str]:
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
            if shown != MANIFEST and not _is_of_hub(path, shown, linked=linked):
                yield shown
    for error in unreadable:
        yield Path(error.filename).relative_to(folder).as_posix()


def _is_of_hub(path: Path, name: str, *, linked: bool) -> bool:
    """Returns whether a file is what the hub or its client puts beside what they are given."""
    if not path.is_file() or (path.is_symlink() and not linked):
        return False
    if name == ATTRIBUTES or name in CLIENT_FILES:
        return True
    if name.startswith(f"{DOWNLOADS}/download/"):
        return path.suffix in CLIENT_SUFFIXES
    return PurePosixPath(name).parent.as_posix() == TREES and path.suffix == ".json"


def _contradictions(folder: Path, listed: dict[str, str]) -> Iterator[str]:
    """Where card, config, report and provenance do not say the same."""
    try:
        facts = of_release(folder)
        yield from model_card.contradictions(model_card.read(folder), facts)
        provenance = Report.read(folder / PROVENANCE)
    except Problem as error:
        yield str(error)
        return
    model = provenance.facts.get("model")
    if not isinstance(model, dict) or sha256_json(model) != facts.validation.inputs.get(
        "candidate"
    ):
        yield f"{PROVENANCE} describes another model than the one that was validated"
        return
    changed = model_files.differing(model, listed, recipe_only=facts.settings.recipe_only)
    yield from (f"{name!r} is not what was validated" for name in changed)
    told = provenance.outputs
    sealed = listed.keys() - {PROVENANCE, signing.SIGNATURE, *changed}
    for name in sorted(told.keys() - set(changed) | sealed):
        if told.get(name) != listed.get(name):
            yield f"{name!r} is not what {PROVENANCE} says that it was published with"
