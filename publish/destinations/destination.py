"""Chooses the remote destination of a release from its address: hub, S3 or OCI registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from camelpress.core.errors import RecipeProblem
from camelpress.core.hub.repo_id import HUB_PREFIX
from camelpress.publish.destinations.oci_destination import OCI_SCHEME, OciDestination
from camelpress.publish.destinations.s3_destination import S3_SCHEME, S3Destination
from camelpress.publish.license.license_profiles import license_profile
from camelpress.publish.settings import PublishSettings


@runtime_checkable
class Destination(Protocol):
    """Remote place for a release; `str` gives its address."""

    @property
    def title(self) -> str:
        """Default title of the release."""

    def require_ready(self) -> tuple[str, ...]:
        """Checks access to the destination, and returns the other variants published there."""

    def upload(self, folder: Path) -> dict[str, Any]:
        """Uploads a finished release atomically, and returns facts for the report."""


def parse_destination(
    settings: PublishSettings, variant: str, *, force: bool
) -> Destination | None:
    """Returns the remote destination of the settings; None for a local folder.

    Args:
        settings: destination, licence and visibility of the release.
        variant: name of the quantization, used as default branch or tag.
        force: replace an earlier release at the destination.
    Raises:
        RecipeProblem: the address or licence is unknown, or `public` lacks `i_have_the_right`.
    """
    if settings.public and not settings.i_have_the_right:
        raise RecipeProblem(
            f"--public would show a model under {settings.license} to everybody",
            next_step="read its licence and those of its inputs, then add --i-have-the-right",
        )
    address = settings.to or ""
    if address.startswith(HUB_PREFIX):
        from camelpress.publish.destinations.hub_destination import (
            HubDestination,  # imported late: the hub client takes 0.3 seconds
        )

        gated = license_profile(settings.license).restricted or not settings.public
        return HubDestination.parse(
            address, variant, public=settings.public, gated=gated, force=force
        )
    if address.startswith(S3_SCHEME):
        return S3Destination.parse(address)
    if address.startswith(OCI_SCHEME):
        return OciDestination.parse(address, variant, force=force)
    if "://" in address:
        raise RecipeProblem(
            f"nothing can be published to {address}",
            next_step=f"give a folder, {HUB_PREFIX}org/name, {S3_SCHEME}bucket/prefix or "
            f"{OCI_SCHEME}registry/name",
        )
    return None


def variant_name(quantization: Mapping[str, Any]) -> str:
    """Names a quantization for a branch or tag, such as gptq-4bit-128g.

    Source: branch names in the GPTQ repositories of TheBloke.
    """
    size = quantization.get("group_size")
    parts = (
        f"gptq-{quantization.get('bits')}bit",
        f"-{size}g" if isinstance(size, int) and size > 0 else "",
        "" if quantization.get("sym", True) else "-asym",
        "-actorder_True" if quantization.get("desc_act") else "",
    )
    return "".join(parts)
