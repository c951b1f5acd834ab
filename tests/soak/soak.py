#!/usr/bin/python3
"""soak SECONDS: mixed load over several chains, reloads, clients that are silent, slow or gone, and descriptor
exhaustion, all at once. Ends with what the clients offered, what was carried and what was lost, by their own
count, and with 1 if anything was lost or has leaked."""

import collections
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from daemon import Daemon, configuration, tunnel, wait_until  # noqa: E402

DESCRIPTORS = 400       # of the daemon
CROWD = 220             # silent connections that use them up
IDLE = 3                # seconds after which the daemon ends a silent connection
PATIENCE = 30           # of a client
MEMORY_BYTES = 8 << 20  # how much more may be resident at the end than after a tenth of the time

# What may be said above the level of info, and when.
EXPECTED = [r"listening", r"ready", r"reloaded", r"repeated \d+ times?: ", r"left out \d+ lines? like: ", r"draining: ", r"stopped",
            r"out of descriptors: ", r".*/penstock.conf:\d+: unknown keyword 'nonsense'", r"not reloaded, nothing was changed: .*nonsense"]


class Count:
    """What happened to connections, by kind of client."""

    def __init__(self):
        self.lock = threading.Lock()
        self.offered, self.carried, self.expected, self.lost = (collections.Counter() for _ in range(4))
        self.stories = []

    def add(self, counter, kind):
        with self.lock:
            counter[kind] += 1

    def lose(self, kind, story):
        with self.lock:
            self.lost[kind] += 1
            self.stories.append(f"{time.strftime('%H:%M:%S')} {kind}: {story}")


