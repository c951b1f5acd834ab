"""The page at internal:admin in a real browser, beside real traffic. Pictures are left in build/pages."""

import json
import os
import re
import socket
import subprocess
import threading
import time

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from daemon import DEADLINE, ROOT, configuration, tunnel, wait_until
from peers import is_closed
from test_admin import Admin

PICTURES = ROOT / "build" / "pages"

pytestmark = pytest.mark.slow


@pytest.fixture
def browser():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1400",
                     "--disable-background-networking", "--no-first-run"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver")
                              if hasattr(webdriver, "ChromeService") else None)
    yield driver
    driver.quit()


def admin_tunnels(directory):
    """Over TCP nobody has the right to change anything. Through `door` he has: the daemon itself comes for him by the
    UNIX socket."""
    return (tunnel("admin", "internal:admin", listen=["127.0.0.1:0", f"unix:{directory}/admin.sock"]),
            tunnel("door", f"unix:{directory}/admin.sock"))


def visit(browser, daemon, name="admin"):
    address = next(at for at in daemon.addresses(name) if isinstance(at, tuple))
    browser.get("http://{}:{}/".format(*address))
    wait_until(lambda: browser.find_element(By.ID, "state").text == "live", "the first refresh")


@pytest.fixture
def page(start, directory, browser):
    """A daemon with traffic, its page in the browser, and its API."""
    text = configuration(
        tunnel("slow", "internal:chargen", limit="each"), tunnel("echo", "internal:echo"), tunnel("dead", "127.0.0.1:9"),
        *admin_tunnels(directory), workers=2)
    text += 'limit "all" { rate = "900kB/s" }\nlimit "each" { parent = "all" per = "source/32" rate = "500kB/s" }\n'
    daemon = start(text)
    clients = [socket.create_connection(daemon.address("slow")) for _ in range(2)]
    idle = socket.create_connection(daemon.address("echo"))
    for client in clients:
        threading.Thread(target=read_for_ever, args=(client,), daemon=True).start()
    with pytest.raises(OSError):
        with socket.create_connection(daemon.address("dead")) as dead:
            assert dead.recv(1)
    visit(browser, daemon)
    yield Admin(daemon, path=directory / "admin.sock")
    for sock in (*clients, idle):
        sock.close()


def read_for_ever(sock):
    try:
        while sock.recv(65536):
            pass
    except OSError:
        pass


def table(browser, name):
    """Rows of text, at one moment."""
    return browser.execute_script(
        "return [...document.getElementById(arguments[0]).rows].slice(1).map(r => [...r.cells].map(c => c.textContent))", name)


def refreshed(browser):
    return float(browser.execute_script("return document.body.dataset.refreshed || 0"))


def turns(browser):
    """How often it came to the time of a refresh, also while it is paused."""
    return int(browser.execute_script("return document.body.dataset.turns || 0"))


def wait_refresh(browser):
    last = refreshed(browser)
    wait_until(lambda: refreshed(browser) > last, "a refresh")


@pytest.mark.alone
def test_numbers_are_those_of_the_api(page, browser):
    def same():
        rows = {row[0]: row for row in table(browser, "tunnels")}
        told = {one["name"]: one for one in page.get("/v1/tunnels")["tunnels"]}
        return set(rows) == set(told) and all(
            int(rows[name][1]) == one["open"] and int(rows[name][7]) == one["admitted"]
            for name, one in told.items() if name not in ("admin", "door")) and rows
    rows = wait_until(same, "the page to say what the API says")
    assert rows["slow"][1] == "2" and rows["echo"][1] == "1"
    last = refreshed(browser)
    wait_until(lambda: refreshed(browser) > last, "a refresh within seconds", 3)
    wait_until(lambda: re.match(r"[1-9]\d\d", {row[0]: row for row in table(browser, "tunnels")}["slow"][4]), "a rate near the limit's")
    assert any(row[0] == "dead" and row[2] == "refused" for row in table(browser, "ends"))
    (dead,) = table(browser, "last")
    assert dead[1] == "dead" and dead[8] == "target" and "refused" in dead[9]
    assert any("throttled" in row[7] and 'limit "each"' in row[7] for row in
               wait_until(lambda: table(browser, "slow") if "(" in str(table(browser, "slow")) else None, "a reason"))
    assert [row[0] for row in table(browser, "limits")] == ["all", "each 127.0.0.1/32"]


