"""The live view: a server for this machine only, whose page follows the runs."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from rewound.report import watch
from rewound.report.making import live_page
from rewound.report.watch import ADDRESS, Live, serve, url_of


@contextmanager
def running(live):
    with serve(live) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path, host=None):
    connection = http.client.HTTPConnection(ADDRESS, server.server_address[1], timeout=20)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def test_the_page_follows_the_runs(tmp_path, make_study, write_grid, monkeypatch):
    monkeypatch.setattr(watch, "_REST", 0)
    study = make_study()
    for run in study["runs"][1:]:
        run.update(status="waiting", rounds=[])
    place = write_grid(tmp_path / "grid", study)
    with running(Live([place], live_page([place]), patience=0)) as server:
        status, headers, page = ask(server, "/")
        assert status == 200 and headers["Content-Type"].startswith("text/html")
        assert "1 of 6 runs finished" in page and "5 runs not finished yet" in page
        version = ask(server, "/version")[2]
        assert f'data-live="{version}"' in page and "connect-src &#39;self&#39;" in page
        assert ask(server, "/version")[2] == version
        write_grid(place, make_study())
        newer = ask(server, "/version")[2]
        assert newer != version
        page = ask(server, "/")[2]
        assert f'data-live="{newer}"' in page and "6 of 6 runs finished" in page


def test_a_page_is_made_once_a_version(tmp_path):
    made = []
    live = Live([tmp_path], lambda version: made.append(version) or "page", patience=0)
    assert [live.page() for _ in range(3)] == ["page"] * 3
    assert len(made) == 1


def test_a_version_lasts_for_a_while(tmp_path):
    live = Live([tmp_path], lambda version: "page", patience=60)
    before = live.version()
    (tmp_path / "results.json").write_text("{}")
    assert live.version() == before


def test_what_is_not_there_yet_is_said_and_asked_for_again(tmp_path):
    with running(Live([tmp_path], live_page([tmp_path]), patience=0)) as server:
        status, _, page = ask(server, "/")
        assert status == 200 and "Nothing to show yet" in page and 'http-equiv="refresh"' in page


def test_only_this_machine_is_answered(tmp_path):
    with running(Live([tmp_path], lambda version: "secret", patience=0)) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert ask(server, "/", host="evil.example:80")[0] == 403
        assert "secret" not in ask(server, "/", host="evil.example")[2]
        assert ask(server, "/", host=f"localhost:{server.server_address[1]}")[2] == "secret"


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/grid.json", "/?x"])
def test_there_is_nothing_else_to_be_had(tmp_path, path):
    with running(Live([tmp_path], lambda version: "page")) as server:
        assert ask(server, path)[0] == 404


def test_a_taken_port_is_said(tmp_path):
    with (
        serve(Live([tmp_path], str)) as server,
        pytest.raises(OSError, match=r"cannot listen on .* another --port"),
    ):
        serve(Live([tmp_path], str), server.server_address[1])


def test_the_command_ends_by_a_signal(tmp_path, make_study, write_grid):
    place = write_grid(tmp_path / "grid", make_study())
    command = [sys.executable, "-m", "rewound", "report", str(place), "--watch"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        says = process.stdout.readline()
        address, port = re.search(r"http://([\d.]+):(\d+)/", says).groups()
        connection = http.client.HTTPConnection(address, int(port), timeout=20)
        connection.request("GET", "/version")
        assert len(connection.getresponse().read()) == 16
        connection.close()
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 0, process.stderr.read()
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .* to watch"):
        live_page([tmp_path / "none"])


def test_the_page_renews_itself_in_a_browser(chromium, tmp_path, make_study, write_grid, monkeypatch):
    monkeypatch.setattr(watch, "_REST", 0)
    study = make_study()
    study["runs"][0].update(status="waiting", rounds=[])
    place = write_grid(tmp_path / "grid", study)
    with running(Live([place], live_page([place]), patience=0)) as server:
        page = chromium.new_page()
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(url_of(server))
        page.locator("#theme").select_option("dark")
        write_grid(place, make_study())
        page.get_by_text("6 of 6 runs finished").wait_for(timeout=20_000)
        assert page.locator("#theme").input_value() == "dark"  # what the reader chose is kept
        assert complaints == []
        page.close()
