"""A daemon whose memory ends where the test says: at the n-th allocation from now on, or at some by chance."""

import mmap
import re
import struct
import subprocess
from pathlib import Path

from daemon import PENSTOCKD, preloaded

# struct orders of short_of_memory.c: those that are given, and what is counted.
GIVEN, COUNTED = struct.Struct("=IIQQQQQ"), struct.Struct("=QQq")
COUNTED_AT = GIVEN.size - 16


class Shortage:
    """Made before the daemon starts, whose prefix is `prefix`."""

    def __init__(self, directory):
        path = directory / "orders"
        path.write_bytes(bytes(COUNTED_AT + COUNTED.size))
        self._trace, self._told = Path(f"{path}.trace"), 0
        self.prefix = [*preloaded(directory, Path(__file__).with_suffix(".c").read_text()), f"SHORT_OF_MEMORY={path}"]
        with open(path, "r+b") as file:
            self._orders = mmap.mmap(file.fileno(), 0)
        self._order = 0  # an odd one holds

    def _give(self, at=0, run=0, one_in=0, seed=0):
        self.end()
        self._told = self._trace.stat().st_size
        GIVEN.pack_into(self._orders, 0, self._order, one_in, seed, at, run, 0, 0)
        self._order += 1
        struct.pack_into("=I", self._orders, 0, self._order)

    def count(self):
        """Nothing fails, all are counted."""
        self._give()

    def fail(self, number, run=0):
        """The number-th from now on fails, and as many behind it as `run` says."""
        self._give(at=number, run=run)

    def fail_by_chance(self, one_in, seed):
        self._give(one_in=one_in, seed=seed)

    def end(self):
        """From now on there is memory again. Returns how many failed."""
        self._order += self._order & 1
        struct.pack_into("=I", self._orders, 0, self._order)
        return COUNTED.unpack_from(self._orders, COUNTED_AT)[1]

    def seen(self):
        """How many there were under the last order."""
        return COUNTED.unpack_from(self._orders, COUNTED_AT)[0]

    def held(self):
        """How many blocks are in use, counted from some number on."""
        return COUNTED.unpack_from(self._orders, COUNTED_AT)[2]

    def places(self):
        """Where those came from that failed under the last order: of each the functions, the innermost first."""
        with open(self._trace) as trace:
            trace.seek(self._told)
            stacks = trace.read().split("\n\n")
        return [named(stack.splitlines()[3:]) for stack in stacks if stack]  # the first are the library's own


def named(frames):
    """backtrace_symbols(3) knows the functions that a library exports, and none of a program's."""
    ours = [re.match(r".*/penstockd\(\+0x([0-9a-f]+)\)", frame) for frame in frames]
    at = [f"{int(match[1], 16) - 1:#x}" for match in ours if match]
    told = subprocess.run(["addr2line", "-f", "-s", "-e", PENSTOCKD, *at], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, check=True).stdout.split("\n")
    names = iter(zip(told[::2], told[1::2]))
    return [" ".join(next(names)) if match else frame.rpartition("/")[2].partition("[")[0]
            for frame, match in zip(frames, ours)]
