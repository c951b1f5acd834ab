"""penstockd under test: configuration text, start, log, signals, what /proc tells, stop."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PENSTOCKD = os.environ.get("PENSTOCKD") or str(ROOT / "build" / "penstockd")
PENSTOCKCTL = str(Path(PENSTOCKD).with_name("penstockctl"))

# No wait lasts longer than this many seconds; sanitizer builds are given more.
DEADLINE = float(os.environ.get("DEADLINE", "15"))



def wait_until(condition, what, deadline=DEADLINE):
    """Returns the first true value of condition(); fails loudly when it never comes."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:g} s in vain for {what}")
        time.sleep(0.004)


def listed(values):
    return "{ " + ", ".join(f'"{value}"' for value in values) + " }"


def _value(value):
    if isinstance(value, (list, tuple)):
        return listed(value)
    return str(value) if isinstance(value, int) else f'"{value}"'


def _rows(rows):
    return "".join(f"        {name} = {_value(value)}\n" for name, value in rows.items())


def tunnel(name, connect, listen="127.0.0.1:0", timeouts=None, match=None, **rows):
    """The text of one tunnel section; `listen` and `connect` may be one address or several."""
    as_list = lambda value: [value] if isinstance(value, str) else value
    rows = {"listen": as_list(listen), "connect": as_list(connect), **rows}
    inner = "".join(f"        {section} {{\n{_rows(values)}        }}\n"
                    for section, values in (("timeouts", timeouts), ("match", match)) if values)
    return f'tunnel "{name}" {{\n{_rows(rows)}{inner}}}\n'


def section(kind, name, **rows):
    """The text of a filter's section."""
    return f'{kind} "{name}" {{\n{_rows(rows)}}}\n'


def configuration(*tunnels, workers=1, timeouts=None, log=None, **rows):
    """The text of a whole file."""
    text = "".join(f"{name} = {_value(value)}\n" for name, value in {"workers": workers, **rows}.items())
    for section, values in (("timeouts", timeouts), ("log", log)):
        if values:
            text += f"{section} {{\n{_rows(values)}}}\n"
    return text + "".join(tunnels)


class LogLine:
    """One line of the text log: `2026-11-24T03:28:17.123Z info what happened name=value …`."""

    SHAPE = re.compile(
        r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<level>error|warning|notice|info|debug) "
        r'(?P<text>.*?)(?P<fields>(?: [a-z_]+=(?:"(?:[^"\\]|\\.)*"|[^\s"]*))*)'
    )
    FIELD = re.compile(r' ([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)')

    def __init__(self, line):
        shape = self.SHAPE.fullmatch(line)
        self.line = line
        self.is_ours = shape is not None
        self.level, self.text, self.fields = "", line, {}
        if shape:
            self.level, self.text = shape["level"], shape["text"]
            self.fields = {name: value.strip('"') for name, value in self.FIELD.findall(shape["fields"])}

    def __getitem__(self, name):
        return self.fields[name]

    def get(self, name, default=None):
        return self.fields.get(name, default)

    def matches(self, text, fields):
        return self.text.startswith(text) and all(self.fields.get(name) == str(value) for name, value in fields.items())

    def __repr__(self):
        return self.line


WAITS = {"moving", "choice", "resolver", "connect", "handshake", "near readable", "near writable", "far readable",
         "far writable", "limit", "turn"}


def shares(text):
    """{"near readable": 97.1, …} of the log's list."""
    return {name: float(share) for name, share in re.findall(r"([^,]+?) ([\d.]+)%", text)}


def expect_shares(line):
    """A closing line says of each flow what it did and waited for, all of its time."""
    for flow in ("up_wait", "down_wait"):
        found = shares(line[flow])
        assert set(found) <= WAITS, line
        assert 99 <= sum(found.values()) <= 101, line


def parse_address(text):
    """What socket.connect wants: (host, port), or a path (abstract ones begin with a zero byte)."""
    if text.startswith("unix:"):
        path = text[len("unix:"):]
        return "\0" + path[1:] if path.startswith("@") else path
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def before_others(daemon):
    """Where we may, the daemon and the test get processors before whatever else this machine does: what is
    measured is what the daemon does, not how the kernel shares processors."""
    with contextlib.suppress(PermissionError):
        for task in [*os.listdir(f"/proc/{daemon.pid}/task"), threading.get_native_id()]:
            os.sched_setscheduler(int(task), os.SCHED_RR, os.sched_param(5))
    return daemon


