"""The measurements. Each takes the bench and one proxy and returns a dictionary of numbers; CELLS
says which proxies it is made for and which numbers are the columns of its table."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import zlib
from functools import partial

import zstandard

from processes import BenchError, cpu_seconds, family, settle, wait_until
from proxies import GENERATOR_CPU

HERE = pathlib.Path(__file__).parent
GIB = 1 << 30
MIB = 1 << 20


@dataclasses.dataclass
class Size:
    """How much is measured."""

    rounds: int = 5
    attempts: int = 2  # at one sample, while other programs disturb it
    bulk_seconds: float = 2.0
    bulk_bytes: int = 4 * GIB
    tls_bytes: int = GIB
    packed_bytes: int = GIB // 4
    ping_seconds: float = 2.0
    short_seconds: float = 5.0
    short_count: int = 20000
    idle_connections: int = 4000
    blocked_connections: int = 200
    traced_pings: int = 1000
    traced_connections: int = 500
    limit_seconds: float = 5.0
    far_pairs: int = 3
    crowd_connections: int = 9000
    share_connections: int = 1000


QUICK = Size(limit_seconds=1.5, rounds=2, attempts=1, bulk_seconds=0.7, bulk_bytes=GIB, tls_bytes=GIB // 4, packed_bytes=GIB // 16,
             ping_seconds=0.7,
             short_seconds=1.5, short_count=5000, idle_connections=1000, traced_pings=300,
             traced_connections=100)


def _load_command(bench, command, port, options):
    words = [bench.load, command, str(port)]
    for name, value in options.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


def start_load(bench, command, port, reach=None, **options):
    """`reach` may put something in front of the command."""
    words = _load_command(bench, command, port, options)
    return bench.processes.start(reach(words) if reach else words, GENERATOR_CPU, text=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE)


def finish_load(bench, process, text=None, seconds=90):
    try:
        output, errors = process.communicate(text, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BenchError("the load generator did not end") from None
    finally:
        bench.processes.stop(process)
    if process.returncode != 0:
        raise BenchError(errors.strip().split("\n")[0] or f"load ended with {process.returncode}")
    return output


def wait_word(process, word):
    line = process.stdout.readline().strip()
    if line != word:
        raise BenchError(process.stderr.read().strip() or f"load said '{line}', not '{word}'")


def machine_cpu_seconds():
    """CPU time that was not idle, of all CPUs, stolen time included."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def timed_load(bench, proxy, command, port, **options):
    """Runs the load generator to its end. Returns its result, with what proxy and generator (client
    and target together) used meanwhile, and all other programs."""
    machine = machine_cpu_seconds()
    proxy_cpu_s, target_cpu_s = proxy.cpu_seconds(), cpu_seconds([bench.target.pid])
    process = start_load(bench, command, port, **options)
    result = json.loads(finish_load(bench, process))
    machine = machine_cpu_seconds() - machine
    proxy.settle()
    proxy_cpu_s = proxy.cpu_seconds() - proxy_cpu_s
    generator_cpu_s = cpu_seconds([bench.target.pid]) - target_cpu_s + result["client_cpu_s"]
    result["proxy_cpu_s"] = proxy_cpu_s
    result["busy"] = {
        "proxy_busy": proxy_cpu_s / result["elapsed_s"],
        "generator_busy": generator_cpu_s / result["elapsed_s"],
        "others_busy": max(0, machine - proxy_cpu_s - generator_cpu_s) / result["elapsed_s"],
    }
    return result


def measure_bulk(bench, proxy, direction, connections, **options):
    target = {"up": "sink", "down": "source"}[direction]
    got = timed_load(bench, proxy, direction, proxy.ports[target], connections=connections,
                      seconds=bench.size.bulk_seconds, bytes=bench.size.bulk_bytes, **options)
    return {"mib_s": got["bytes"] / MIB / got["elapsed_s"],
            "cpu_s_gib": got["proxy_cpu_s"] / got["bytes"] * GIB,
            **got["busy"]}


def measure_tls_bulk(bench, proxy, direction, connections, version="tls"):
    target = {"up": "intake", "down": "source"}[direction]
    got = timed_load(bench, proxy, direction, proxy.ports[target], connections=connections,
                      bytes=bench.size.tls_bytes, **{version: True})
    return {"mib_s": got["bytes"] / MIB / got["elapsed_s"],
            "cpu_s_gib": got["proxy_cpu_s"] / got["bytes"] * GIB,
            **got["busy"]}


