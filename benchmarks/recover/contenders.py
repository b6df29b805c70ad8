"""Who takes part: commands that do the same work, and what is there to compare them with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FLOOR, SYNCED = "read and write", "read, write and sync"
RECOVER, UNCHECKED = "camelpress recover", "the same without its check"
PUBLISHED = "published algorithm"
IMPORTS: Mapping[str, str] = {  # the interpreter with what a command imports, and nothing done
    RECOVER: "imports of camelpress recover",
    UNCHECKED: "imports of camelpress recover",
    PUBLISHED: "imports of the published algorithm",
}
COPY = """
cat "$2"/*.bin > /dev/null
for shard in "$1"/*.safetensors; do dd if="$shard" bs=256K status=none; done > "$3"
"""  # the fp16 base has as many bytes as the output, but for the added rows


class Contender(NamedTuple):
    """A command, and whether it leaves a recovered model."""

    name: str
    command: list[str]
    recovers: bool = False


def contenders(work: Path, out: Path, *, published: bool) -> list[Contender]:
    """All of them, from `base` and `diff` in `work`; the published one only where wanted."""
    folders = [str(work / "base"), str(work / "diff"), str(out)]
    recover = [sys.executable, "-m", "camelpress", "recover", *folders]
    unchecked = [*recover, "--check", "off", "--dtype", "bfloat16"]  # auto samples, too
    theirs = [sys.executable, "-m", "benchmarks.recover.published_algorithm", *folders]
    found = [
        Contender(FLOOR, ["sh", "-ec", COPY, "sh", *folders]),
        Contender(SYNCED, ["sh", "-ec", f'{COPY}sync "$3"', "sh", *folders]),
        Contender(
            IMPORTS[RECOVER], _importing("camelpress.cli.commands, camelpress.convert.recover.run")
        ),
        Contender(RECOVER, recover, recovers=True),
        Contender(UNCHECKED, unchecked, recovers=True),
    ]
    if published:
        modules = "benchmarks.recover.published_algorithm, transformers.models.llama.modeling_llama"
        found.append(Contender(IMPORTS[PUBLISHED], _importing(modules)))
        found.append(Contender(PUBLISHED, theirs, recovers=True))
    return found


def _importing(modules: str) -> list[str]:
    return [sys.executable, "-c", f"import {modules}"]