class Daemon:
    """One penstockd. Its files live in `directory`; its log is read from the file that is its stderr."""

    def __init__(self, directory, text, arguments=(), prefix=(), stderr=None, wait=True):
        directory.mkdir(parents=True, exist_ok=True)
        self.config = directory / "penstock.conf"
        self.log_file = directory / "stderr"
        self.write(text)
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                [*prefix, PENSTOCKD, "-c", str(self.config), *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr or log)
        self.pid = self.process.pid
        self._lines, self._offset, self._reading = [], 0, threading.Lock()
        self.status = None
        if wait:
            self.wait_log("ready", alive=True)

    # --- configuration and signals

    def write(self, text):
        """Replaces the file at once, as an editor does."""
        self.text = text
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.config)

    def signal(self, number):
        os.kill(self.pid, number)

    def reload(self, text=None, expect="reloaded"):
        """Sends HUP and waits for its outcome: a line that begins with `expect`."""
        if text is not None:
            self.write(text)
        before = self.count_log(expect)
        self.signal(signal.SIGHUP)
        wait_until(lambda: self.count_log(expect) > before, f"a log line {expect!r}")

    # --- log

    def lines(self):
        with self._reading, open(self.log_file, "rb") as log:
            log.seek(self._offset)
            fresh = log.read()
            whole = fresh[:fresh.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._lines += [LogLine(line) for line in whole.decode("utf-8", "replace").splitlines()]
            return self._lines

    def find_log(self, text, since=0, **fields):
        return [line for line in self.lines()[since:] if line.matches(text, fields)]

    def count_log(self, text):
        """How often that was said: what is said again and again within a second is only counted by the daemon."""
        counted = r"repeated (\d+) times?: |left out (\d+) lines? like: "
        told = [re.match(rf"(?:{counted})?{re.escape(text)}", line.text) for line in self.lines()]
        return sum(int(match[1] or match[2] or 1) for match in told if match)

    def wait_log(self, text, count=1, since=0, alive=False, deadline=DEADLINE, **fields):
        """The first line (or, with count, the list of lines) with that text and those fields."""
        def found():
            lines = self.find_log(text, since, **fields)
            if alive and len(lines) < count and self.process.poll() is not None:
                raise AssertionError(f"penstockd ended with {self.process.returncode}:\n{self.log()}")
            return len(lines) >= count and lines
        lines = wait_until(found, f"{count} log line(s) {text!r} {fields or ''}", deadline)
        return lines[0] if count == 1 else lines

    def ended(self, tunnel, count=1, deadline=DEADLINE, **fields):
        """The closing line(s) of that tunnel's connection(s)."""
        return self.wait_log("connection ended", count, deadline=deadline, tunnel=tunnel, **fields)

    def log(self):
        return self.log_file.read_text(errors="replace")

    def addresses(self, tunnel, since=0):
        return [parse_address(line["address"]) for line in self.find_log("listening", since, tunnel=tunnel)]

    def address(self, tunnel):
        """Where that tunnel listens, for the last time it said so."""
        return self.addresses(tunnel)[-1]

    # --- what /proc tells

    def proc(self, name):
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def descriptors(self, kind=""):
        """How many descriptors are open; kind "socket:" or "pipe:" counts only those."""
        count = 0
        for entry in os.scandir(f"/proc/{self.pid}/fd"):
            try:
                count += os.readlink(entry.path).startswith(kind)
            except FileNotFoundError:
                pass
        return count

    def wait_sockets(self, most):
        """Until at most so many sockets are open: those of ended connections must go away."""
        wait_until(lambda: self.descriptors("socket:") <= most, f"all but {most} sockets to be closed")

    def cpu_seconds(self):
        """Of all its threads, to the microsecond: by the clock of clock_getcpuclockid(3)."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def resident_bytes(self):
        return int(re.search(r"VmRSS:\s+(\d+) kB", self.proc("status"))[1]) * 1024

    # --- end

    def is_running(self):
        return self.process.poll() is None

    def wait_exit(self, deadline=DEADLINE):
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"penstockd still runs after {deadline:g} s") from None

    def stop(self):
        """Ends it for good, at once. Complains about a crash, a hang or a sanitizer's report."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(0.2)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("penstockd did not stop at the second TERM") from None
        for mark in ("Sanitizer", "runtime error:", "Assertion"):
            assert mark not in self.log(), f"penstockd's stderr holds {mark!r}:\n{self.log()}"
        for line in self.find_log("connection ended"):
            expect_shares(line)
        assert self.process.returncode >= 0, f"penstockd was killed by signal {-self.process.returncode}"


def preloaded(directory, source):
    """The prefix of a daemon that has some of its library calls answered by this C source."""
    file, library = directory / "preloaded.c", directory / "preloaded.so"
    file.write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, file, "-ldl"], check=True)
    return ["env", f"LD_PRELOAD={library}"]


def run_penstockd(*arguments, cwd=None, deadline=DEADLINE):
    """Runs penstockd to its end: --check, --keywords, a start that must fail."""
    return subprocess.run([PENSTOCKD, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          errors="replace", timeout=deadline, check=False)


def check(path, *arguments):
    return run_penstockd("--check", "-c", path, *arguments)


def json_lines(text):
    """What each whole line of a JSON log says."""
    return [json.loads(line) for line in text.split("\n")[:-1]]
