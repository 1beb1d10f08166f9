"""A real run, looked at as people do: Ray's dashboard in Chromium, which asks for the token, and Prometheus.

MBML_PICTURES names a folder that keeps what was seen.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.growing_cluster import ROOT, free_port, without_ray

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
_SECONDS = 120
_CHROMIUM = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1500,850")


@dataclass
class Watched:
    """A run that will last, and where its dashboard is."""

    process: subprocess.Popen
    address: str
    token: str


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    sizes = ["--preset", "smoke", "--collect.steps", "100000", "--collect.tasks-per-actor", "3"]
    place = ["--store", str(folder / "store"), "--out", str(folder / "out"), "--dashboard"]
    with subprocess.Popen(
        [os.path.relpath(sys.executable, ROOT), "-m", "pipeline", "run", "--env", "walker_param", *sizes, *place],
        cwd=ROOT,
        env=without_ray(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield Watched(process, *_printed(process))
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def _printed(process: subprocess.Popen) -> tuple[str, str]:
    """Address and token, when the first job is at work."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if "started  collect" in line:
            ((address, token),) = re.findall(r"dashboard at (http://\S+), token (\w+)", said)
            return address, token
    raise AssertionError(said)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in _CHROMIUM:
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def until(look: Callable[[], Any]) -> Any:
    """What `look` finds in the end."""
    end = time.monotonic() + _SECONDS
    while not (found := look()):
        assert time.monotonic() < end, "not found in time"
        time.sleep(0.5)
    return found


def text(browser: Any) -> str:
    return browser.execute_script("return document.body.innerText")


def scroll(browser: Any) -> None:
    """Bring the table's rows up to where a screenshot has them."""
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")


def keep(browser: Any, name: str) -> None:
    if folder := os.environ.get("MBML_PICTURES"):
        browser.save_screenshot(str(Path(folder, f"{name}.png")))


def test_the_dashboard_asks_for_the_token_and_shows_the_workers_and_what_they_work_on(run, chromium):
    chromium.get(run.address)
    (field,) = until(lambda: chromium.find_elements("css selector", "input[placeholder*=token]"))
    field.send_keys(run.token)
    (button,) = [found for found in chromium.find_elements("css selector", "button") if found.text.upper() == "SUBMIT"]
    button.click()
    until(lambda: not chromium.find_elements("css selector", "input[placeholder*=token]"))
    chromium.get(f"{run.address}/#/actors")
    until(lambda: "worker 1\n(walker_param)" in text(chromium) or "worker 1 (walker_param)" in text(chromium))
    keep(chromium, "dashboard-actors")
    chromium.get(f"{run.address}/#/cluster")

    until(lambda: re.search(r"ray::collect tasks 0-2 \(walker_param\) \d+%, \S+ left", text(chromium)))
    scroll(chromium)
    keep(chromium, "dashboard")


@contextmanager
def prometheus(folder: Path, configuration: dict) -> Iterator[str]:
    """The address of a real one."""
    program = shutil.which("prometheus")
    if not program:
        pytest.skip("prometheus is not installed")
    file, address = folder / "prometheus.yaml", f"127.0.0.1:{free_port()}"
    file.write_text(yaml.safe_dump(configuration))
    options = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address={address}"]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://{address}"
        finally:
            process.terminate()


def test_prometheus_gathers_a_runs_metrics_by_our_scrape_settings(run, chromium, tmp_path):
    settings = yaml.safe_load((ROOT / "cluster" / "prometheus.yaml").read_text())
    (machines,) = [found for found in settings["scrape_configs"] if found["job_name"] == "ray"]
    files = machines["file_sd_configs"][0]
    # An embedded Ray has a private folder instead of /tmp/ray.
    (own,) = [
        Path(word.split("=")[1]).parent
        for word in Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
        for word in Path(f"/proc/{word}/cmdline").read_text().split("\0")
        if word.startswith("--session-dir=")
    ][:1]
    files["files"] = [str(own / Path(files["files"][0]).name)]
    settings |= {"scrape_configs": [machines], "global": {"scrape_interval": "2s"}}
    wanted = "ray_mbml_done"
    with prometheus(tmp_path, settings) as address:

        def found() -> list[dict]:
            with urllib.request.urlopen(f"{address}/api/v1/query?query={wanted}", timeout=10) as answer:
                return json.loads(answer.read())["data"]["result"]

        until(lambda: _answers(address))
        (series,) = until(found)
        assert series["metric"]["environment"] == "walker_param"
        assert series["metric"]["stage"] == "collect"
        assert float(series["value"][1]) > 0
        time.sleep(60 if os.environ.get("MBML_PICTURES") else 0)  # a line to look at
        share = "100 * ray_mbml_done / ray_mbml_total"
        query = urllib.parse.urlencode({"g0.expr": share, "g0.tab": 0, "g0.range_input": "1m"})
        chromium.set_window_size(1500, 1100)
        chromium.get(f"{address}/graph?{query}")
        until(lambda: "walker_param" in text(chromium))
        keep(chromium, "prometheus")


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/-/ready", timeout=5).status == 200
    except OSError:
        return False