@pytest.mark.alone
def test_a_change_of_a_limit_is_seen_at_once(page, browser):
    assert page.post("/v1/limits/all", {"down": "700kB/s"})[0] == 200
    began = time.monotonic()
    wait_until(lambda: " of 700" in table(browser, "limits")[0][4], "the new rate")
    assert time.monotonic() - began < 2.5


def test_it_asks_nobody_else_and_complains_of_nothing(page, browser):
    last = refreshed(browser)
    wait_until(lambda: refreshed(browser) > last + 2, "some refreshes")
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {entry["params"]["request"]["url"] for entry in asked if entry["method"] == "Network.requestWillBeSent"}
    here = browser.current_url
    assert urls and all(url.startswith((here, "data:")) for url in urls), urls


def test_read_only_without_the_right(page, browser):
    assert not browser.find_element(By.ID, "reload").is_displayed()
    assert not [b for b in browser.find_elements(By.TAG_NAME, "button") if b.text == "Kill"]
    assert "read only" in browser.find_element(By.ID, "facts").text


def test_by_keyboard(page, browser):
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys("p")
    assert browser.find_element(By.ID, "state").text == "paused"
    passed = turns(browser)
    wait_until(lambda: turns(browser) > passed, "the end of a refresh that was under way")
    last = refreshed(browser)
    body.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "pause"
    passed = turns(browser)
    wait_until(lambda: turns(browser) >= passed + 2, "two refreshes that are left out")
    assert refreshed(browser) == last
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    wait_until(lambda: refreshed(browser) > last, "it to go on")


def test_when_the_daemon_is_gone(page, browser):
    page.daemon.stop()
    wait_until(lambda: browser.find_element(By.ID, "state").text.startswith("no answer"), "it to be told")


def test_light_dark_and_on_a_phone(page, browser):
    PICTURES.mkdir(parents=True, exist_ok=True)
    wait_until(lambda: browser.execute_script("return document.querySelector('#tunnels polyline').points.length") > 5,
               "something in the plots")
    backs = {}
    for theme in ("light", "dark"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
        backs[theme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        browser.save_screenshot(str(PICTURES / f"{theme}.png"))
    assert backs["light"] != backs["dark"]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True})
    wait_until(lambda: browser.execute_script("return document.documentElement.clientWidth") == 390, "a small screen")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert browser.execute_script("return [...document.querySelectorAll('section')].filter("
                                  "box => box.scrollWidth > box.clientWidth).map(box => box.innerText)") == []
    browser.save_screenshot(str(PICTURES / "phone.png"))


# --- with the right to change things


@pytest.fixture
def steering(page, browser):
    """The same by the way that has the right."""
    visit(browser, page.daemon, "door")
    wait_until(lambda: browser.find_element(By.ID, "reload").is_displayed(), "the right")
    assert "read only" not in browser.find_element(By.ID, "facts").text
    return page


def kill_button(browser, connection):
    """The button in the list of the fastest, where it stands when that is asked; None = it does not."""
    return browser.execute_script("return document.querySelector(`[data-key=fast${arguments[0]}]`)", connection["id"])


def dialog(browser):
    def found():
        try:
            return browser.switch_to.alert
        except NoAlertPresentException:
            return None
    return wait_until(found, "the question")


def ids(page, name):
    return {one["id"] for one in page.connections(tunnel=name)}


def test_kill_by_click(steering, browser):
    """Asked, and told no, it does nothing; told yes, that connection is reset and no other."""
    victim, other = steering.connections(tunnel="slow")
    wait_until(lambda: kill_button(browser, victim), "the connection")
    browser.find_element(By.ID, "pause").click()  # no row is replaced under the pointer
    passed = turns(browser)
    wait_until(lambda: turns(browser) > passed, "the end of a refresh that was under way")
    kill_button(browser, victim).click()
    question = dialog(browser)
    assert question.text == f"Reset connection {victim['id']} of {victim['client']}?"
    question.dismiss()
    kill_button(browser, victim).click()
    dialog(browser).accept()
    wait_until(lambda: ids(steering, "slow") == {other["id"]}, "its end")
    assert [line["connection"] for line in steering.daemon.find_log("connection ended", tunnel="slow")] == [str(victim["id"])]
    assert steering.daemon.find_log("connection ended", tunnel="slow")[0]["reason"] == "stopped"
    wait_until(lambda: browser.find_element(By.ID, "state").text == "done", "the answer")
    browser.find_element(By.ID, "pause").click()
    wait_until(lambda: not kill_button(browser, victim), "its row to go")
    assert kill_button(browser, other)


