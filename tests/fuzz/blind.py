"""The fallback where there is no atheris (it has wheels for x86-64 and Python 3.11 and newer alone): the same targets,
seeds and options, but inputs that nothing but chance leads on."""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path


def mutated(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Return a few small changes to `data`, sometimes with a piece of `other` in it."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randint(0, len(out))
        kind = chance.randrange(5)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << chance.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            out[at:at] = chance.randbytes(chance.choice((1, 2, 4)))
        elif kind == 3:
            del out[at : at + chance.choice((1, 2, 4, len(out)))]
        else:
            start = chance.randint(0, len(other))
            out[at:at] = other[start : start + chance.randint(1, 32)]
    return bytes(out)


def fuzz(target: Callable[[bytes], None], options: list[str]) -> None:
    """Understands -runs=, -seed=, -max_total_time=, -artifact_prefix= and corpus folders; ends the process at a
    finding, as libFuzzer does."""
    given = dict(option[1:].split("=", 1) for option in options if option.startswith("-"))
    files = [path for folder in options if not folder.startswith("-") for path in sorted(Path(folder).iterdir())]
    corpus = [path.read_bytes() for path in files] or [b""]
    seed = int(given.get("seed", 0)) or random.getrandbits(32)
    print(f"INFO: Seed: {seed}", file=sys.stderr)
    chance, began, done = random.Random(seed), time.monotonic(), 0
    most, seconds = int(given.get("runs", -1)), int(given.get("max_total_time", 0))
    while done != most and not (seconds and time.monotonic() - began >= seconds):
        data = corpus[done] if done < len(corpus) else mutated(chance, chance.choice(corpus), chance.choice(corpus))
        try:
            target(data)
        except BaseException:
            kept = Path(f"{given.get('artifact_prefix', './')}crash-{hashlib.sha1(data).hexdigest()}")  # noqa: S324
            kept.write_bytes(data)
            print(f"Test unit written to {kept}", file=sys.stderr, flush=True)
            raise
        done += 1
    print(f"stat::number_of_executed_units: {done}", file=sys.stderr)
