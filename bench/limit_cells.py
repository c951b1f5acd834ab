"""The measurements of limits: how exact, how fair, and at what cost."""

import json
import re
import shutil
import statistics
import subprocess
import time
from functools import partial

from cells import GIB, GENERATOR_CPU, MIB, Cell, finish_load, start_load, timed_load, wait_word
from limiters import CONNECTIONS, CROWD_RATE, RATES
from processes import BenchError, settle

MB = 1e6


def _watch(bench, proxy, target, rate, **options):
    """What a watcher saw once all had settled, and what the proxy used meanwhile."""
    process = start_load(bench, "watch", proxy.ports[target], lambda words: proxy.reach(words, target),
                         seconds=bench.size.limit_seconds, rate=rate, **options)
    wait_word(process, "settled")
    before = proxy.cpu_seconds()
    wait_word(process, "done")
    used = proxy.cpu_seconds() - before
    got = json.loads(process.stdout.readline())
    finish_load(bench, process)
    return dict(got, mb_s=got["rate"] / MB, cpu_s_gib=used / got["bytes"] * GIB)


def measure_limit(bench, proxy, target):
    rate = RATES[target]
    got = _watch(bench, proxy, target, rate, connections=CONNECTIONS)
    return {"asked_mb_s": rate / MB, "mb_s": got["mb_s"], "error": got["rate"] / rate - 1,
            "worst_kb": got["worst_bytes"] / 1e3, "jain": got["jain"], "wait_p99_ms": got["wait_p99_us"] / 1e3,
            "cpu_s_gib": got["cpu_s_gib"]}


def measure_crowd(bench, proxy):
    """Many hungry connections beside few, under the same limit."""
    few = _watch(bench, proxy, "crowd", CROWD_RATE, connections=CONNECTIONS)
    settle(proxy.pids() + [bench.target.pid])
    many = _watch(bench, proxy, "crowd", CROWD_RATE, connections=bench.size.crowd_connections, settle=3)
    settle(proxy.pids() + [bench.target.pid])
    return {"few_mb_s": few["mb_s"], "few_cpu_s_gib": few["cpu_s_gib"],
            "many_mb_s": many["mb_s"], "many_cpu_s_gib": many["cpu_s_gib"],
            "ratio": many["cpu_s_gib"] / few["cpu_s_gib"]}


def measure_far(bench, proxy, **options):
    """Without a limit and under one that is far away, in turn."""
    if "tls" in options:
        options["bytes"] = bench.size.tls_bytes
    else:
        options.update(seconds=bench.size.bulk_seconds, bytes=bench.size.bulk_bytes)
    result = {}
    for connections in (1, 16):
        speeds = {"free": [], "high": []}
        for number in range(2 * bench.size.far_pairs):
            target = ("free", "high", "high", "free")[number % 4]
            got = timed_load(bench, proxy, "down", proxy.ports[target], connections=connections, **options)
            speeds[target].append(got["bytes"] / MIB / got["elapsed_s"])
        for target, seen in speeds.items():
            result[f"{target}{connections}"] = statistics.median(seen)
        result[f"ratio{connections}"] = result[f"high{connections}"] / result[f"free{connections}"]
    return result


def measure_both_rates(bench, proxy):
    result = {}
    for target in ("at100", "at1000"):
        got = measure_limit(bench, proxy, target)
        result[f"{target}_mb_s"], result[f"{target}_cpu_s_gib"] = got["mb_s"], got["cpu_s_gib"]
    return result


# Functions of src/limits*.c and src/meter.c, and what wakes a worker for them: its timer, its mail.
_OURS = re.compile(r"^(limits?_|meter_|obey_limits|arm_limits|on_limits_|on_granted|\w*timerfd|\w*hrtimer_start)")


def _static_functions(build):
    """Names of the functions in those files, as the program's symbols have them."""
    names = set()
    for path in [*(build / "obj" / "src").glob("limits*.o"), build / "obj" / "src" / "meter.o"]:
        done = subprocess.run(["nm", "--defined-only", str(path)], capture_output=True, text=True, check=True)
        names |= {line.split()[2] for line in done.stdout.splitlines() if line.split()[1] in "tT"}
    return names


