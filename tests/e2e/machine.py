"""A real systemd as PID 1 in namespaces of its own, over a throw-away overlay of this machine, with penstock
installed by `make install`. It boots in half a second, needs root and changes nothing outside."""

import concurrent.futures
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from daemon import DEADLINE, PENSTOCKD, ROOT, wait_until

CLEAN = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TERM=dumb",
         "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"]
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


def install(directory):
    """What `make install` gives, under `directory`, with the penstockd that is under test."""
    subprocess.run(["make", "--silent", "-C", ROOT, "install", f"DESTDIR={directory}", "prefix=/usr"], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.copy(PENSTOCKD, directory / "usr/sbin/penstockd")


class Machine:
    """`install(directory)` puts there what the machine shall have on top of this one."""

    def __init__(self, install=install):
        self.room = Path(tempfile.mkdtemp(prefix="penstock-room."))
        with tempfile.TemporaryDirectory(prefix="penstock-install.") as installed:
            os.chmod(installed, 0o755)  # it becomes that of /
            install(Path(installed))
            limits = Path(installed, "etc/systemd/journald.conf.d/penstock.conf")
            limits.parent.mkdir(parents=True)
            limits.write_text("[Journal]\nRateLimitIntervalSec=0\n")
            try:
                self._boot(installed)
            except BaseException:
                self.stop()
                raise
        self.root = Path(f"/proc/{self.init}/root")
        self._inside = concurrent.futures.ThreadPoolExecutor(16, initializer=self._enter_network)

    def _boot(self, installed):
        # Whatever ends this process, ends unshare, and --kill-child all that runs inside.
        self.launcher = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork",
             "--kill-child=KILL", "--uts", "--ipc", "--net", ROOT / "tests/e2e/boot", self.room, installed],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")

        def booted():
            if self.launcher.poll() is not None:
                raise AssertionError(f"systemd did not boot:\n{self.launcher.stderr.read().decode()}")
            self.init = int(children.read_text().split()[0]) if children.read_text().split() else 0
            if not self.init or Path(f"/proc/{self.init}/comm").read_text() != "systemd\n":
                return False
            return Path(f"/proc/{self.init}/root/run/systemd/private").exists()
        wait_until(booted, "systemd to boot")
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def _enter_network(self):
        descriptor = os.open(f"/proc/{self.init}/ns/net", os.O_RDONLY)
        assert LIBC.setns(descriptor, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(descriptor)

    # --- doing things inside

    def run(self, *command, check=True):
        """Runs a command inside; its output, both streams. With check, it must succeed."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--", *CLEAN,
             *map(str, command)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=4 * DEADLINE, check=False)
        if check and done.returncode:
            said = self.run("journalctl", "--quiet", "-n", "20", "--no-hostname", check=False)
            raise AssertionError(f"{' '.join(map(str, command))} gave {done.returncode}:\n{done.stdout}\n{said}")
        self.status = done.returncode
        return done.stdout.strip()

    def within(self, function, *arguments):
        """Calls it in the network inside: sockets that it opens stay there."""
        return self._inside.submit(function, *arguments).result()

    def begin_within(self, function, *arguments):
        return self._inside.submit(function, *arguments)

    def write(self, path, text, mode=0o644):
        path = self.root / path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    # --- units

    def systemctl(self, *arguments, **options):
        return self.run("systemctl", *arguments, **options)

    def show(self, name, unit="penstock.service"):
        return self.run("systemctl", "show", "-P", name, unit)

    def drop_in(self, text, unit="penstock.service"):
        self.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
        self.systemctl("daemon-reload")

    def pid(self):
        """The daemon's, inside and as it is seen from outside; (0, 0) if it does not run."""
        inside = int(self.show("MainPID"))
        if not inside:
            return 0, 0
        for entry in Path("/proc").glob("[0-9]*/status"):
            try:
                text = entry.read_text()
            except OSError:
                continue
            ids = next((line.split()[1:] for line in text.splitlines() if line.startswith("NSpid:")), [])
            if len(ids) > 1 and ids[-1] == str(inside) and self._is_inside(entry.parent):
                return inside, int(ids[0])
        raise AssertionError(f"process {inside} is not to be found")

    def _is_inside(self, process):
        try:
            return os.readlink(process / "ns/pid") == os.readlink(f"/proc/{self.init}/ns/pid")
        except OSError:
            return False

    def journal(self, unit="penstock.service", since=None):
        """Entries of the journal as dicts."""
        self.run("journalctl", "--sync")
        arguments = ["--after-cursor", since] if since else []
        text = self.run("journalctl", "--quiet", "--output=json", "--unit", unit, *arguments)
        return [json.loads(line) for line in text.splitlines()]

    def messages(self, **options):
        return [entry["MESSAGE"] for entry in self.journal(**options) if isinstance(entry["MESSAGE"], str)]

    def wait_message(self, text, **options):
        return wait_until(lambda: [line for line in self.messages(**options) if text in line], f"{text!r} in the journal")[0]

    def cursor(self):
        return self.run("journalctl", "--quiet", "-n", "0", "--show-cursor").rpartition("cursor: ")[2]

    def reset(self):
        """No penstock runs, no drop-in is left, as after the boot."""
        self.systemctl("kill", "-s", "KILL", "penstock.service", check=False)  # a failed test may have left a drain
        self.systemctl("stop", "penstock.socket", "penstock.service", check=False)
        self.systemctl("reset-failed", check=False)
        for unit in ("penstock.service", "penstock.socket"):
            shutil.rmtree(self.root / f"etc/systemd/system/{unit}.d", ignore_errors=True)
        self.systemctl("daemon-reload")

    # --- end

    def stop(self):
        if getattr(self, "_inside", None):
            self._inside.shutdown()
        launcher = getattr(self, "launcher", None)
        if launcher:
            if launcher.poll() is None and getattr(self, "init", 0):
                os.kill(self.init, signal.SIGRTMIN + 4)  # poweroff, systemd(1)
            try:
                launcher.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                launcher.kill()
                launcher.wait()
            launcher.stderr.close()
        self._remove_groups()
        self.room.rmdir()

    def _remove_groups(self):
        tree = subprocess.run(["findmnt", "-nro", "TARGET", "-t", "cgroup2"], capture_output=True, text=True, check=False)
        for line in tree.stdout.split()[:1]:
            top = Path(line, f"penstock-{self.room.name.rpartition('.')[2]}")
            if top.is_dir():
                for directory, _, _ in os.walk(top, topdown=False):
                    os.rmdir(directory)


class StoppedThread:
    """One thread of a process, stopped as if it hung. To be used by one thread of ours: that is the tracer."""

    SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
    WALL = 0x40000000

    def __init__(self, process, name):
        find = lambda: next((int(task.name) for task in Path(f"/proc/{process}/task").iterdir()
                             if (task / "comm").read_text() == f"{name}\n"), None)
        self.thread = wait_until(find, f"a thread {name} of process {process}")
        self._trace(self.SEIZE)
        self._trace(self.INTERRUPT)
        os.waitpid(self.thread, self.WALL)

    def _trace(self, request):
        if LIBC.ptrace(request, self.thread, None, None) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def go_on(self):
        self._trace(self.DETACH)

    def wait_end(self):
        """Until somebody kills the process. Its end is for the tracer to see first."""
        while os.WIFSTOPPED(os.waitpid(self.thread, self.WALL)[1]):
            pass
