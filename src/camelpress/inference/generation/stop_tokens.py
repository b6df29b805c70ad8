"""Ids that end a reply."""

from __future__ import annotations

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.json_files import read_json
from camelpress.core.text.hf_tokenizer import Tokenizer

GENERATION_CONFIG = "generation_config.json"


def stop_token_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids that end a reply: EOS of the tokenizer, and ids from the configs.

    Raises:
        CheckpointProblem: a config has a value other than ids.
    """
    ids = set() if tokenizer.eos is None else {tokenizer.eos}
    path = checkpoint.folder / GENERATION_CONFIG
    for content in (checkpoint.config, read_json(path) if path.is_file() else {}):
        value = content.get("eos_token_id")
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(item) is int for item in values):
            raise CheckpointProblem(
                f"{checkpoint.folder} has the invalid eos_token_id {value!r}",
                next_step="compare config.json and generation_config.json with the original model",
            )
        ids.update(values)
    return sorted(ids)
