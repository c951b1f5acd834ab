"""Processes of the bench: started on a chosen CPU, ended with it, and asked what they used."""

import ctypes
import os
import random
import signal
import socket
import subprocess
import time

STOP_SECONDS = 10


class BenchError(Exception):
    """A measurement that could not be made; the text says why."""


class Processes:
    """All that was started and must not outlive the bench."""

    def __init__(self, realtime=False):
        self.running = []
        self.realtime = realtime

    def start(self, command, cpus, uid=None, **popen):
        """Popen in a session of its own (Ctrl-C reaches only the bench), ended by the kernel
        should the bench be killed. uid is obeyed when root."""
        prefix = ["chrt", "--rr", "1"] if self.realtime else []
        prefix += ["taskset", "-c", cpus, "setpriv", "--pdeathsig", "TERM"]
        if uid and os.getuid() == 0:
            prefix += ["--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
        process = subprocess.Popen(prefix + command, start_new_session=True, **popen)
        self.running.append(process)
        return process

    def stop(self, process):
        """Ends the whole session of a process: TERM, and KILL when that is not obeyed."""
        for what in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, what)
            except ProcessLookupError:
                pass
            try:
                process.wait(STOP_SECONDS if what == signal.SIGTERM else None)
                break
            except subprocess.TimeoutExpired:
                continue
        # Children that a TERM leaves alone, as socat's do.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
        if process in self.running:
            self.running.remove(process)

    def stop_all(self):
        for process in list(self.running):
            self.stop(process)


def wait_until(condition, seconds, what):
    """Returns the condition's first true value; BenchError when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise BenchError(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def _stat(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def family(roots):
    """The given processes that live, and all that descend from them."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(_stat(name)[1])
            except (FileNotFoundError, ProcessLookupError):
                pass
    found = [pid for pid in roots if pid in parents]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_seconds(roots):
    """What the processes used, in user and system mode, with all threads and dead children.
    Live ones to the nanosecond; reaped children in clock ticks (only socat has any)."""
    used = 0.0
    for pid in family(roots):
        try:
            fields = _stat(pid)
            # The CPU clock of another process: clock_getcpuclockid(3).
            used += time.clock_gettime((~pid << 3) | 2)
            used += (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
        except (OSError, FileNotFoundError):
            pass
    return used


def pin(roots, cpus):
    """Puts programs back that choose a CPU of their own: hitch's worker takes the generator's."""
    for pid in family(roots):
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(task), [int(cpu) for cpu in cpus.split(",")])
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended, as a child of socat's does after a connection


def settle(roots, seconds=20):
    """Waits until the processes have done nothing worth mentioning for a quarter of a second."""

    def is_quiet():
        before = cpu_seconds(roots)
        time.sleep(0.25)
        return cpu_seconds(roots) - before < 0.001

    wait_until(is_quiet, seconds, "coming to rest")


def anonymous_kib(roots):
    """Resident anonymous memory of all the processes."""
    kib = 0
    for pid in family(roots):
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            kib += sum(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))
    return kib


_given_ports = set()


def free_port():
    """A port nobody listens on, below the range from which the kernel numbers connections."""
    while True:
        port = random.randrange(20000, 32000)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port


def wait_listening(port, is_alive):
    def answers():
        if not is_alive():
            raise BenchError("it ended at once")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            return False

    wait_until(answers, 10, f"listening on port {port}")


def _lines(path):
    with open(path, encoding="ascii") as file:
        return file.read().splitlines()


def tcp_memory_pressures():
    """How often the kernel ran short of TCP memory so far: then it is measured, not the proxy."""
    for line in _lines("/proc/net/netstat"):
        fields = line.split()
        if fields[0] == "TcpExt:" and not fields[1].isdigit():
            names = fields
        elif fields[0] == "TcpExt:":
            return int(dict(zip(names, fields))["TCPMemoryPressures"])
    return 0


TCP_MEMORY = "/proc/sys/net/ipv4/tcp_mem"  # of the whole machine: other network namespaces do not show it
CONGESTION = "/proc/sys/net/ipv4/tcp_congestion_control"
CLONE_NEWNET = 0x40000000
least_tcp_memory = int(_lines(TCP_MEMORY)[0].split()[0])


def congestion():
    return _lines(CONGESTION)[0]


def enter_network():
    """Into a network of our own, when root: other programs' packets do not pass, and congestion control is not
    what the machine happens to use. BBR spaces out what a slow connection sends, packet by packet, on timers
    that run where the proxy does. Returns words for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() != 0 or libc.unshare(CLONE_NEWNET) != 0:
        return f"the machine's loopback, congestion control {congestion()}"
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name in ("cubic", "reno"):  # the kernel may not allow all of them here
        try:
            with open(CONGESTION, "w", encoding="ascii") as file:
                file.write(name)
            break
        except OSError:
            continue
    return f"the loopback of a network namespace, congestion control {congestion()}"


def wait_tcp_memory(seconds=120):
    """Waits until other programs' sockets leave the kernel room to let buffers grow."""
    def is_free():
        tcp = next(line for line in _lines("/proc/net/sockstat") if line.startswith("TCP:"))
        return int(tcp.split()[-1]) < least_tcp_memory / 4

    wait_until(is_free, seconds, "other programs' sockets giving TCP memory back")
