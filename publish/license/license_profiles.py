"""Lists licence profiles with the required files and texts of a release. Not legal advice.

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
PERMISSIVE_LICENSES = ("apache-2.0", "mit")  # input licences that most profiles cover


class LicenseProfile(NamedTuple):
    """Requirements of one licence for redistribution of the weights."""

    hub: str
    """Licence identifier of the hub."""
    name: str | None
    """Licence name for the hub, if its identifier is `other`."""
    covers: tuple[str, ...]
    """Hub identifiers allowed on the cards of the input models."""
    restricted: bool
    """True if the release must stay private or gated."""
    required_files: tuple[tuple[str, ...], ...]
    """Licence files to ship, each as a tuple of alternative name patterns."""
    text: str | None
    """File in `texts/` to ship for a model without a licence file."""
    origin: str
    """Source of the licence files, for an error message."""
    notice: str
    """Attribution, with {name} for the name of the release."""
    terms: str
    """Terms in one sentence for the card."""


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
    """Returns the profile of a licence.

    Raises:
        RecipeProblem: the name is unknown.
    """
    try:
        return LICENSE_PROFILES[name]
    except KeyError:
        raise RecipeProblem(
            f"{name!r} is not a licence profile, and nothing is published without one",
            next_step=f"give --license with one of {', '.join(LICENSE_PROFILES)}",
        ) from None


def copy_license_files(folder: Path, profile: LicenseProfile, sources: Sequence[Path]) -> list[str]:
    """Copies the required licence files from the first source folder with a match.

    Args:
        folder: release folder.
        profile: licence profile of the release.
        sources: folders of the candidate and of its source models, in this order.
    Returns:
        Names of the licence files.
    Raises:
        CheckpointProblem: a licence file is missing or empty.
    """
    names: list[str] = []
    for patterns in profile.required_files:
        paths = next(
            filter(None, (_match_license_files(source, patterns) for source in sources)), []
        )
        if not paths and profile.text is None:
            raise CheckpointProblem(
                f"{sources[0]} has no {' or '.join(patterns)}, which the release must include",
                next_step=f"put that licence file there; {profile.origin}",
            )
        if not paths:
            text = files("camelpress.publish.license").joinpath("texts", str(profile.text))
            (folder / "LICENSE").write_bytes(text.read_bytes())
            names.append("LICENSE")
        for path in paths:
            shutil.copyfile(path, folder / path.name)
            names.append(path.name)
    return names


def _match_license_files(source: Path, patterns: Sequence[str]) -> list[Path]:
    paths = [path for pattern in patterns for path in model_files(source) if path.match(pattern)]
    for path in paths:
        if not path.stat().st_size:
            raise CheckpointProblem(
                f"{path} is empty", next_step="put the text of the licence there"
            )
    return paths


def write_notice(folder: Path, attribution: str) -> None:
    """Writes NOTICE: the attribution, then the notice of the original model."""
    path = folder / NOTICE
    original = path.read_bytes() if path.is_file() else b""
    notice = f"{attribution}\n".encode()
    if notice not in original:
        path.write_bytes(notice + (b"\n" + original if original.strip() else b""))
