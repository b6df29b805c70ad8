"""The pictures of the documents show what the demo writes now."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from scripts import script

DOCS = Path(__file__).parents[1] / "docs"


def test_pictures_are_small_and_those_of_the_demo() -> None:
    for picture in (DOCS / "pictures").iterdir():
        assert picture.stat().st_size < 200_000, picture.name
    done = subprocess.run(
        [sys.executable, str(DOCS / "make/pictures.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_changed_word_makes_pictures_stale_and_a_changed_figure_does_not() -> None:
    pictures = script(DOCS / "make/pictures.py")
    page = '<h2>Checks</h2><p>ratio 1.0270, {}</p><svg><text x="{}">all texts</text></svg>'

    def digests(word: str, place: str) -> dict[str, str]:
        page_now = page.format(word, place)
        return dict(pictures.DemoOutput(page_now, "card", "text").digests())

    assert digests("0.5 s", "1.5") == digests("12.75 s", "3")
    assert digests("0.5 s", "1.5") != digests("0.5 seconds", "1.5")


def test_both_pictures_of_the_pipeline_differ_in_colours_only() -> None:
    light, dark = (
        (DOCS / f"{name}.svg").read_text(encoding="utf-8") for name in ("pipeline", "pipeline-dark")
    )
    assert light != dark
    assert re.sub(r"#[0-9a-f]{6}", "", light) == re.sub(r"#[0-9a-f]{6}", "", dark)
