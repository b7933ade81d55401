from __future__ import annotations

import http.client
import itertools
import json
import socket
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pytest
import tifffile

SECRET = "the content of a file that nobody may read"
PASSWORDS = "root:x:0:0"


@pytest.fixture
def viewer(serve, make_heatmaps, tmp_path):
    """A viewer of two slides, one with a file, and secrets beside what it serves."""
    slides = tmp_path / "slides"
    slides.mkdir()
    with tifffile.TiffWriter(slides / "a.tif") as file:
        file.write(np.full((700, 1000, 3), 200, np.uint8), tile=(64, 64), photometric="rgb", compression="zlib")
    for folder in (tmp_path, slides):
        (folder / "secret.txt").write_text(SECRET)
    return serve(make_heatmaps({"a": {"attention": [0.5] * 9}, "b": {"attention": [0.1] * 9}}), slides)


def ask(server, raw: bytes) -> tuple[int, bytes]:
    """Status and everything that comes back for bytes on the wire; 0 without a status."""
    with socket.create_connection(server.server_address, timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head = answer.split(b"\r\n", 1)[0].split(b" ")
    return (int(head[1]) if len(head) > 1 and head[0].startswith(b"HTTP/") else 0), answer


def request(server, path: str, method: str = "GET", host: str | None = None, *more: str) -> bytes:
    port = server.server_address[1]
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}", *more, "", ""]
    return "\r\n".join(lines).encode("utf-8")


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def get(server, name: str) -> Answer:
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    try:
        connection.request("GET", f"/{server.token}/{name}")
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def hostile_requests(server) -> list[bytes]:
    token, port = server.token, server.server_address[1]
    targets = [
        "secret.txt",
        "etc/passwd",
        "heatmaps.csv",
        "folder0/meta.json",
        "index.html",
        "server.py",
        "slides/a.tif",
    ]
    ups = [
        "../", "../../../../../../../", "..\\", "%2e%2e/", "%2e%2e%2f", "..%2f", "..%5c", "%252e%252e%252f", "....//",
        "..;/", "%c0%ae%c0%ae/", "\u2025/", "/", "//", "file:///", "./",
    ]  # fmt: skip
    paths = [up + target for up, target in itertools.product(ups, targets)]
    within = ["", "slides/", "slides/0/", "slides/0/tiles/8/", "static/"]
    raw = [request(server, f"/{token}/{within[number % 5]}{path}") for number, path in enumerate(paths)]
    bad_numbers = [
        "-1",
        "2",
        "999999999",
        "9999999999999999999",
        "0x0",
        "00",
        "1e3",
        "a",
        "",
        "%30",
        "٣",
        "0%00",
        "0.0",
        " 0",
    ]
    for number in bad_numbers:
        raw += [request(server, f"/{token}/slides/{number}.json"), request(server, f"/{token}/slides/{number}/corners")]
        if number != "2":
            raw += [request(server, f"/{token}/slides/0/scores/{number}") if number else b"GET\r\n\r\n"]
        raw += [
            request(server, f"/{token}/slides/0/tiles/{number}/0_0.jpg") if number not in ("2",) else b"\r\n\r\n\r\n"
        ]
        raw += [request(server, f"/{token}/slides/0/tiles/10/{number}_99.jpg")]
    for name in ("a", "b", "../a", quote("../a", safe=""), "folder0", "a.tif", "a%00.tif"):
        raw.append(request(server, f"/{token}/slides/{name}.json"))
    for wrong in (
        "",
        token[:-1],
        token + "x",
        token[::-1],
        token.swapcase(),
        "*",
        "%00",
        "null",
        "ü" * 43,
        token[:-1] + "%41",
    ):
        raw += [request(server, f"/{wrong}/"), request(server, f"/{wrong}/cohort.json"), request(server, f"/{wrong}")]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil", "[::1]", "0.0.0.0",
                 "127.0.0.1:port", "127.0.0.1:", "127.0.0.1:1:1", "a@127.0.0.1", "2130706433"):  # fmt: skip
        raw.append(request(server, f"/{token}/", "GET", host))
    raw.append(f"GET /{token}/ HTTP/1.1\r\n\r\n".encode())
    raw.append(request(server, f"/{token}/", "GET", None, "Host: 127.0.0.1"))
    for method in (
        "POST",
        "PUT",
        "DELETE",
        "PATCH",
        "OPTIONS",
        "TRACE",
        "CONNECT",
        "PROPFIND",
        "get",
        "G\0T",
        "__init__",
    ):
        raw += [request(server, f"/{token}/", method), request(server, f"/{token}/cohort.json", method)]
    for site in ("cross-site", "same-site", "evil"):
        raw.append(request(server, f"/{token}/cohort.json", "GET", None, f"Sec-Fetch-Site: {site}"))
    raw += [
        request(server, f"/{token}/" + "a" * 70_000),
        request(server, f"/{token}/", "GET", None, "X: " + "a" * 70_000),
        request(server, f"/{token}/", "GET", None, *(["X: " + "a" * 60] * 120)),
        request(server, f"/{token}/", "GET", None, *(["X: " + "a" * 900] * 60)),
        request(server, f"/{token}/", "GET", None, "Content-Length: 5") + b"12345",
        request(server, f"/{token}/", "GET", None, "Content-Length: -5"),
        request(server, f"/{token}/", "GET", None, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        request(server, f"/{token}/?x=1"),
        request(server, f"/{token}/#x"),
        request(server, f"http://127.0.0.1/{token}/"),
        request(server, f"/{token}//viewer.js"),
        request(server, f"/{token}/VIEWER.JS"),
        request(server, f"/{token}/viewer.js\0"),
        f"GET /{token}/\r\n\r\n".encode(),
        f"GET /{token}/ HTTP/9.9\r\n\r\n".encode(),
        f"GET /{token}/ HTTP/0.9\r\n\r\n".encode(),
        f"GET /{token}/ HTTP/x\r\n\r\n".encode(),
        b"GET / / / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ]
    return raw


def test_hostile_requests_get_nothing_and_the_server_goes_on(viewer):
    requests = hostile_requests(viewer)
    assert len(requests) >= 200
    for raw in requests:
        status, answer = ask(viewer, raw)
        nothing = not answer and not raw.strip()
        assert 400 <= status < 500 or nothing, (raw[:200], answer[:200])
        for content in (SECRET, PASSWORDS, "OpenSeadragon", "slide_id", "attention", "def "):
            assert content.encode() not in answer
        assert len(answer) < 1500
        assert viewer.token.encode() not in answer
    assert get(viewer, "").status == 200
    assert get(viewer, "slides/0/tiles/8/0_0.jpg").status == 200


def test_what_it_does_answer(viewer):
    page = get(viewer, "")
    assert page.status == 200
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cache-Control"] == "no-store"
    text = page.body.decode()
    assert "<script>" not in text
    assert " style=" not in text
    for name in viewer.files:
        answer = get(viewer, name)
        assert (answer.status, answer.body) == (200, viewer.files[name][0])
    cohort = json.loads(get(viewer, "cohort.json").body)
    assert [slide["id"] for slide in cohort["slides"]] == ["a", "b"]
    for name in ("slides/0.json", "slides/1/corners", "slides/1/scores/0", "slides/0/patches/8.json"):
        assert get(viewer, name).status == 200


def test_a_head_request_has_no_body(viewer):
    status, answer = ask(viewer, request(viewer, f"/{viewer.token}/", "HEAD"))
    assert status == 200
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "LOCALHOST:1"])
def test_names_of_this_machine_with_any_port(viewer, host):
    raw = request(viewer, f"/{viewer.token}/cohort.json", "GET", host, "Connection: close")
    assert ask(viewer, raw)[0] == 200


