"""Makes the pictures of the documents from a run of the demo.

    python docs/make/pictures.py            writes docs/pictures; needs chromium
    python docs/make/pictures.py --check    ends with 1 if the demo writes something else now

The inputs of the pictures are the report page, the model card and the terminal output of the demo.
`inputs.json` holds a SHA-256 of each, taken after every figure, hash and plotted curve is masked:
these depend on the processor, the words and the layout do not.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from PIL import Image, ImageChops
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURES = Path(__file__).parents[1] / "pictures"
INPUTS = PICTURES / "inputs.json"
CHROMIUM = "/usr/bin/chromium"
COLUMNS = 92  # characters of a terminal line
MAX_PICTURE_BYTES = 200_000
CARD_SECTION = "Validation"
THEMES = {"light": 1, "dark": 0}  # chromium's preferredColorScheme
SIZES = {"report": (1120, 985), "card": (820, 2400)}  # CSS pixels, width and height
SCALE = 1.4  # pixels of a picture to a CSS pixel
COLOURS = 128  # of a picture's palette

MASKS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\x1b\[[0-9;]*m", ""),
    (r"<svg.*?</svg>", lambda match: " ".join(_labels(match[0]))),
    (r"\b[0-9a-f]{40,64}\b", "HASH"),
    (r"style=\"width: [^\"]*\"", ""),
    (r"\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "0"),
    (r"[ \t]+", " "),
)

CARD_CSS = """
:root { color-scheme: light dark; }
body { margin: 0; padding: 24px 32px; font: 16px/1.5 "DejaVu Sans", sans-serif; zoom: .8;
  color: light-dark(#1f2328, #f0f6fc); background: light-dark(#fff, #0d1117); }
h1, h2 { border-bottom: 1px solid light-dark(#d1d9e0, #3d444d); padding-bottom: .3em; }
table { border-collapse: collapse; margin: 16px 0; }
th, td { border: 1px solid light-dark(#d1d9e0, #3d444d); padding: 6px 13px; }
tr:nth-child(even) td { background: light-dark(#f6f8fa, #151b23); }
code { background: light-dark(#eff1f3, #2a3038); border-radius: 6px; padding: .2em .4em; }
img { max-width: 100%; }
"""
TERMINAL = TerminalTheme(
    (20, 23, 27),
    (231, 234, 238),
    [
        (20, 23, 27),
        (255, 128, 128),
        (92, 200, 127),
        (224, 176, 74),
        (120, 176, 238),
        (207, 155, 242),
        (90, 200, 210),
        (231, 234, 238),
    ],
)


class DemoOutput(NamedTuple):
    """The texts that the demo shows to a person."""

    report: str
    card: str
    terminal: str

    def digests(self) -> dict[str, str]:
        """Returns the SHA-256 of each text without its figures."""
        return {
            name: hashlib.sha256(masked(text).encode()).hexdigest()
            for name, text in self._asdict().items()
        }


def run_demo(folder: Path) -> DemoOutput:
    """Runs `camelpress demo` in a folder, as on a terminal of `COLUMNS` characters."""
    done = subprocess.run(
        [sys.executable, "-m", "camelpress", "demo", "--quiet"],
        cwd=folder,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"},
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    )
    out = folder / "camelpress-demo"
    return DemoOutput(
        (out / "validation/report.html").read_text(encoding="utf-8"),
        (out / "release/README.md").read_text(encoding="utf-8"),
        done.stdout.replace(str(folder.resolve()), "~"),
    )


def masked(text: str) -> str:
    """Returns a text without figures, hashes, curves and colours, one blank between words."""
    for pattern, replacement in MASKS:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _labels(svg: str) -> list[str]:
    """Returns the texts of a plot that have a word in them; ticks depend on the figures."""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    return [text for text in texts if re.search(r"[^\W\d_]{2}", text)]


def card_page(card: str, folder: Path) -> str:
    """Returns a page of the card's title and its validation section.

    Args:
        card: Markdown with YAML front matter.
        folder: the release; images of the card are relative to it.
    """
    body = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
    title, *sections = re.split(r"(?=<h2>)", body)
    shown = next(part for part in sections if part.startswith(f"<h2>{CARD_SECTION}</h2>"))
    return (
        f'<!doctype html><meta charset="utf-8"><base href="{folder.as_uri()}/">'
        f"<style>{CARD_CSS}</style>{title}{shown}"
    )


def screenshot(page: Path, theme: str, size: tuple[int, int], folder: Path) -> Image.Image:
    """Returns a picture of a page in headless chromium, without the empty space below it."""
    target = folder / "screenshot.png"
    subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={THEMES[theme]}",
            f"--force-device-scale-factor={SCALE}",
            f"--window-size={size[0]},{size[1]}",
            f"--screenshot={target}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
    )
    picture = Image.open(target).convert("RGB")
    corner = picture.getpixel((0, picture.height - 1))
    empty = Image.new("RGB", picture.size, corner)
    box = ImageChops.difference(picture, empty).getbbox()
    return picture.crop((0, 0, picture.width, min(picture.height, box[3] + 24))) if box else picture


def write_png(picture: Image.Image, path: Path) -> None:
    """Writes a picture with a palette, and refuses one that is too large for a repository."""
    buffer = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    if buffer.tell() > MAX_PICTURE_BYTES:
        raise SystemExit(f"{path} has {buffer.tell():,} bytes; lower SCALE or COLOURS")
    path.write_bytes(buffer.getvalue())


def terminal_svg(ansi: str) -> str:
    """Returns the terminal's output as an SVG image that loads no font from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(ansi.rstrip("\n")))
    svg = console.export_svg(title="camelpress demo", theme=TERMINAL, unique_id="demo")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def write_pictures(output: DemoOutput, folder: Path) -> None:
    """Writes the pictures and the digests of their inputs.

    Args:
        output: texts of the demo.
        folder: where the demo ran.
    """
    release = folder / "camelpress-demo/release"
    card = folder / "card.html"
    card.write_text(card_page(output.card, release), encoding="utf-8")
    pages = {"report": folder / "camelpress-demo/validation/report.html", "card": card}
    for name, page in pages.items():
        for theme in THEMES:
            picture = screenshot(page, theme, SIZES[name], folder)
            write_png(picture, PICTURES / f"{name}-{theme}.png")
    (PICTURES / "terminal.svg").write_text(terminal_svg(output.terminal), encoding="utf-8")
    INPUTS.write_text(json.dumps(output.digests(), indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Writes the pictures, or compares the digests of their inputs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory(prefix="cp-") as name:
        output = run_demo(Path(name))
        if not check:
            write_pictures(output, Path(name))
            return 0
    stored = json.loads(INPUTS.read_text(encoding="utf-8"))
    stale = [key for key, digest in output.digests().items() if stored.get(key) != digest]
    if stale:
        sys.stderr.write(f"docs/pictures is out of date ({', '.join(stale)}); run: make pictures\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
