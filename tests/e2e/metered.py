"""Clients and targets by the dozen for the tests of limits: who gets how many bytes, and when."""

import selectors
import socket
import struct
import threading
import time

from daemon import DEADLINE

BLOCK = memoryview(bytes(256 * 1024))


class StallMeter:
    """How long this machine lets a thread sleep that wanted a millisecond: what timing tests must allow for."""

    def __enter__(self):
        self.worst = 0.0
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self):
        while not self._over:
            began = time.monotonic()
            time.sleep(0.001)
            self.worst = max(self.worst, time.monotonic() - began - 0.001)

    def __exit__(self, *_):
        self._over = True
        self._thread.join()


class Readers:
    """Reads from all of `sockets`, as fast as it comes, until it is left. Remembers the sum after each look."""

    def __init__(self, sockets):
        self.sockets = list(sockets)
        self.got = [0] * len(self.sockets)
        self.samples = [(time.monotonic(), 0)]
        self.waits = []  # between two receipts of one connection
        self.behind = 0.0  # the longest time without having read all there was
        self._stall = StallMeter()
        self.ended = 0
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stall.__enter__()
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._over = True
        self._thread.join()
        self._stall.__exit__()
        for sock in self.sockets:
            sock.close()

    @property
    def late(self):
        """For how long bytes may have waited to be read, at most, since there are readers."""
        return self.behind + self._stall.worst + 0.002

    def _run(self):
        buffer = memoryview(bytearray(1024 * 1024))
        poll = selectors.DefaultSelector()
        for index, sock in enumerate(self.sockets):
            sock.setblocking(False)
            poll.register(sock, selectors.EVENT_READ, index)
        last = [time.monotonic()] * len(self.sockets)
        total, since = 0, time.monotonic()
        while not self._over and self.ended < len(self.sockets):
            ready = poll.select(0)
            if not ready:
                self.behind = max(self.behind, time.monotonic() - since)
                ready = poll.select(0.05)
                since = time.monotonic()
            for key, _ in ready:
                try:
                    count = key.fileobj.recv_into(buffer)
                except OSError:
                    count = 0
                if not count:
                    poll.unregister(key.fileobj)
                    self.ended += 1
                    continue
                now = time.monotonic()
                self.waits.append(now - last[key.data])
                last[key.data] = now
                self.got[key.data] += count
                total += count
            self.samples.append((time.monotonic(), total))
        poll.close()

    @property
    def total(self):
        return self.samples[-1][1]

    def wait_total(self, least):
        end = time.monotonic() + DEADLINE
        while self.total < least:
            assert time.monotonic() < end, f"only {self.total} of {least} bytes came"
            time.sleep(0.002)

    def at(self, moment):
        """The sum at that moment of the past, between two samples."""
        samples = list(self.samples)
        for (t0, n0), (t1, n1) in zip(samples, samples[1:]):
            if t1 >= moment:
                return n0 + (n1 - n0) * (moment - t0) / (t1 - t0) if t1 > t0 and moment > t0 else n0
        return samples[-1][1]

    def between(self, begin, end):
        return self.at(end) - self.at(begin)

    def longest_pause(self):
        """The longest time in which nothing came."""
        samples = list(self.samples)
        moments = [now for (_, before), (now, total) in zip(samples, samples[1:]) if total > before]
        return max(now - then for then, now in zip(moments, moments[1:]))

    def worst_window(self, rate, until=None):
        """The most bytes that came in any window beyond rate * window; the same for windows that end at
        `until`."""
        level = worst = last = 0.0
        samples = list(self.samples)
        for (t0, n0), (t1, n1) in zip(samples, samples[1:]):
            level = max(0.0, level - rate * (t1 - t0)) + n1 - n0
            worst = max(worst, level)
            if until and t1 <= until:
                last = level
        return worst, last

    def jain(self, before):
        shares = [now - then for now, then in zip(self.got, before)]
        squares = sum(share * share for share in shares)
        return sum(shares) ** 2 / len(shares) / squares if squares else 0.0

    def wait_p99(self):
        waits = sorted(self.waits)
        return waits[len(waits) * 99 // 100] if waits else 0.0


class Writers:
    """Writes to all of `sockets` as fast as they take it, until it is left: then they are reset."""

    def __init__(self, sockets):
        self.sockets = list(sockets)
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._over = True
        self._thread.join()
        for sock in self.sockets:
            reset(sock)

    def _run(self):
        poll = selectors.DefaultSelector()
        for sock in self.sockets:
            sock.setblocking(False)
            poll.register(sock, selectors.EVENT_WRITE)
        while not self._over and poll.get_map():
            for key, _ in poll.select(0.05):
                try:
                    key.fileobj.send(BLOCK)
                except BlockingIOError:
                    pass
                except OSError:
                    poll.unregister(key.fileobj)
        poll.close()


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def dial(address, source=None, send_bytes=None, segment_bytes=None):
    """A connection to the tunnel at that address, from that source address."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(DEADLINE)
    if segment_bytes:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
    if send_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    if source:
        sock.bind((source, 0))
    sock.connect(address)
    return sock


def dial_many(address, count, source=None):
    return [dial(address, source) for _ in range(count)]


class Acceptor:
    """A target whose accepted sockets are the test's."""

    def __init__(self):
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.sock.settimeout(DEADLINE)
        self.text = "127.0.0.1:%d" % self.sock.getsockname()[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def accept(self, count=1):
        accepted = [self.sock.accept()[0] for _ in range(count)]
        for sock in accepted:
            sock.settimeout(DEADLINE)
        return accepted
