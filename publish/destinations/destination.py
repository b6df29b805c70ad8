"""Where a release goes: a folder here, or a place elsewhere that the finished folder is sent to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from camelpress.core.errors import RecipeProblem
from camelpress.core.hub.model_location import HUB_PREFIX
from camelpress.publish.destinations.oci_registry import OCI_SCHEME, OciDestination
from camelpress.publish.destinations.s3_bucket import S3_SCHEME, S3Destination
from camelpress.publish.license.license_profiles import license_profile
from camelpress.publish.settings import Publish


@runtime_checkable
class Destination(Protocol):
    """A place elsewhere; its text is what leads there again."""

    @property
    def title(self) -> str:
        """A name for the release where nobody gave one."""

    def require_ready(self) -> tuple[str, ...]:
        """See that a release may go there, and tell which other variants are there."""

    def upload(self, folder: Path) -> dict[str, Any]:
        """Bring a finished release there so that nobody ever sees a part of it."""


def parse_destination(settings: Publish, variant: str, *, force: bool) -> Destination | None:
    """The place that the settings name; None for a folder here.

    Args:
        settings: with `to`, licence and visibility.
        variant: what the quantization is called.
        force: replace an earlier release there.
    Raises:
        RecipeProblem: no such place, no such licence, or `public` without the right.
    """
    if settings.public and not settings.i_have_the_right:
        raise RecipeProblem(
            f"--public would show a model under {settings.license} to everybody",
            next_step="read its licence and those of its inputs, then add --i-have-the-right",
        )
    to = settings.to or ""
    if to.startswith(HUB_PREFIX):
        from camelpress.publish.destinations.hub_repository import (
            HubDestination,  # its client takes a third of a second
        )

        gated = license_profile(settings.license).restricted or not settings.public
        return HubDestination.parse(to, variant, public=settings.public, gated=gated, force=force)
    if to.startswith(S3_SCHEME):
        return S3Destination.parse(to)
    if to.startswith(OCI_SCHEME):
        return OciDestination.parse(to, variant, force=force)
    if "://" in to:
        raise RecipeProblem(
            f"nothing can be published to {to}",
            next_step=f"give a folder, {HUB_PREFIX}org/name, {S3_SCHEME}bucket/prefix or "
            f"{OCI_SCHEME}registry/name",
        )
    return None


def variant_name(quantization: Mapping[str, Any]) -> str:
    """What a quantization is called among others, such as gptq-4bit-128g.

    Source: the names of branches that TheBloke's GPTQ repositories made common.
    """
    size = quantization.get("group_size")
    parts = (
        f"gptq-{quantization.get('bits')}bit",
        f"-{size}g" if isinstance(size, int) and size > 0 else "",
        "" if quantization.get("sym", True) else "-asym",
        "-actorder_True" if quantization.get("desc_act") else "",
    )
    return "".join(parts)
