"""Writes usage examples for each client; the client tests run every example unchanged."""

from __future__ import annotations

from typing import NamedTuple

from camelpress.publish.card.card_markdown import SafeMarkdown
from camelpress.publish.card.release_quotes import NO_PROMPT, ReleaseQuotes

LOCAL_FOLDER = 'folder = "path/to/this/folder"\n'
HUB_FOLDER = """\
from huggingface_hub import snapshot_download

folder = snapshot_download("{repository}", revision="{revision}")
"""
CHAT_INPUT = """\
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Name three camelids."}],
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
"""
PLAIN_INPUT = 'inputs = tokenizer("Camelids are", return_tensors="pt").to(model.device)\n'
GENERATE_REPLY = """\
output = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


class Snippet(NamedTuple):
    """Usage example of one client: install command, import code and load code."""

    client: str
    install: str
    import_code: str
    load_code: str


SNIPPETS = (
    Snippet(
        "transformers",
        "pip install transformers optimum gptqmodel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n",
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", dtype="auto")\n',
    ),
    Snippet(
        "GPTQModel",
        "pip install gptqmodel",
        "from gptqmodel import GPTQModel\nfrom transformers import AutoTokenizer\n",
        "tokenizer = AutoTokenizer.from_pretrained(folder)\nmodel = GPTQModel.load(folder)\n",
    ),
)


def usage_snippets(facts: ReleaseQuotes) -> list[tuple[str, SafeMarkdown, SafeMarkdown]]:
    """Returns client, install command and program for a model with or without chat template."""
    input_code = PLAIN_INPUT if facts.shape.get("prompt") == NO_PROMPT else CHAT_INPUT
    home = facts.hub_home
    folder_code = HUB_FOLDER.format(repository=home[0], revision=home[1]) if home else LOCAL_FOLDER
    return [
        (
            snippet.client,
            SafeMarkdown(snippet.install),
            SafeMarkdown(_program(snippet, folder_code, input_code)),
        )
        for snippet in SNIPPETS
    ]


def _program(snippet: Snippet, folder_code: str, input_code: str) -> str:
    imports, _, name = folder_code.rpartition("\n\n")
    head = f"{imports}\n{snippet.import_code}" if imports else snippet.import_code
    return f"{head}\n{name}{snippet.load_code}{input_code}{GENERATE_REPLY}".rstrip("\n")
