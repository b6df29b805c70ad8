"""Mutates valid inputs: bytes, JSON values, and files that begin with a JSON header."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[Random, Sequence[bytes]], bytes]

# fmt: off
NUMBERS = (
    0, -1, 1, 2, 7, 255, 65_536, 2**31 - 1, 2**31, 2**32,
    2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63),
    10**9, 8_000_000_056, 10**30, 0.0, -0.0, 0.5, 1.5, 1e-300, 1e300, 4096.0,
)
TEXTS = (
    "", " ", "\n", "\0", "\ud800", "\u202e", "..", "../../etc/passwd",
    "/dev/zero", "~nosuch/x", "nan", "inf",
    "1", "true", "null", "{{x}}", "re:(a+)+$", "re:(", "(a|a)*b",
    "a" * 300, "9" * 5_000, "hf:a/b", "\x1b[2J",
    "{{ 1/0 }}", "{% for i in range(10**9) %}a{% endfor %}", "float16",
    "F8_E4M3", "<s>", "&a", "*a", "!!int",
)
TOKENS = (
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\\",
    b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"-", b"? ",
    b"&a ", b"*a", b"<<: *a", b"!!int ''", b"!!map [a]", b"!!binary x",
    b"%", b"|", b">", b"1e999", b"NaN", b"-Infinity",
    b"9" * 400, b"[" * 200, b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02",
    b"c__builtin__\nbytearray\n", b"\x8e\xff\xff\xff\xff",
    b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\0" * 8,
)
# fmt: on


def mutate_bytes(random: Random, seeds: Sequence[bytes]) -> bytes:
    """Returns a seed with one to eight changes to its bytes."""
    content = bytearray(random.choice(seeds))
    for _ in range(1 << random.randrange(4)):
        begin = random.randrange(len(content) + 1)
        end = min(len(content), begin + random.choice((0, 1, 2, 4, 8, 64, 512)))
        match random.randrange(6):
            case 0 if begin < len(content):
                content[begin] ^= 1 << random.randrange(8)
            case 1:
                content[begin:end] = random.choice(TOKENS)
            case 2:
                content[begin:begin] = random.choice(TOKENS)
            case 3:
                content[begin:begin] = content[begin:end] * random.choice((1, 2, 40))
            case 4:
                content[begin:] = random.choice(seeds)[begin:]
            case 5:
                content[begin:end] = random.randbytes(end - begin)
    return bytes(content)


def mutate_json(random: Random, seeds: Sequence[bytes]) -> bytes:
    """Returns a JSON seed with one to four other values, keys or nestings."""
    return dump(mutated_value(random, [json.loads(seed) for seed in seeds]))


def mutate_header(random: Random, seeds: Sequence[bytes]) -> bytes:
    """Returns a safetensors seed with another header, whose length is mostly right."""
    seed = random.choice(seeds)
    length = int.from_bytes(seed[:8], "little")
    header = dump(mutated_value(random, [json.loads(seed[8 : 8 + length])]))
    size = len(header) if random.random() < 0.95 else random.choice((0, 1, len(header) + 1, 2**63))
    return size.to_bytes(8, "little") + header + seed[8 + length :]


def either(*mutations: Mutation) -> Mutation:
    """Returns a mutation that applies one of several, drawn anew for each input."""
    return lambda random, seeds: random.choice(mutations)(random, seeds)


def mutated_value(random: Random, seeds: Sequence[Any]) -> Any:
    """Returns a copy of a JSON value with one to four changes at random places."""
    value = copy.deepcopy(random.choice(seeds))
    for _ in range(1 << random.randrange(3)):
        if not isinstance(value, (dict, list)) or not value:
            return _random_value(random)
        holder, key = _random_place(random, value)
        match random.randrange(5):
            case 0:
                del holder[key]
            case 1:
                other, name = _random_place(random, value)
                holder[key] = copy.deepcopy(other[name])
            case 2 if isinstance(holder, dict):
                holder[random.choice((*TEXTS, str(key) + "x"))] = holder.pop(key)
            case _:
                holder[key] = _random_value(random)
    return value


def dump(value: object) -> bytes:
    """Returns a JSON value as text; half a surrogate pair stays an escape."""
    return json.dumps(value).encode()


def _random_place(random: Random, value: Any) -> tuple[Any, Any]:
    """Returns a container and a key in it, as likely near the top as deep inside."""
    while True:
        key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
        inner = value[key]
        if not isinstance(inner, (dict, list)) or not inner or random.random() < 0.3:
            return value, key
        value = inner


def _random_value(random: Random) -> Any:
    value: Any = random.choice(
        (None, True, False, [], {}, random.choice(NUMBERS), random.choice(TEXTS))
    )
    for _ in range(random.choice((0, 0, 0, 1, 1, 2, 5, 200))):
        value = random.choice(([value], {"a": value}))
    return value
