"""How a release is used, client by client; the tests of the clients run each as it stands."""

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
    """A client: its name, what to install, and its lines before and after the folder is named."""

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
    """Client, what to install and a whole program, for a model with or without a chat template."""
    ask = PLAIN_INPUT if facts.shape.get("prompt") == NO_PROMPT else CHAT_INPUT
    home = facts.hub_home
    place = HUB_FOLDER.format(repository=home[0], revision=home[1]) if home else LOCAL_FOLDER
    return [
        (each.client, SafeMarkdown(each.install), SafeMarkdown(_program(each, place, ask)))
        for each in SNIPPETS
    ]


def _program(each: Snippet, place: str, ask: str) -> str:
    imports, _, name = place.rpartition("\n\n")
    first = f"{imports}\n{each.import_code}" if imports else each.import_code
    return f"{first}\n{name}{each.load_code}{ask}{GENERATE_REPLY}".rstrip("\n")