def test_a_link_on_another_page_opens_the_viewer_and_loads_no_part_of_it(viewer):
    site = "Sec-Fetch-Site: cross-site"
    for destination, expected in (("document", 200), ("iframe", 403), ("image", 403)):
        more = (site, "Sec-Fetch-Mode: navigate", f"Sec-Fetch-Dest: {destination}", "Connection: close")
        assert ask(viewer, request(viewer, f"/{viewer.token}/", "GET", None, *more))[0] == expected


def test_on_the_loopback_interface_alone(viewer):
    assert viewer.socket.getsockname()[0] == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells the address of this machine
        except OSError:
            pytest.skip("this machine has no other interface")
        other = probe.getsockname()[0]
    if other.startswith("127."):
        pytest.skip("this machine has no other interface")
    with pytest.raises(OSError, match=r"refused|timed out"):
        socket.create_connection((other, viewer.server_address[1]), timeout=2)


def test_tokens_are_long_and_new(serve, make_heatmaps):
    heatmaps = make_heatmaps({"a": {"attention": [1.0]}})
    tokens = {serve(heatmaps).token for _ in range(3)}
    assert len(tokens) == 3
    assert min(map(len, tokens)) >= 43


def test_damaged_scores_are_said_and_end_nothing(viewer, make_heatmaps, tmp_path):
    (tmp_path / "heatmaps" / "folder1" / "scores.csv").write_text("row,col\n")
    answer = get(viewer, "slides/1.json")
    assert answer.status == 422
    assert b"scores.csv" in answer.body
    assert get(viewer, "slides/0.json").status == 200