def measure_share(bench, proxy):
    """Of the samples of the daemon's CPU time, those in the limits and their wake-ups."""
    if not shutil.which("perf"):
        raise BenchError("perf is not installed")
    names = _static_functions(bench.build)
    result = {}
    for name, target, connections in (("few", "at100", CONNECTIONS), ("many", "at100", bench.size.share_connections),
                                      ("fast", "at1000", CONNECTIONS)):
        load = start_load(bench, "watch", proxy.ports[target], connections=connections,
                                seconds=bench.size.limit_seconds + 2, rate=RATES[target])
        output = bench.make_directory("perf") / "perf.data"
        try:
            time.sleep(1.5)
            pids = ",".join(map(str, proxy.pids()))
            subprocess.run(["taskset", "-c", GENERATOR_CPU, "perf", "record", "-q", "-e", "cpu-clock", "-F", "2000", "-p", pids,
                            "-o", output, "sleep", str(bench.size.limit_seconds)], check=True, capture_output=True)
        finally:
            bench.processes.stop(load)
        script = subprocess.run(["perf", "script", "-i", output, "-F", "ip,sym"], check=True, capture_output=True,
                                text=True).stdout
        symbols = [line.split()[1] for line in script.splitlines() if len(line.split()) > 1]
        if len(symbols) < 50:
            raise BenchError(f"perf took only {len(symbols)} samples")
        result[f"{name}_share"] = sum(symbol in names or bool(_OURS.match(symbol)) for symbol in symbols) / len(symbols)
    return result


_LIMIT = (("asked_mb_s", "asked MB/s", "{:.0f}"), ("mb_s", "received MB/s", "{:.2f}"),
          ("error", "off by", "{:+.2%}"), ("worst_kb", "worst window over the rate, kB", "{:.0f}"),
          ("jain", "Jain", "{:.4f}"), ("wait_p99_ms", "wait p99 ms", "{:.1f}"),
          ("cpu_s_gib", "CPU s for each GiB", "{:.3f}"))
_FAR = tuple((f"{what}{connections}", f"{connections}, {heading}", form) for connections in (1, 16)
             for what, heading, form in (("free", "unlimited MiB/s", "{:.0f}"), ("high", "limited MiB/s", "{:.0f}"),
                                         ("ratio", "ratio", "{:.2f}")))
_ALONE = ("turns",)

CELLS = [
    Cell(f"limit{rate // 1000000}", f"One limit of {rate // 1000000} MB/s, {CONNECTIONS} connections down",
         partial(measure_limit, target=target), _LIMIT, on="limiters",
         note="Everybody's bucket holds 50 ms of the rate, but nginx has none. The worst window is the most that came "
              "in any window beyond its length times the rate: burst, quantum, and what a busy receiver let wait.")
    for target, rate in RATES.items() if target in ("at10", "at100")
] + [
    Cell("limit-crowd", "{crowd_connections} hungry connections beside 10, under 100 MB/s and a quantum of 16 KiB",
         measure_crowd, (("few_mb_s", "10: MB/s", "{:.1f}"), ("few_cpu_s_gib", "CPU s/GiB", "{:.3f}"),
                         ("many_mb_s", "many: MB/s", "{:.1f}"), ("many_cpu_s_gib", "CPU s/GiB", "{:.3f}"),
                         ("ratio", "ratio of CPU", "{:.2f}")), on="limits",
         note="The second row is no limit and no proxy: a loop that once a millisecond does as many recv and send of "
              "16 KiB as the rate asks for, of one connection after the other. It tells what of the ratio is the kernel's, "
              "whose sockets are cold when they are many."),
    Cell("limit-far", "A limit far above the traffic, beside none: bulk down, 1 and 16 connections", measure_far, _FAR,
         _ALONE, on="limits"),
    Cell("limit-far-tls", "The same inside TLS 1.3", partial(measure_far, tls=True), _FAR, on="limits-tls"),
    Cell("limit-workers", "Two workers on one limit, beside one", measure_both_rates,
         (("at100_mb_s", "MB/s of 100", "{:.1f}"), ("at100_cpu_s_gib", "CPU s/GiB", "{:.3f}"),
          ("at1000_mb_s", "MB/s of 1000", "{:.0f}"), ("at1000_cpu_s_gib", "CPU s/GiB", "{:.3f}")), on="limits-workers",
         note="Here the proxy may run on every CPU, the generator's included."),
    Cell("limit-share", "Share of the daemon's samples in limits and their wake-ups", measure_share,
         (("few_share", "10 connections at 100 MB/s", "{:.1%}"),
          ("many_share", "{share_connections} connections at 100 MB/s", "{:.1%}"),
          ("fast_share", "10 connections at 1 GB/s", "{:.1%}")), _ALONE, on="limits", note="perf record -e cpu-clock."),
]
