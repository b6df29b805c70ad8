"""Which ids end what a model says."""

from __future__ import annotations

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.json_files import read_json
from camelpress.core.text.hf_tokenizer import Tokenizer

GENERATION_CONFIG = "generation_config.json"


def stop_token_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> list[int]:
    """The ids that end a reply: the tokenizer's EOS, and those that the model's configs name.

    Raises:
        CheckpointProblem: a config names something else than ids.
    """
    found = set() if tokenizer.eos is None else {tokenizer.eos}
    path = checkpoint.folder / GENERATION_CONFIG
    for content in (checkpoint.config, read_json(path) if path.is_file() else {}):
        named = content.get("eos_token_id")
        listed = named if isinstance(named, list) else [] if named is None else [named]
        if not all(type(each) is int for each in listed):
            raise CheckpointProblem(
                f"{checkpoint.folder} has an eos_token_id that is {named!r}",
                next_step="compare config.json and generation_config.json with the original model",
            )
        found.update(listed)
    return sorted(found)
