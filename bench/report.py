"""Numbers into tables, and the goals beside them."""

import datetime
import os
import pathlib
import platform
import re
import statistics

# (cell, key, what, relation to the best peer): a share of the least, or at least the greatest.
_PEER_GOALS = (
    [(cell, "cpu_s_gib", "CPU for each GiB", "least", 0.75)
     for cell in ("up1", "up16", "down1", "down16")] +
    [(cell, "mib_s", "MiB/s", "greatest", 1.0) for cell in ("up1", "up16", "down1", "down16")] +
    [("short", "per_s", "connections a second", "greatest", 1.0),
     ("ping1", "p50_us", "ping p50", "least", 1.0), ("ping1", "p99_us", "ping p99", "least", 1.0),
     ("ping64", "p50_us", "ping p50", "least", 1.0),
     ("ping64", "p99_us", "ping p99", "least", 1.0)] +
    [(f"{version}-{kind}", key, what, best, factor)
     for version in ("tls", "tls12") for kind in ("up1", "up16", "down1", "down16")
     for key, what, best, factor in (("cpu_s_gib", "CPU for each GiB", "least", 0.75),
                                     ("mib_s", "MiB/s", "greatest", 1.0))] +
    [(f"{version}-{kind}", "per_s", "connections a second", "greatest", 1.0)
     for version in ("tls", "tls12") for kind in ("full", "resumed")] +
    [(f"both-{kind}", "cpu_s_gib", "CPU for each GiB", "least", 0.75)
     for kind in ("up1", "up16", "down1", "down16")] +
    [("tls-ping1", "p50_us", "ping p50", "least", 1.0),
     ("tls-ping64", "p50_us", "ping p50", "least", 1.0)])
_IDLE_KIB = {"idle": 1.5, "tls-idle": 15.5}
_TWO_WORKERS = 1.15
_PACKING, _PACKED_PING = 1.15, 2


class Results:
    """All samples: by cell, proxy and key, one number a round."""

    def __init__(self, network=""):
        self.network = network  # where all of it was measured
        self.samples = {}
        self.failures = {}

    def add(self, cell, proxy, numbers):
        for key, number in numbers.items():
            self.samples.setdefault((cell, proxy), {}).setdefault(key, []).append(number)

    def fail(self, cell, proxy, why):
        self.failures.setdefault((cell, proxy), why)

    def has(self, cell, proxy):
        return (cell, proxy) in self.samples and (cell, proxy) not in self.failures

    def median(self, cell, proxy, key):
        return statistics.median(self.samples[cell, proxy][key])

    def ratio(self, cell, proxy, other, key):
        """Of one proxy to another: the median of the rounds' ratios, as neighbours in a round saw
        the same machine; rounded as it is shown and judged."""
        pairs = zip(self.samples[cell, proxy][key], self.samples[cell, other][key])
        return round(statistics.median(own / others for own, others in pairs), 2)

    def raw(self, cell, proxy, key):
        return self.samples[cell, proxy][key][-1]