def test_kill_by_keyboard(steering, browser):
    """The focus stays on its button while rows are replaced."""
    victim = steering.connections(tunnel="slow")[0]
    wait_until(lambda: kill_button(browser, victim), "the connection")
    browser.execute_script("document.querySelector(`[data-key=fast${arguments[0]}]`).focus()", victim["id"])
    wait_refresh(browser)
    wait_refresh(browser)
    assert browser.execute_script("return document.activeElement.dataset.key") == f"fast{victim['id']}"
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    dialog(browser).accept()
    wait_until(lambda: victim["id"] not in ids(steering, "slow"), "its end")


def test_drain_and_undrain_by_click(steering, browser):
    daemon = steering.daemon

    def gate():
        return browser.execute_script("return document.querySelector('[data-key=gateecho]')")
    wait_until(gate, "the button").click()
    dialog(browser).accept()
    wait_until(lambda: table(browser, "tunnels")[1][0] == "echo drained", "it to be told")
    assert is_closed(daemon.address("echo")) and table(browser, "tunnels")[1][8] == "–"
    assert not is_closed(daemon.address("slow"))
    assert gate().text == "Undrain"
    browser.execute_script("arguments[0].click()", gate())
    wait_until(lambda: table(browser, "tunnels")[1][0] == "echo", "it to be told")
    assert table(browser, "tunnels")[1][8] != "–"


def test_reload_by_click(steering, browser):
    daemon = steering.daemon
    daemon.write(daemon.text + tunnel("fresh", "internal:echo"))
    browser.find_element(By.ID, "reload").click()
    wait_until(lambda: "fresh" in [row[0] for row in table(browser, "tunnels")], "the new tunnel")
    wait_until(lambda: "generation 2" in browser.find_element(By.ID, "facts").text, "the new generation")
    daemon.write(daemon.text + "nonsense = 1\n")
    browser.find_element(By.ID, "reload").click()
    wait_until(lambda: "unknown keyword 'nonsense'" in browser.find_element(By.ID, "reloads").text, "what was wrong")
    assert steering.get("/v1/status")["generation"] == 2


# --- with many connections


MANY = 9000
FULL = bool(os.environ.get("FULL"))


@pytest.fixture
def crowded(start, directory):
    """A daemon with 9000 idle connections, each with its own node of a limit."""
    daemon = start(configuration(
        tunnel("echo", "internal:echo", limit="each"), tunnel("busy", "internal:chargen", limit="each"), *admin_tunnels(directory),
        'limit "all" { rate = "90MB/s" }\nlimit "each" { parent = "all" per = "connection" rate = "100kB/s" }\n',
        workers=2, log={"connections": "false"}))
    asked = Admin(daemon, path=directory / "admin.sock")
    crowd = [socket.create_connection(daemon.address("echo")) for _ in range(MANY)]
    wait_until(lambda: asked.metrics()['penstock_connections{tunnel="echo",state="open"}'] == MANY, "all of them")
    yield asked
    for sock in crowd:
        sock.close()


