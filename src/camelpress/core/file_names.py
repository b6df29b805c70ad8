"""Names of files and folders in a checkpoint, shared by readers and writers."""

from __future__ import annotations

CHAT_TEMPLATES_FOLDER = "additional_chat_templates"  # chat templates besides the default one
SIDECAR_PATTERNS = (  # files beside the weights; every output receives a copy
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    f"{CHAT_TEMPLATES_FOLDER}/*.jinja",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "llama_license.txt",
    "*-report.json",  # reports of the earlier stages
)
CARD_FILE = "README.md"