def measure_short(bench, proxy, connections=32, **options):
    got = timed_load(bench, proxy, "short", proxy.ports["answer"], connections=connections,
                      seconds=bench.size.short_seconds, count=bench.size.short_count, **options)
    if got["failed"]:
        raise BenchError(f"{got['failed']} of {got['count']} short connections failed")
    if got["resumed"] > (got["count"] if options.get("resume") else 0) or \
            options.get("resume") and got["resumed"] < 0.9 * got["count"]:
        raise BenchError(f"{got['resumed']} of {got['count']} TLS sessions were resumed")
    return {"per_s": got["count"] / got["elapsed_s"],
            "cpu_us": got["proxy_cpu_s"] / got["count"] * 1e6,
            "p50_us": got["p50_us"], "p99_us": got["p99_us"],
            **got["busy"]}


def measure_ping(bench, proxy, connections, **options):
    got = timed_load(bench, proxy, "ping", proxy.ports["echo"], connections=connections,
                      seconds=bench.size.ping_seconds, **options)
    return {"p50_us": got["p50_us"], "p99_us": got["p99_us"],
            "per_s": got["count"] / got["elapsed_s"],
            "cpu_us": got["proxy_cpu_s"] / got["count"] * 1e6,
            **got["busy"]}


def measure_blocked(bench, proxy):
    """One flow down beside others whose clients never read."""
    holder = start_load(bench, "hold", proxy.ports["source"], narrow=True,
                         connections=bench.size.blocked_connections)
    try:
        wait_word(holder, "ready")
        settle(proxy.pids() + [bench.target.pid])
        before = proxy.cpu_seconds()
        time.sleep(1)
        blocked_ms_s = (proxy.cpu_seconds() - before) * 1e3
        result = measure_bulk(bench, proxy, "down", 1)
    finally:
        bench.processes.stop(holder)
    settle(proxy.pids() + [bench.target.pid])
    return dict(result, blocked_ms_s=blocked_ms_s)


def measure_idle(bench, proxy, **more):
    """Anonymous memory of one idle connection: never used, and after one ping each."""
    result = {}
    for name, options in (("silent_kib", more), ("spoke_kib", {"speak": True, **more})):
        proxy.start(bench)
        try:
            # What the first connection makes the program allocate for all is not counted.
            finish_load(bench, start_load(bench, "hold", proxy.ports["echo"], speak=True, **more))
            settle(proxy.pids())
            before = proxy.anonymous_kib()
            holder = start_load(bench, "hold", proxy.ports["echo"],
                                 connections=bench.size.idle_connections, **options)
            wait_word(holder, "ready")
            time.sleep(12)  # until they are idle: penstockd keeps an account of the last ten seconds
            settle(proxy.pids())
            result[name] = (proxy.anonymous_kib() - before) / bench.size.idle_connections
            finish_load(bench, holder)
        finally:
            proxy.stop()
    return result


def _is_traced(pid):
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status", encoding="ascii", errors="replace") as file:
            if "TracerPid:\t0\n" in file.read():
                return False
    return True


def _traced(bench, proxy, action):
    """System calls of all the proxy's threads while action() runs, by name."""
    output = bench.make_directory("strace") / "counts"
    pids = family(proxy.pids())
    command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(output)]
    for pid in pids:
        command += ["-p", str(pid)]
    tracer = bench.processes.start(command, GENERATOR_CPU, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        try:
            wait_until(lambda: tracer.poll() is not None or all(map(_is_traced, pids)), 10,
                       "strace attached")
            if tracer.poll() is not None:
                raise BenchError("strace: " + tracer.stderr.read().strip())
            action()
            settle(proxy.pids())
        finally:
            if tracer.poll() is None:
                tracer.send_signal(signal.SIGINT)
                tracer.wait(10)
    finally:
        bench.processes.stop(tracer)
    rows = re.findall(r"^\s*(\d+)\s+(\w+)$", output.read_text(), re.MULTILINE)
    return {name: int(calls) for calls, name in rows if name != "total"}


def measure_calls(bench, proxy, **options):
    """System calls by name, for each ping and for each short connection, one at a time."""
    proxy.start(bench)
    try:
        pings = bench.size.traced_pings
        process = start_load(bench, "ping", proxy.ports["echo"], gate=True, count=pings,
                              seconds=60, **options)

        def ping():
            process.stdin.write("\n")
            process.stdin.flush()
            wait_word(process, "done")

        wait_word(process, "ready")
        ping_calls = _traced(bench, proxy, ping)
        finish_load(bench, process, "\n")

        count = bench.size.traced_connections

        def connect():
            got = json.loads(finish_load(bench, start_load(
                bench, "short", proxy.ports["answer"], count=count, seconds=60, **options)))
            if got["failed"] or got["count"] != count:
                raise BenchError(f"{got['failed']} of {got['count']} short connections failed")

        short_calls = _traced(bench, proxy, connect)
    finally:
        proxy.stop()
    return {"ping": {name: calls / pings for name, calls in ping_calls.items()},
            "short": {name: calls / count for name, calls in short_calls.items()}}


def measure_workers(bench, proxy):
    short = measure_short(bench, proxy)
    up = measure_bulk(bench, proxy, "up", 16)
    down = measure_bulk(bench, proxy, "down", 16)
    return {"per_s": short["per_s"], "cpu_us": short["cpu_us"],
            "up_mib_s": up["mib_s"], "up_cpu_s_gib": up["cpu_s_gib"],
            "down_mib_s": down["mib_s"], "down_cpu_s_gib": down["cpu_s_gib"],
            "others_busy": max(part["others_busy"] for part in (short, up, down))}


def corpus():
    """The text that is packed: this program's own source."""
    paths = sorted(path for kind in ("src/**/*.c", "src/**/*.h", "man/*") for path in HERE.parent.glob(kind))
    return b"".join(path.read_bytes() for path in paths)


def _bare_cpu_seconds(codec, level, data, times):
    """What the library alone takes to pack and unpack it so often, in one stream."""
    if codec == "zlib":
        packer, unpacker = zlib.compressobj(level), zlib.decompressobj()
    else:
        packer = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters.from_level(
            level, window_log=18, write_checksum=1)).compressobj()  # the filter's defaults
        unpacker = zstandard.ZstdDecompressor().decompressobj()
    began = time.process_time()
    for _ in range(times):
        for at in range(0, len(data), 256 << 10):
            unpacker.decompress(packer.compress(data[at:at + (256 << 10)]))
    unpacker.decompress(packer.flush())
    return time.process_time() - began


