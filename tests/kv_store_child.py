"""Puts, deletes, purges and compacts at random until it is killed; says what it is about to do and what is done."""

import random
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from kv_helpers import MIB, key_of, put

from engine.kv_store import ExtentStore

NUMBERS = 40


def work(folder: str, seed: int) -> None:
    generator = random.Random(seed)
    store = ExtentStore(folder, capacity_bytes=MIB)
    print("open", flush=True)
    while True:
        verb = generator.choice(["put", "put", "put", "put", "delete", "delete", "purge", "compact"])
        numbers = [] if verb == "compact" else generator.sample(range(NUMBERS), generator.randrange(1, 8))
        print("begin", verb, *numbers, flush=True)
        if verb == "put":
            assert all(put(store, n) for n in numbers)
        elif verb == "delete":
            store.delete(*map(key_of, numbers))
        elif verb == "purge":
            assert store.purge(map(key_of, numbers)).absent
        else:
            store.compact()
        print("end", flush=True)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