def table(headings, rows):
    lines = ["| " + " | ".join(headings) + " |", "| --- " + "| ---: " * (len(headings) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _cell_value(results, cell, proxy, key, form):
    numbers = results.samples[cell.name, proxy.name][key]
    text = form.format(statistics.median(numbers))
    if len(numbers) > 1 and "%" not in form:
        text += f" ({form.format(min(numbers))} … {form.format(max(numbers))})"
    return text


def cell_table(results, cell, proxies, sizes):
    rows = []
    for proxy in proxies:
        if results.has(cell.name, proxy.name):
            rows.append([proxy.label] + [_cell_value(results, cell, proxy, key, form)
                                         for key, _, form in cell.columns])
        elif (cell.name, proxy.name) in results.failures:
            why = results.failures[cell.name, proxy.name].splitlines()[0]
            rows.append([proxy.label, f"failed: {why}"] + [""] * (len(cell.columns) - 1))
    return table([""] + [heading.format_map(sizes) for _, heading, _ in cell.columns], rows)


def calls_tables(results, cell, proxies):
    measured = [proxy for proxy in proxies if results.has(cell, proxy.name)]
    text = ""
    for kind, title in (("ping", "for each ping"), ("short", "for each short connection")):
        counts = {proxy.name: results.raw(cell, proxy.name, kind) for proxy in measured}
        names = sorted({name for calls in counts.values() for name, each in calls.items()
                        if each >= 0.005},
                       key=lambda name: -max(calls.get(name, 0) for calls in counts.values()))
        rows = [[name] + [f"{counts[proxy.name].get(name, 0):.2f}" for proxy in measured]
                for name in names]
        rows.append(["all"] + [f"{sum(counts[proxy.name].values()):.2f}" for proxy in measured])
        text += table([title] + [proxy.label for proxy in measured], rows) + "\n"
    for proxy in proxies:
        if (cell, proxy.name) in results.failures:
            text += f"{proxy.label}: failed: {results.failures[cell, proxy.name]}\n\n"
    return text.rstrip("\n") + "\n"


def _verdict(reached):
    return "reached" if reached else "**missed**"


def _peer_goals(results, families):
    peers = {proxy.name: proxy.label for family in ("plain", "tls", "both")
             for proxy in families.get(family, []) if proxy.name != "penstock"}
    for cell, key, what, best, factor in _PEER_GOALS:
        if not results.has(cell, "penstock"):
            continue
        ratios = {label: results.ratio(cell, "penstock", name, key)
                  for name, label in peers.items() if results.has(cell, name)}
        if not ratios:
            continue
        choose, sign = (max, "≤") if best == "least" else (min, "≥")
        label = choose(ratios, key=ratios.get)
        reached = ratios[label] <= factor if best == "least" else ratios[label] >= factor
        yield [f"{cell}: {what} {sign} {factor:g} × best peer ({label})", f"{ratios[label]:.2f} ×",
               _verdict(reached)]


def _calls_goal(results):
    peers = [name for name in ("nginx16", "nginx256") if results.has("calls", name)]
    for cell in ("calls", "tls-calls"):
        if results.has(cell, "penstock"):
            ping = results.raw(cell, "penstock", "ping")
            # A ping is two messages, each epoll_wait, read and write.
            yield [f"{cell}: a ping costs 6", f"{sum(ping.values()):.2f}",
                   _verdict(sum(ping.values()) < 6.05)]
    if results.has("calls", "penstock") and peers:
        own = sum(results.raw("calls", "penstock", "short").values())
        best = min(sum(results.raw("calls", name, "short").values()) for name in peers)
        yield [f"calls: a short connection ≤ nginx's {best:.2f}", f"{own:.2f}",
               _verdict(own <= best + 0.005)]


def _idle_goals(results):
    for cell, most in _IDLE_KIB.items():
        if not results.has(cell, "penstock"):
            continue
        for key, what in (("silent_kib", "never spoke"), ("spoke_kib", "after one ping")):
            kib = results.median(cell, "penstock", key)
            yield [f"{cell}: {what} ≤ {most} KiB", f"{kib:.2f} KiB", _verdict(kib <= most)]


def _worker_goals(results):
    if not (results.has("workers", "penstock1") and results.has("workers", "penstock2")):
        return
    for key, what in (("cpu_us", "connection"), ("up_cpu_s_gib", "GiB up"),
                      ("down_cpu_s_gib", "GiB down")):
        ratio = results.ratio("workers", "penstock2", "penstock1", key)
        yield [f"workers: CPU for each {what}, two ≤ {_TWO_WORKERS} × one", f"{ratio:.2f} ×",
               _verdict(ratio <= _TWO_WORKERS)]


# (cell, key, what, most or least, bound): of penstockd alone.
_LIMIT_GOALS = (
    [(cell, "error", "off the rate by", "between", 0.01) for cell in ("limit10", "limit100")] +
    [(cell, "jain", "Jain", "least", 0.99) for cell in ("limit10", "limit100")] +
    [("limit-crowd", "ratio", "CPU for each GiB, many to few", "most", 1.25)] +
    [(cell, f"ratio{connections}", f"speed on {connections}, limited to unlimited", "least", 0.95)
     for cell in ("limit-far", "limit-far-tls") for connections in (1, 16)] +
    [("limit-share", f"{name}_share", f"share of samples, {what}", "most", 0.1)
     for name, what in (("few", "few at 100 MB/s"), ("many", "many at 100 MB/s"), ("fast", "1 GB/s"))])
_TWO_WORKERS_ON_A_LIMIT = {"at100_cpu_s_gib": ("100 MB/s", 1.2), "at1000_cpu_s_gib": ("1 GB/s", 1.1)}


def _limit_goals(results):
    for cell, key, what, relation, bound in _LIMIT_GOALS:
        if not results.has(cell, "penstock"):
            continue
        value = results.median(cell, "penstock", key)
        reached = {"most": value <= bound, "least": value >= bound, "between": abs(value) <= bound}[relation]
        sign = "≥" if relation == "least" else "≤"
        yield [f"{cell}: {what} {sign} {bound:g}", f"{value:.3f}", _verdict(reached)]
    if results.has("limit-workers", "penstock1") and results.has("limit-workers", "penstock2"):
        for key, (rate, most) in _TWO_WORKERS_ON_A_LIMIT.items():
            ratio = results.ratio("limit-workers", "penstock2", "penstock1", key)
            yield [f"limit-workers: CPU for each GiB at {rate}, two ≤ {most:g} × one", f"{ratio:.2f} ×",
                   _verdict(ratio <= most)]


def _pair_goals(results, families):
    for proxy in families.get("pairs", []):
        if not proxy.codec:
            continue
        if results.has("packing", proxy.name) and results.has("packing", "pair"):
            own, plain = results.samples["packing", proxy.name], results.samples["packing", "pair"]
            ratio = round(statistics.median(
                packed / (bare + through) for packed, bare, through in
                zip(own["cpu_s_gib"], own["bare_s_gib"], plain["cpu_s_gib"])), 2)
            yield [f"packing: {proxy.label}, CPU for each GiB ≤ {_PACKING} × (bare library + two plain)",
                   f"{ratio:.2f} ×", _verdict(ratio <= _PACKING)]
        if results.has("packed-ping", proxy.name) and results.has("packed-ping", "pair"):
            ratio = results.ratio("packed-ping", proxy.name, "pair", "p50_us")
            yield [f"packed-ping: {proxy.label}, p50 ≤ {_PACKED_PING} × two plain", f"{ratio:.2f} ×",
                   _verdict(ratio <= _PACKED_PING)]


def goals_table(results, families):
    rows = [row for part in (_peer_goals(results, families), _calls_goal(results),
                             _idle_goals(results), _worker_goals(results), _limit_goals(results),
                             _pair_goals(results, families)) for row in part]
    if not rows:
        return "Nothing was measured that a goal is set for.\n"
    missed = sum("missed" in row[2] for row in rows)
    return (f"{len(rows) - missed} of {len(rows)} reached.\n\n" +
            table(["goal", "measured", ""], rows))


def _read(path, pattern):
    found = re.search(pattern, pathlib.Path(path).read_text(encoding="ascii", errors="replace"))
    return found.group(1).strip() if found else "unknown"


def _machine():
    system = _read("/etc/os-release", r'PRETTY_NAME="(.*)"')
    gib = int(_read("/proc/meminfo", r"MemTotal:\s+(\d+)")) / (1 << 20)
    host = "virtual machine" if " hypervisor " in _read("/proc/cpuinfo", r"flags\s*:(.*)") + " " \
        else "bare metal"
    return (f"{_read('/proc/cpuinfo', 'model name.*: (.*)')}, {os.cpu_count()} CPUs ({host}), "
            f"{gib:.0f} GiB; {system}, kernel {platform.release()}")


def _others(results):
    """How much the machine did besides: the reader's measure of what the numbers are worth."""
    shares = [share for numbers in results.samples.values()
              for share in numbers.get("others_busy", [])]
    if not shares:
        return "not measured"
    return f"median {statistics.median(shares):.1%}, most {max(shares):.1%} of one CPU"


def _tcp_buffers():
    """What the kernel's autotuning may do: how fast bulk goes depends on it."""
    read, write = (pathlib.Path(f"/proc/sys/net/ipv4/tcp_{name}mem").read_text(encoding="ascii")
                   for name in "rw")
    return f"read {' '.join(read.split())}, write {' '.join(write.split())}"


def _heading(arguments, families, results, pressures):
    order = [proxy for family in families.values() for proxy in family]
    versions = {proxy.label.split(",")[0]: proxy.version() for proxy in order}
    now = datetime.datetime.now(datetime.timezone.utc)
    rows = [["date", now.strftime("%Y-%m-%d %H:%M UTC")],
            ["machine", _machine()],
            ["versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)],
            ["command", " ".join(["bench/run"] + arguments)],
            ["network", results.network],
            ["used by other programs meanwhile", _others(results)],
            ["TCP buffers (least, default, most)", _tcp_buffers()],
            ["kernel short of TCP memory", f"{pressures} times"]]
    priority = "Proxies and generator ran before all other programs (SCHED_RR).\n" \
        if "--realtime" in arguments else ""
    user = "an unprivileged user of its own" if os.getuid() == 0 else "the user who ran the bench"
    return f"""# Benchmark results

Written by `make bench`; not to be edited.

{table(["", ""], rows).replace("---:", "---")}
Every proxy has one worker, runs as {user} and is alone on CPU {order[0].cpus}; the load generator and the
targets (`bench/load.h`) share the other CPU; everything is on loopback, and nobody logs connections.
Cells are measured in rounds, each proxy in turn; numbers are medians (least … greatest). CPU is what the
proxy's processes used, user and system, dead children included. "Busy" is the share of the time in which the
proxy, or client and target together, used their CPU: where the generator is busy all the time and the
proxy is not, MiB/s and connections a second are the generator's, and only CPU tells the proxies apart.
Targets and clients drop bulk bytes without copying them. Both ends of each bulk connection compare
their counts, and a short connection without its whole answer fails the cell. Cells of limits begin when bursts
are spent, and end before what is under way has arrived.
{priority}"""


def write(size, arguments, chosen, families, results, pressures):
    """The whole page; pressures as tcp_memory_pressures() counted them during the run."""
    text = _heading(arguments, families, results, pressures)
    text += "\n## Goals\n\nA ratio is the median of the rounds' ratios of penstockd to the best peer.\n\n"
    text += goals_table(results, families)
    for cell in chosen:
        text += f"\n## {cell.title.format_map(vars(size))} (`{cell.name}`)\n\n"
        if cell.note:
            text += cell.note + "\n\n"
        if cell.columns:
            text += cell_table(results, cell, families[cell.on], vars(size))
        else:
            text += calls_tables(results, cell.name, families[cell.on])
    return text