def measure_packing(bench, proxy):
    """The corpus again and again, up over one connection; beside it the bare library."""
    data = corpus()
    times = max(1, bench.size.packed_bytes // len(data))
    used, began = proxy.cpu_seconds(), time.monotonic()
    with socket.create_connection(("127.0.0.1", proxy.ports["sink"]), 60) as client:
        for _ in range(times):
            client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass
    elapsed = time.monotonic() - began
    settle(proxy.pids())
    gib = times * len(data) / GIB
    bare = _bare_cpu_seconds(proxy.codec, proxy.level, data, times) if proxy.codec else 0
    return {"mib_s": gib * 1024 / elapsed, "cpu_s_gib": (proxy.cpu_seconds() - used) / gib,
            "bare_s_gib": bare / gib}


@dataclasses.dataclass
class Cell:
    """One table. Timed cells are measured in rounds, each proxy in turn, on proxies that stay up;
    the others once, starting and stopping what they need."""

    name: str
    title: str
    measure: object
    columns: tuple  # (key, heading, format)
    without: tuple = ()  # proxies for which it makes no sense
    timed: bool = True
    on: str = "plain"  # which family of proxies: plain, workers, tls, both or pairs
    note: str = ""


_BUSY = (("proxy_busy", "proxy busy", "{:.0%}"), ("generator_busy", "generator busy", "{:.0%}"))
_BULK = (("mib_s", "MiB/s", "{:.0f}"), ("cpu_s_gib", "CPU s for each GiB", "{:.3f}")) + _BUSY
_PING = (("p50_us", "p50 µs", "{:.1f}"), ("p99_us", "p99 µs", "{:.1f}"),
         ("per_s", "pings a second", "{:.0f}"), ("cpu_us", "CPU µs each", "{:.2f}")) + _BUSY
_SHORT = (("per_s", "connections a second", "{:.0f}"), ("cpu_us", "CPU µs each", "{:.1f}"),
          ("p50_us", "p50 µs", "{:.0f}"), ("p99_us", "p99 µs", "{:.0f}")) + _BUSY
_WORKERS = (("per_s", "connections a second", "{:.0f}"), ("cpu_us", "CPU µs each", "{:.1f}"),
            ("up_mib_s", "16 up MiB/s", "{:.0f}"), ("up_cpu_s_gib", "CPU s/GiB", "{:.3f}"),
            ("down_mib_s", "16 down MiB/s", "{:.0f}"), ("down_cpu_s_gib", "CPU s/GiB", "{:.3f}"))
_NO_SPLICE = ("haproxysplice",)  # its setting changes nothing there
_FORKLESS = ("haproxysplice", "socat")

CELLS = [
    Cell("up1", "Bulk up, 1 connection", partial(measure_bulk, direction="up", connections=1),
         _BULK),
    Cell("up16", "Bulk up, 16 connections", partial(measure_bulk, direction="up", connections=16),
         _BULK),
    Cell("down1", "Bulk down, 1 connection", partial(measure_bulk, direction="down", connections=1),
         _BULK),
    Cell("down16", "Bulk down, 16 connections",
         partial(measure_bulk, direction="down", connections=16), _BULK),
    Cell("small", "Bulk up, 1 connection whose client writes 64 KiB at a time",
         partial(measure_bulk, direction="up", connections=1, block=64 << 10), _BULK, _NO_SPLICE,
         note="In the four cells above, senders write 1 MiB at a time."),
    Cell("short", "Short connections, 32 at a time", measure_short, _SHORT, _NO_SPLICE),
    Cell("ping1", "64-byte ping, 1 connection", partial(measure_ping, connections=1), _PING,
         _NO_SPLICE),
    Cell("ping64", "64-byte ping, 64 connections", partial(measure_ping, connections=64), _PING,
         _FORKLESS),
    Cell("blocked", "One flow down beside {blocked_connections} blocked ones", measure_blocked,
         _BULK[:2] + (("blocked_ms_s", "CPU ms a second, blocked ones alone", "{:.2f}"),),
         _FORKLESS),
    Cell("calls", "System calls", measure_calls, (), _FORKLESS, timed=False,
         note="All threads of the proxy, counted by strace, one ping or connection at a time. "
              "A ping is two messages."),
    Cell("idle", "Resident KiB of one idle connection out of {idle_connections}", measure_idle,
         (("silent_kib", "never spoke", "{:.2f}"), ("spoke_kib", "after one ping", "{:.2f}")),
         _FORKLESS, timed=False),
    Cell("workers", "Two workers beside one", measure_workers, _WORKERS, on="workers",
         note="Here the proxy may run on every CPU, the generator's included. Short connections "
              "32 at a time, bulk on 16 connections."),
] + [
    Cell(f"{version}-{direction}{connections}",
         f"{title}: bulk {direction}, {connections} connection{'s' * (connections > 1)}",
         partial(measure_tls_bulk, direction=direction, connections=connections, version=version),
         _BULK, on="tls")
    for version, title in (("tls", "TLS 1.3"), ("tls12", "TLS 1.2"))
    for direction in ("up", "down") for connections in (1, 16)
] + [
    Cell(f"{version}-full", f"{title}: full handshakes, 32 at a time", partial(measure_short, **{version: True}),
         _SHORT, on="tls")
    for version, title in (("tls", "TLS 1.3"), ("tls12", "TLS 1.2"))
] + [
    Cell(f"{version}-resumed", f"{title}: resumed handshakes, 32 at a time",
         partial(measure_short, resume=True, **{version: True}), _SHORT, on="tls")
    for version, title in (("tls", "TLS 1.3"), ("tls12", "TLS 1.2"))
] + [
    Cell("tls-ping1", "TLS 1.3: 64-byte ping, 1 connection",
         partial(measure_ping, connections=1, tls=True), _PING, on="tls"),
    Cell("tls-ping64", "TLS 1.3: 64-byte ping, 64 connections",
         partial(measure_ping, connections=64, tls=True), _PING, on="tls"),
    Cell("tls-calls", "TLS 1.3: system calls", partial(measure_calls, tls=True), (), ("stunnel",),
         timed=False, on="tls", note="A short connection is a full handshake, a message there and one back."),
    Cell("tls-idle", "TLS 1.3: resident KiB of one idle connection out of {idle_connections}",
         partial(measure_idle, tls=True),
         (("silent_kib", "never spoke", "{:.2f}"), ("spoke_kib", "after one ping", "{:.2f}")),
         ("stunnel",), timed=False, on="tls"),
    *(Cell(f"both-{direction}{connections}",
           f"TLS 1.3 on both sides: bulk {direction}, {connections} connection{'s' * (connections > 1)}",
           partial(measure_tls_bulk, direction=direction, connections=connections), _BULK, on="both",
           note="Behind it another penstockd ends TLS, beside the generator and not counted.")
      for direction in ("up", "down") for connections in (1, 16)),
    Cell("packing", "A pair of daemons, text up over 1 connection", measure_packing,
         (("mib_s", "MiB/s", "{:.0f}"), ("cpu_s_gib", "CPU s for each GiB", "{:.3f}"),
          ("bare_s_gib", "bare library", "{:.3f}")), on="pairs",
         note="Both daemons together, on one CPU. The text is this program's source; the bare library "
              "packs and unpacks the same in one stream, without a flush."),
    Cell("packed-ping", "A pair of daemons: 64-byte ping, 1 connection",
         partial(measure_ping, connections=1), _PING, on="pairs"),
]