def test_with_9000_connections(crowded, browser):
    daemon = crowded.daemon
    busy = socket.create_connection(daemon.address("busy"))
    threading.Thread(target=read_for_ever, args=(busy,), daemon=True).start()
    visit(browser, daemon)
    number = crowded.connections(tunnel="busy")[0]["id"]

    def same():
        rows = {row[0]: row for row in table(browser, "tunnels")}
        told = {one["name"]: one for one in crowded.get("/v1/tunnels")["tunnels"]}
        return all(int(rows[name][1]) == told[name]["open"] and int(rows[name][7]) == told[name]["admitted"]
                   for name in ("echo", "busy"))
    wait_until(same, "the page to say what the API says")
    assert str(MANY) in {row[1] for row in table(browser, "tunnels")}
    assert sum(int(row[1]) for row in table(browser, "workers")) >= MANY + 1
    for name in ("fast", "slow"):
        wait_until(lambda: table(browser, name)[0][0] == str(number), f"the only one that moves to be the first in {name}")
    wait_until(lambda: [row[0] for row in table(browser, "limits")][::3] == ["all", "each: and more that do less"] and
               f"each #{number}" in [row[0] for row in table(browser, "limits")], "the node through which bytes pass, and few others")
    busy_row = next(row for row in table(browser, "limits") if row[0] == f"each #{number}")
    assert "of 100" in busy_row[4] and not busy_row[4].startswith("0")
    for _ in range(2):
        wait_refresh(browser)
    assert browser.get_log("browser") == []
    busy.close()


# --- what it costs


ATTEMPTS = 4  # whatever else the machine does only adds to what is measured
PAGE_PERCENT = 1
LAG = "0.005"


def wait_dormant(asked):
    """Until none of them did anything in the last ten seconds: those are looked at more closely."""
    wait_until(lambda: asked.connections(tunnel="echo", sort="idle", limit=1) and
               min(one["idle_s"] for one in asked.connections(tunnel="echo")) > 12, "ten quiet seconds", 4 * DEADLINE)


class Scraper:
    """Asks for the metrics every second."""

    def __init__(self, asked):
        self.asked, self.scrapes, self.stop = asked, 0, threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        while not self.stop.wait(1):
            self.asked.metrics()
            self.scrapes += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


@pytest.mark.alone
def test_a_page_and_a_scrape_each_second_cost_little(crowded, browser, report):
    """CPU of the daemon with both, above that of the same time without. FULL=1: a minute of each."""
    seconds, daemon = 60 if FULL else 5, crowded.daemon

    def percent():
        began, before = time.monotonic(), daemon.cpu_seconds()
        time.sleep(seconds)  # what is measured is this time
        return 100 * (daemon.cpu_seconds() - before) / (time.monotonic() - began)
    wait_dormant(crowded)
    for _ in range(ATTEMPTS):
        browser.get("about:blank")
        alone = percent()
        visit(browser, daemon)
        first = turns(browser)
        with Scraper(crowded) as scraper:
            watched = percent()
        assert turns(browser) - first > seconds / 2 and scraper.scrapes > seconds / 2
        if watched - alone <= PAGE_PERCENT:
            break
    report(f"{MANY} idle connections: {alone:.2f} % of a core, {watched:.2f} % with an open page and a scrape a second")
    assert watched - alone <= PAGE_PERCENT


def late_beats(asked):
    """How many beats of the workers' loops came later than they may, and how many there were."""
    beats = late = 0
    for name, value in asked.metrics().items():
        if name.startswith("penstock_worker_loop_lag_seconds_bucket"):
            beats += value if 'le="+Inf"' in name else 0
            late += value if 'le="+Inf"' in name else -value if f'le="{LAG}"' in name else 0
    return int(late), int(beats)


def ask_for_a_while(asked, path, seconds):
    """One request after the other, by a client that gives way to the daemon; how many, how many beats there were and how
    many of them came late."""
    (late_before, beats_before), end, asks = late_beats(asked), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        done = subprocess.run(["nice", "-n", "19", "curl", "-sS", "--unix-socket", asked.path, f"http://admin{path}"],
                              capture_output=True, check=True)
        assert "connections" not in path or done.stdout.count(b'"id":') >= MANY
        asks += 1
    late, beats = late_beats(asked)
    assert beats - beats_before >= 10 * seconds  # of both workers
    return asks, beats - beats_before, late - late_before


@pytest.mark.alone
def test_a_listing_of_9000_connections_holds_up_no_loop(crowded, report):
    """None is late; or, where others take the processor away, no more of them than while short answers are given."""
    seconds = 20 if FULL else 2
    for _ in range(ATTEMPTS):
        listings, beats, late = ask_for_a_while(crowded, "/v1/connections", seconds)
        if not late:
            break
        others = ask_for_a_while(crowded, "/v1/status", seconds)[2]
        if late <= others:
            break
    report(f"{listings} listings of {MANY} connections: {late} of {beats} beats more than {LAG} s late")
    assert not late or late <= others
