"""Upper bounds on untrusted inputs; `docs/reliability.md` lists each of them.

A file beyond a bound is refused with one line before parsing, so its author controls neither the
memory nor the time of a run.
"""

from __future__ import annotations

# fmt: off
MAX_YAML_BYTES = 2**20                # bytes of a recipe, a gate or a YAML text
MAX_YAML_NODES = 20_000               # values in a YAML file, values behind aliases included
MAX_YAML_DEPTH = 50                   # levels of lists and mappings in a YAML file

MAX_CONFIG_BYTES = 2**22              # bytes of a config.json
MAX_JSON_BYTES = 2**27                # bytes of any other JSON file
MAX_JSON_VALUES = 4_000_000           # commas and opening brackets in a JSON text
MAX_JSON_DEPTH = 100                  # levels of lists and objects in a JSON text

MAX_LAYERS = 1_000                    # decoder blocks
MAX_HEADS = 4_096                     # attention heads of a block
MAX_WIDTH = 2**20                     # channels: hidden, intermediate and head size
MAX_VOCABULARY = 2**24                # tokens
MAX_POSITIONS = 2**31                 # positions, and tokens of a sliding window

MAX_HEADER_BYTES = 100_000_000        # bytes of a safetensors header; the limit of the format
MAX_TENSORS = 100_000                 # tensors in one weight file, and in an index
MAX_TENSOR_NAME_CHARACTERS = 1_000    # characters of a tensor name
MAX_DIMENSIONS = 32                   # dimensions of a tensor
MAX_ELEMENTS = 2**63 - 1              # elements of a tensor or of one dimension

MAX_PICKLE_BYTES = 2**24              # bytes of the pickle in a .bin shard, weights excluded
MAX_PICKLE_OPCODES = 4_000_000        # opcodes of that pickle
MAX_DIRECTORY_BYTES = 2**24           # bytes of the directory of a .bin shard's archive

MAX_PATTERN_CHARACTERS = 4_096        # characters of a regular expression in a config
MAX_PATTERN_REPEATS = 1_000           # product of all counted repeats in an expression
MAX_PATTERN_SECONDS = 5.0             # seconds of processor time for slow expressions
MAX_PATTERNS = 2_000                  # regular expressions in a config

MAX_TOKENIZER_MODEL_BYTES = 2**26     # bytes of a tokenizer.model
MAX_PIECES = 1_000_000                # pieces of a tokenizer.model
MAX_PIECE_CHARACTERS = 512            # characters of one piece
MAX_TEMPLATE_CHARACTERS = 2**20       # characters of a chat template
MAX_TEMPLATE_SECONDS = 5              # seconds of processor time to render one conversation
MAX_TEMPLATE_MEMORY_BYTES = 2**30     # bytes of memory for rendering
MAX_RENDERED_CHARACTERS = 2**24       # characters of a rendered conversation
MAX_TEXT_BYTES = 2**24                # UTF-8 bytes of a text tokenized at once

MAX_ANSWER_BYTES = 2**24              # bytes of an answer from a hub or a registry
MAX_LISTING_PAGES = 100               # answers of a hub for the listing of one repository
MAX_JUDGE_ANSWER_BYTES = 2**20        # bytes of an answer from a judge service
MAX_UNSIZED_FILE_BYTES = 2**28        # bytes of a download of unknown size

MAX_CARD_BYTES = 2**24                # bytes of a model card
MAX_TASK_DATA_BYTES = 2**28           # bytes of a file of benchmark items, after decompression
MAX_SAMPLES_BYTES = 2**30             # bytes of the samples of one task in a report

MAX_MESSAGE_CHARACTERS = 2_000        # characters of an error message; the middle is cut
# fmt: on
