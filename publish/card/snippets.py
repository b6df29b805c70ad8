"""How a release is used, client by client; the tests of the clients run each as it stands."""

from __future__ import annotations

from typing import NamedTuple

from camelpress.publish.card.card_markdown import Ready
from camelpress.publish.card.release_quotes import NONE, Facts

LOCAL = 'folder = "path/to/this/folder"\n'
REMOTE = """\
from huggingface_hub import snapshot_download

folder = snapshot_download("{repository}", revision="{revision}")
"""
CHAT = """\
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Name three camelids."}],
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
"""
PLAIN = 'inputs = tokenizer("Camelids are", return_tensors="pt").to(model.device)\n'
REPLY = """\
output = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


class Snippet(NamedTuple):
    """A client: its name, what to install, and its lines before and after the folder is named."""

    client: str
    install: str
    imports: str
    load: str


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


def snippets(facts: Facts) -> list[tuple[str, Ready, Ready]]:
    """Client, what to install and a whole program, for a model with or without a chat template."""
    ask = PLAIN if facts.shape.get("prompt") == NONE else CHAT
    home = facts.home
    place = REMOTE.format(repository=home[0], revision=home[1]) if home else LOCAL
    return [
        (each.client, Ready(each.install), Ready(_program(each, place, ask))) for each in SNIPPETS
    ]


def _program(each: Snippet, place: str, ask: str) -> str:
    imports, _, name = place.rpartition("\n\n")
    first = f"{imports}\n{each.imports}" if imports else each.imports
    return f"{first}\n{name}{each.load}{ask}{REPLY}".rstrip("\n")