class Soak:
    def __init__(self, room, seconds):
        self.room, self.end = room, time.monotonic() + seconds
        self.count = Count()
        self.crowded = threading.Event()  # descriptors are short: being refused is no loss
        self.random = random.Random(1)
        self.context = self._make_certificate()
        ports = {}
        self.daemon = Daemon(room, self.text(0), prefix=["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"])
        for name in ("plain", "limited", "zlib", "tls", "inside", "quiet"):
            ports[name] = self.daemon.address(name)[1]
        self.ports = ports

    def _make_certificate(self):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
                        "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", self.room / "edge.key",
                        "-out", self.room / "edge.pem"], check=True, capture_output=True)
        return ssl.create_default_context(cafile=self.room / "edge.pem")

    def text(self, number):
        """The configuration, of which each reload changes something."""
        return (f'tls "edge" {{ certificate = "edge.pem" key = "edge.key" }}\nzlib "fast" {{ level = {1 + number % 3} }}\n'
                f'limit "all" {{ rate = "{40 + number % 7}MB/s" }}\n'
                'limit "each" { parent = "all" per = "connection" rate = "20MB/s" }\n' +
                configuration(
                    tunnel("plain", "internal:echo", backlog=1000 + number % 5),
                    tunnel("limited", "internal:echo", limit="each"),
                    tunnel("zlib", "internal:deflated", connect_filters="zlib:fast"),
                    tunnel("deflated", "internal:echo", listen="internal:deflated", accept_filters="zlib:fast"),
                    tunnel("tls", "internal:echo", accept_filters="tls:edge"),
                    tunnel("inside", "internal:second"), tunnel("second", "internal:third", listen="internal:second"),
                    tunnel("third", "internal:echo", listen="internal:third"),
                    tunnel("quiet", "internal:echo", timeouts={"idle": f"{IDLE}s"}),
                    workers=2))

    def is_over(self):
        return time.monotonic() >= self.end

    # --- clients

    def connect(self, name):
        sock = socket.create_connection(("127.0.0.1", self.ports[name]), PATIENCE)
        sock.settimeout(PATIENCE)
        return self.context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) if name == "tls" else sock

    def exchange(self, sock, data, pause=0.0):
        """Sends it and reads it back at the same time; fails unless it comes back whole, and nothing else."""
        if isinstance(sock, ssl.SSLSocket):  # two threads may not use one
            got = self.exchange_in_turn(sock, data)
        else:
            got = self.exchange_at_once(sock, data, pause)
        if got != data:
            raise AssertionError(f"{len(got)} bytes came back of {len(data)}, {'those sent' if data.startswith(got) else 'others'}")

    def exchange_in_turn(self, sock, data, step=16384):
        got = bytearray()
        for start in range(0, len(data), step):
            sock.sendall(data[start:start + step])
            while len(got) < min(start + step, len(data)) and (piece := sock.recv(step)):
                got += piece
        return got

    def exchange_at_once(self, sock, data, pause):
        step = 1 if pause else len(data)
        failures = []

        def send():
            try:
                for start in range(0, len(data), step):
                    sock.sendall(data[start:start + step])
                    time.sleep(pause)
                sock.shutdown(socket.SHUT_WR)
            except OSError as failure:
                failures.append(failure)
        sender = threading.Thread(target=send)
        sender.start()
        got = bytearray()
        try:
            while piece := sock.recv(1 << 16):
                got += piece
        finally:
            sender.join()
        if failures:  # it is told to whoever calls first
            raise failures[0]
        return got

    def echo(self, name, pause=0.0):
        """One client after the other."""
        kind = f"slow {name}" if pause else name
        while not self.is_over():
            data = self.random.randbytes(self.random.randrange(1, 60 if pause else 300_000))
            was_crowded = self.crowded.is_set()
            self.count.add(self.count.offered, kind)
            try:
                with self.connect(name) as sock:
                    self.exchange(sock, data, pause)
                self.count.add(self.count.carried, kind)
            except AssertionError as error:
                self.count.lose(kind, f"{error}")
            except OSError as error:
                if was_crowded or self.crowded.is_set():
                    self.count.add(self.count.expected, kind)
                    time.sleep(0.05)
                else:
                    self.count.lose(kind, repr(error))

    def vanish(self, name):
        """Clients that reset in the middle."""
        while not self.is_over():
            try:
                with self.connect(name) as sock:
                    sock.sendall(bytes(self.random.randrange(1, 500_000)))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            except OSError:
                pass
            self.count.add(self.count.expected, "vanished")
            time.sleep(0.02)

    def be_silent(self):
        """Clients that the daemon has to end; no sooner than it says."""
        while not self.is_over():
            was_crowded, begin = self.crowded.is_set(), time.monotonic()
            try:
                with self.connect("quiet") as sock:
                    sock.recv(1)
            except ConnectionResetError:
                pass
            except OSError as error:
                self.count.lose("silent", repr(error))
                continue
            lasted = time.monotonic() - begin
            if lasted > IDLE - 0.1 or was_crowded or self.crowded.is_set():
                self.count.add(self.count.expected, "silent")
            else:
                self.count.lose("silent", f"ended after {lasted:.2f} s")

    def crowd(self):
        """Now and then uses up the daemon's descriptors for a second."""
        while not self.is_over():
            time.sleep(min(10, max(0, self.end - time.monotonic())))
            self.crowded.set()
            crowd = []
            for _ in range(CROWD):
                try:
                    crowd.append(self.connect("plain"))
                except OSError:
                    break
            time.sleep(1)
            for sock in crowd:
                sock.close()
            time.sleep(2.5)  # those who were refused have seen it, and accepting goes on
            self.crowded.clear()

    def reload(self):
        number = 0
        while not self.is_over():
            number += 1
            if number % 10:
                self.daemon.reload(self.text(number))
            else:
                self.daemon.reload(self.text(number) + "nonsense = 1\n", expect="not reloaded")
            time.sleep(0.3)
        self.daemon.reload(self.text(0))
        self.reloads = number + 1

    # --- the whole

    def run(self):
        seconds = self.end - time.monotonic()
        sockets, descriptors = self.daemon.descriptors("socket:"), self.daemon.descriptors()
        jobs = [(self.echo, name) for name in ("plain", "plain", "limited", "zlib", "tls", "inside")]
        jobs += [(self.echo, "plain", 0.05), (self.echo, "zlib", 0.05), (self.vanish, "plain"), (self.vanish, "zlib"),
                 (self.vanish, "inside"), (self.be_silent,), (self.be_silent,), (self.crowd,), (self.reload,)]
        threads = [threading.Thread(target=self.guard, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 10)
        early = self.daemon.resident_bytes()
        for thread in threads:
            thread.join()
        complaints = []
        try:
            self.daemon.wait_sockets(sockets)
            wait_until(lambda: self.daemon.descriptors("socket:") <= sockets, "sockets to be closed")
        except AssertionError as failure:
            complaints.append(str(failure))
        late, pipes = self.daemon.resident_bytes(), self.daemon.descriptors("pipe:")
        kept = self.daemon.descriptors() - pipes
        if kept > descriptors:
            complaints.append(f"{kept - descriptors} descriptors have leaked")
        if late > early + MEMORY_BYTES:
            complaints.append(f"{(late - early) >> 20} MiB more are resident")
        self.daemon.signal(signal.SIGTERM)
        if self.daemon.wait_exit() != 0:
            complaints.append("it did not end well")
        return complaints + self.unaccounted(), early, late

    def guard(self, job, *arguments):
        try:
            job(*arguments)
        except Exception as failure:  # a broken client must not look like an idle one
            self.count.lose(job.__name__, repr(failure))

    def unaccounted(self):
        known = re.compile("|".join(EXPECTED))
        strange = [str(line) for line in self.daemon.lines()
                   if not known.match(line.text) and not (line.level == "info" and re.match(r"connection (ended|refused)", line.text))]
        complaints = [f"a log line that nothing explains: {line}" for line in strange[:20]]
        # Connections are numbered: each has its line, or is counted among those that had no descriptors.
        numbers = [int(line["connection"]) for line in self.daemon.find_log("connection ended") if line.text == "connection ended"]
        told = self.daemon.count_log("connection ended")
        print(f"{max(numbers)} connections, {len(numbers)} lines about their ends, {told - len(numbers)} more counted in others")
        if len(set(numbers)) != len(numbers):
            complaints.append(f"{len(numbers) - len(set(numbers))} connections ended twice")
        if max(numbers) != told:
            complaints.append(f"of {max(numbers)} connections {told} have ended as the log says")
        return complaints


def main():
    seconds = float(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="penstock-soak.") as room:
        os.chmod(room, 0o755)
        soak = Soak(Path(room), seconds)
        complaints, early, late = soak.run()
        count = soak.count
        for kind in sorted(count.offered):
            print(f"{kind:14} offered {count.offered[kind]:8} carried {count.carried[kind]:8} "
                  f"refused while descriptors were short {count.expected[kind]:6} lost {count.lost[kind]:4}")
        print(f"{count.expected['vanished']} clients vanished, {count.expected['silent']} were silent and ended, "
              f"{soak.reloads} reloads, resident {early >> 10} KiB early, {late >> 10} KiB late")
        complaints += count.stories[:20]
        for complaint in complaints:
            print(complaint)
        print(f"offered {count.offered.total()}, carried {count.carried.total()}, lost {count.lost.total()}")
        return 1 if complaints or count.lost.total() else 0


if __name__ == "__main__":
    sys.exit(main())
