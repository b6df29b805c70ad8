"""A listener that remembers what is noted."""

from __future__ import annotations

from camelpress.core.progress import SilentListener


class Notes(SilentListener):
    """Hears notes, and shows no progress."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        """Remember it."""
        self.heard.append(text)
