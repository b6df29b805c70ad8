"""Licence profiles as rows: what a release under each must carry and say. Not legal advice.

Source: allenai/open-instruct eb00bf13, assets/model_licenses/tulu_license.txt (sections 1 to 3) and
README.md (Tulu 2 is under the low-risk ImpACT licence instead); Llama 2 Community License (section
1.b); Apache License 2.0 (section 4); MIT License.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.publish.release.model_files import model_files

NOTICE = "NOTICE"
PERMISSIVE_LICENSES = ("apache-2.0", "mit")  # may become a part of anything


class LicenseProfile(NamedTuple):
    """What one licence asks of whoever passes the weights on."""

    hub: str
    """The hub's identifier."""
    name: str | None
    """Needed where the hub only knows `other`."""
    covers: tuple[str, ...]
    """What the cards of its inputs may name, as the hub calls it."""
    restricted: bool
    """Not for everybody: keep the release private or gated."""
    required_files: tuple[tuple[str, ...], ...]
    """Each a licence file that has to be shipped, by the patterns that it may go under."""
    text: str | None
    """The text in `licenses/` to ship where the model brings none."""
    origin: str
    """Where to get the files."""
    notice: str
    """Attribution, with {name} for the release."""
    terms: str
    """One sentence for the card."""


# fmt: off
LICENSE_PROFILES: Mapping[str, LicenseProfile] = {
    "tulu": LicenseProfile(
        "other", "ai2-ai-model-license", ("other", *PERMISSIVE_LICENSES), True,
        (("LICENSE*",), ("llama_license.txt",)), None,
        "LICENSE.txt and llama_license.txt lie beside the Tulu diff, such as allenai/tulu-65b",
        "{name} is licensed under the AI Model License, Copyright © The Allen Institute for "
        "Artificial Intelligence. All Rights Reserved.",
        "Non-commercial research only, no production use, not sublicensable, revocable; the "
        "use restrictions of appendix A and the licence of the LLaMA weights apply too.",
    ),
    "llama": LicenseProfile(
        "other", "llama-license", ("other", *PERMISSIVE_LICENSES), True,
        (("LICENSE*", "llama_license.txt"),), None,
        "it came with your copy of the LLaMA weights",
        "{name} is a derivative of LLaMA, whose weights Meta licenses for non-commercial research.",
        "Non-commercial research only, for those to whom Meta gave a licence.",
    ),
    "impact-lr": LicenseProfile(
        "other", "ai2-impact-license-low-risk", ("other", "llama2", *PERMISSIVE_LICENSES), True,
        (("LICENSE*",),), None,
        "it lies beside the weights of Tulu 2, or at https://allenai.org/licenses/impact-lr",
        "{name} is a derivative of a model that the Allen Institute for Artificial Intelligence "
        "licensed under its ImpACT License for low-risk artifacts.",
        "The AI2 ImpACT License for low-risk artifacts and its use restrictions apply, and so does "
        "the licence of the raw model.",
    ),
    "llama2": LicenseProfile(
        "llama2", None, ("llama2", *PERMISSIVE_LICENSES), False, (("LICENSE*",),), None,
        "it lies beside the weights of Llama 2; its acceptable use policy belongs there too",
        "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, "
        "Inc. All Rights Reserved. {name} is a derivative of Llama 2.",
        "The Llama 2 Community License and its acceptable use policy apply.",
    ),
    "apache-2.0": LicenseProfile(
        "apache-2.0", None, PERMISSIVE_LICENSES, False, (("LICENSE*",),), "Apache-2.0.txt",
        "it lies beside the weights of the original model",
        "{name} is licensed under the Apache License, Version 2.0. The weights were changed: "
        "they are quantized.",
        "Free to use, change and pass on with the licence and the notices.",
    ),
    "mit": LicenseProfile(
        "mit", None, ("mit",), False, (("LICENSE*",),), "MIT.txt",
        "it lies beside the weights of the original model",
        "{name} is licensed under the MIT License. The weights were changed: they are quantized.",
        "Free to use, change and pass on with the licence.",
    ),
}
# fmt: on


def license_profile(name: str) -> LicenseProfile:
    """The row of a licence.

    Raises:
        RecipeProblem: there is none of this name.
    """
    try:
        return LICENSE_PROFILES[name]
    except KeyError:
        raise RecipeProblem(
            f"{name!r} is not a licence profile, and nothing is published without one",
            next_step=f"give --license with one of {', '.join(LICENSE_PROFILES)}",
        ) from None


def copy_license_files(folder: Path, chosen: LicenseProfile, sources: Sequence[Path]) -> list[str]:
    """Copy what the licence wants shipped; the first source that has a file gives it.

    Args:
        folder: the release.
        chosen: the profile.
        sources: the candidate, then the models it was made from.
    Returns:
        The names of the licence files.
    Raises:
        CheckpointProblem: a file is not there, or it is empty.
    """
    names: list[str] = []
    for patterns in chosen.required_files:
        found = next(
            filter(None, (_match_license_files(source, patterns) for source in sources)), []
        )
        if not found and chosen.text is None:
            raise CheckpointProblem(
                f"{sources[0]} has no {' or '.join(patterns)}, which has to go with the weights",
                next_step=f"put that licence file there; {chosen.origin}",
            )
        if not found:
            text = files("camelpress.publish.license").joinpath("texts", str(chosen.text))
            (folder / "LICENSE").write_bytes(text.read_bytes())
            names.append("LICENSE")
        for path in found:
            shutil.copyfile(path, folder / path.name)
            names.append(path.name)
    return names


def _match_license_files(source: Path, patterns: Sequence[str]) -> list[Path]:
    found = [path for pattern in patterns for path in model_files(source) if path.match(pattern)]
    for path in found:
        if not path.stat().st_size:
            raise CheckpointProblem(
                f"{path} is empty", next_step="put the text of the licence there"
            )
    return found


def write_notice(folder: Path, attribution: str) -> None:
    """Write NOTICE: our attribution, then what the original model already said there."""
    path = folder / NOTICE
    original = path.read_bytes() if path.is_file() else b""
    own = f"{attribution}\n".encode()
    if own not in original:
        path.write_bytes(own + (b"\n" + original if original.strip() else b""))
