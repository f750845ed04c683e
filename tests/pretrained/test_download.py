"""Test downloads from a local server that produces many kinds of network fault.

It is one file because nearly all of these tests share the server fixture below and the
faulty behaviours that it can be given.
"""

import contextlib
import gc
import gzip
import hashlib
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from pretrained import DownloadError, IntegrityError, download
from pretrained.disk import PARTIAL
from pretrained.sources import SOURCES
from tests.pretrained.server import CONTENT, SIZE, Server, whole

KEPT = download._CHUNK  # bytes; an interrupted transfer loses less


def without_ranges(handler):
    handler.answer(body=CONTENT)


def cut(fraction):
    def behaviour(handler):
        start = handler.asked_from()
        body = CONTENT[start : max(start, int(fraction * SIZE))]
        if not start:
            return handler.answer(body=body, length=SIZE)
        span = f"bytes {start}-{SIZE - 1}/{SIZE}"
        handler.answer(206, body, length=SIZE - start, Content_Range=span)

    return behaviour


def hang_up(handler):
    pass  # without sending a status line


def stall_before_headers(handler):
    time.sleep(2)


def stall_in_body(handler):
    handler.answer(body=CONTENT[: SIZE // 2], length=SIZE)
    handler.wfile.flush()
    time.sleep(2)


def flipped(handler):
    damaged = bytearray(CONTENT)
    damaged[SIZE // 3] ^= 1
    handler.answer(body=bytes(damaged))


def page(handler):
    handler.answer(body=b"<html>Log in here</html>", Content_Type="text/html")


def page_without_length(handler):
    handler.answer(body=b"<html>Log in here</html>", length="none")


def endless(handler):
    handler.answer(body=CONTENT + CONTENT, length="none")


def wrong_length(length):
    return lambda handler: handler.answer(body=CONTENT, length=length)


def status(code):
    return lambda handler: handler.answer(code, b"no")


def wrong_range(handler):
    if not handler.asked_from():
        return cut(0.5)(handler)
    handler.answer(206, CONTENT[:1000], Content_Range=f"bytes 0-999/{SIZE}")


def other_file_s_range(handler):
    if not handler.asked_from():
        return cut(0.5)(handler)
    start = handler.asked_from()
    span = f"bytes {start}-{SIZE}/{SIZE + 1}"
    handler.answer(206, CONTENT[start:] + b"!", Content_Range=span)


def redirect_loop(handler):
    handler.answer(302, Location=handler.path)


def redirect_to_a_file(handler):
    handler.answer(302, Location="file:///etc/hostname")


def garbage(handler):
    handler.wfile.write(b"\x00\xff this is not HTTP\r\n\r\n")


def zipped(handler):
    handler.answer(body=gzip.compress(CONTENT), length="none", Content_Encoding="gzip")


def broken_zip(handler):
    handler.answer(body=CONTENT, Content_Encoding="gzip")


def unpacks_to_more(handler):
    body = gzip.compress(bytes(30 * SIZE))
    handler.answer(body=body + bytes(SIZE - len(body)), Content_Encoding="gzip")


def redirect(target):
    return lambda handler: handler.answer(302, Location=target)


def negative_chunk(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.send_header("Content-Length", str(SIZE))
    handler.end_headers()
    handler.wfile.write(b"-5\r\nabc\r\n")


def long_reason(handler):
    handler.wfile.write(b"HTTP/1.0 404 " + b"x" * 60_000 + b"\r\n\r\n")


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.5)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def source_of(url, content=CONTENT):
    digest = hashlib.sha256(content).hexdigest()
    return SOURCES["alexnet"]["imagenet"]._replace(
        url=url, bytes=len(content), sha256=digest
    )


def content_of(source, **kwargs):
    with download.open_published(source, **kwargs) as file:
        return file.read()


FAULTS = {
    "cut at 0 %": (
        cut(0),
        DownloadError,
        "0 of 1,000,000 bytes are downloaded after 5 attempts",
    ),
    "cut at 1 %": (cut(0.01), DownloadError, "after 5 attempts"),
    "cut at 50 %": (cut(0.5), DownloadError, "after 5 attempts"),
    "cut at 99 %": (cut(0.99), DownloadError, "run again to continue from there"),
    "hangs up": (hang_up, DownloadError, "after 5 attempts"),
    "stalls before headers": (stall_before_headers, DownloadError, "timed out"),
    "stalls in the body": (stall_in_body, DownloadError, "timed out"),
    "a flipped bit": (flipped, IntegrityError, "SHA-256 checksum mismatch: received"),
    "an HTML page": (page, DownloadError, "offers 24 bytes (text/html), expected"),
    "a page of unknown length": (page_without_length, DownloadError, "an unknown num"),
    "endless": (endless, DownloadError, "offers an unknown number of bytes"),
    "gzip": (zipped, DownloadError, "offers an unknown number of bytes"),
    "more behind gzip": (
        unpacks_to_more,
        DownloadError,
        "sends more than the published",
    ),
    "too short a length": (wrong_length(999), DownloadError, "offers 999 bytes"),
    "too long a length": (wrong_length(SIZE + 1), DownloadError, "offers 1000001"),
    "403": (status(403), DownloadError, "the server answers 403 Forbidden"),
    "404": (status(404), DownloadError, "the server answers 404 Not Found"),
    "429": (status(429), DownloadError, "answers 429 Too Many Requests"),
    "500": (status(500), DownloadError, "answers 500 Internal Server Error"),
    "503": (status(503), DownloadError, "answers 503 Service Unavailable"),
    "416": (status(416), DownloadError, "cannot continue at byte 0 (416"),
    "a wrong range": (wrong_range, DownloadError, "closed early; 458,752 of"),
    "another file's range": (
        other_file_s_range,
        DownloadError,
        "early; 458,752",
    ),
    "a redirect loop": (redirect_loop, DownloadError, "30 redirects"),
    "a redirect to a file": (redirect_to_a_file, DownloadError, "file:///etc/hostname"),
    "not HTTP": (garbage, DownloadError, "this is not HTTP; 0 of"),
    "not gzip": (broken_zip, DownloadError, "after 5 attempts"),
    "a redirect to no address": (redirect("http://[::1"), DownloadError, "Invalid"),
    "a redirect to two dots": (redirect("http://a..b/"), DownloadError, "a..b"),
    "a redirect to noise": (
        redirect("http://\xff\xfe/"),
        DownloadError,
        "weights.pth: ",
    ),
    "a negative chunk": (negative_chunk, DownloadError, "weights.pth: "),
    "a reason of 60 kB": (long_reason, DownloadError, "answers 404 x"),
}


def connections_to(server):
    """Return this process's open sockets that are connected to the server."""
    found = []
    for one in gc.get_objects():
        if type(one) is socket.socket and one.fileno() != -1:
            with contextlib.suppress(OSError):  # not connected
                found += [one] if one.getpeername()[1] == server.server_port else []
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_leaves_nothing_but_earlier_good_files(server, fault):
    behaviour, error, message = FAULTS[fault]
    good = source_of(server.url.replace("weights.pth", "good.pth"))
    assert content_of(good) == CONTENT
    server.behaviours = [behaviour]
    source = source_of(server.url)
    gc.disable()  # sockets that only garbage collection would close stay open
    try:
        with pytest.raises(error) as raised:
            download.open_published(source)
        assert not connections_to(server)
    finally:
        gc.enable()
    assert type(raised.value) is error and raised.value.exit_code == 4
    line = str(raised.value)
    assert message in line and line.isprintable() and len(line) < 600
    assert not download.cached_path(source).exists()
    asked = len(server.ranges)
    assert content_of(good) == CONTENT
    assert len(server.ranges) == asked  # it was read from the cache
    # The next run, with a working network, downloads the file.
    server.behaviours = [whole]
    assert content_of(source) == CONTENT
    files = {path.name for path in download.cached_path(source).parent.iterdir()}
    assert files == {
        *("good.pth", "good.pth.lock"),
        *("weights.pth", "weights.pth.lock"),
    }


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_after_a_cut_only_the_rest_is_transferred(server, fraction):
    server.behaviours = [cut(fraction), whole]
    assert content_of(source_of(server.url)) == CONTENT
    assert server.sent <= SIZE + KEPT
    kept = int(fraction * SIZE) // KEPT * KEPT
    assert server.ranges == [None, f"bytes={kept}-" if kept else None]


def test_a_later_run_continues_an_earlier_one_s_partial_file(server):
    source = source_of(server.url)
    server.behaviours = [cut(0.5)]
    with pytest.raises(DownloadError):
        download.open_published(source)
    server.behaviours, server.sent = [whole], 0
    assert content_of(source) == CONTENT
    assert server.sent <= SIZE // 2 + KEPT


def test_a_server_without_ranges_sends_all_again(server):
    server.behaviours = [cut(0.5), without_ranges]
    assert content_of(source_of(server.url)) == CONTENT


@pytest.mark.parametrize("before", [[], [cut(0.5)]])
def test_a_page_in_between_costs_nothing_that_was_held(server, before):
    source = source_of(server.url)
    server.behaviours = [*before, page_without_length, whole]
    with pytest.raises(DownloadError, match="a login page may have replaced"):
        download.open_published(source)
    server.sent = 0
    assert content_of(source) == CONTENT
    assert server.sent <= (SIZE // 2 if before else SIZE) + KEPT


def test_pieces_that_do_not_fit_together_are_fetched_once_more_in_one(server):
    def other_half(handler):
        start = handler.asked_from()
        span = f"bytes {start}-{SIZE - 1}/{SIZE}"
        handler.answer(206, bytes(SIZE - start), Content_Range=span)

    server.behaviours = [cut(0.5), other_half, whole]
    assert content_of(source_of(server.url)) == CONTENT
    assert server.ranges[2] is None
    server.behaviours = [cut(0.5), other_half]  # no third attempt
    with pytest.raises(IntegrityError):
        download.open_published(source_of(server.url.replace("weights", "other")))


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again_after_a_growing_pause(server, code, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.behaviours = [status(code), status(code), status(code), whole]
    assert content_of(source_of(server.url)) == CONTENT
    assert pauses == [download.BACKOFF * factor for factor in (1, 2, 4)]


def test_a_range_of_unknown_total_is_accepted(server):
    def unknown_total(handler):
        start = handler.asked_from()
        span = f"bytes {start}-{SIZE - 1}/*"
        handler.answer(206, CONTENT[start:], Content_Range=span)

    server.behaviours = [cut(0.5), unknown_total]
    assert content_of(source_of(server.url)) == CONTENT
    assert server.sent <= SIZE + KEPT


def test_a_server_that_accepts_no_connection_ends_in_time(server, monkeypatch):
    monkeypatch.setattr(download, "CONNECT_TIMEOUT", 0.05)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]  # fill the queue
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        with pytest.raises(DownloadError, match="timed out"):
            download.open_published(source_of(f"http://127.0.0.1:{port}/weights.pth"))
        for one in waiting:
            one.close()


@pytest.mark.parametrize("log", [True, False])
def test_a_terminal_shows_a_bar_with_size_and_speed(server, log):
    def slowly(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(SIZE))
        handler.end_headers()
        for start in range(0, SIZE, SIZE // 4):
            handler.wfile.write(CONTENT[start : start + SIZE // 4])
            time.sleep(0.15)

    server.behaviours = [slowly]
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    script = (
        "from pretrained import download\nfrom pretrained.sources import Source\n"
        f"source = {source_of(server.url)!r}\n"
        f"download.open_published(source, log={log}).close()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=child
    )
    assert process.wait() == 0
    os.write(child, b"|")  # the read does not wait for what was not written
    shown = os.read(parent, 100_000).decode()
    os.close(parent)
    os.close(child)
    if not log:
        assert shown == "|"
        return
    assert "weights.pth:" in shown and "/1.00M [" in shown and "B/s]" in shown


@pytest.mark.parametrize("length", [SIZE // 2, SIZE, SIZE + 5])
def test_a_partial_file_of_something_else_is_dropped(server, length):
    source = source_of(server.url)
    partial = download.cached_path(source)
    partial = partial.with_name(partial.name + ".partial")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(length))
    assert content_of(source) == CONTENT
    assert not partial.exists()


def test_a_damaged_cached_file_is_noticed_and_replaced_only_by_a_good_one(
    server, capfd
):
    source = source_of(server.url)
    path = download.cached_path(source)
    path.parent.mkdir(parents=True)
    damaged = CONTENT[:-1] + b"?"
    path.write_bytes(damaged)
    with pytest.raises(
        IntegrityError, match="is not the published file, and it cannot be downloaded"
    ):
        download.open_published(source, offline=True)
    server.behaviours = [status(404)]
    with pytest.raises(DownloadError):
        download.open_published(source)
    assert path.read_bytes() == damaged
    server.behaviours = [whole]
    assert content_of(source) == CONTENT
    assert "is damaged; downloading it again" in capfd.readouterr().err


def test_a_silent_download_prints_nothing(server, capfd):
    source = source_of(server.url)
    path = download.cached_path(source)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    assert content_of(source, log=False) == CONTENT
    assert capfd.readouterr() == ("", "")


def test_the_size_is_announced_before_the_transfer(server, capfd):
    server.behaviours = [status(404)]
    source = source_of(server.url)
    with pytest.raises(DownloadError):
        download.open_published(source)
    first = capfd.readouterr().err.splitlines()[0]
    assert first == (
        f"downloading {source.title}: 1 MB from 127.0.0.1 to "
        f"{download.cached_path(source)}"
    )


def test_no_server_and_no_such_host_are_told_root_cause(server):
    server.server_close()
    with pytest.raises(DownloadError, match="Connection refused; 0 of 1,000,000 bytes"):
        download.open_published(source_of(server.url))
    source = source_of("http://no-such-host.invalid/weights.pth")
    with pytest.raises(DownloadError, match="(?i)name.*; 0 of 1,000,000 bytes"):
        download.open_published(source)


def test_a_read_only_cache_is_named(server, tmp_path):
    if os.geteuid() == 0:  # root ignores permissions; use a file in the way
        (tmp_path / "home").write_text("")
    else:
        (tmp_path / "home").mkdir(mode=0o500)
    with pytest.raises(DownloadError, match="set JAXLAB_HOME to another folder"):
        download.open_published(source_of(server.url))


def test_a_good_file_in_a_read_only_cache_is_used(server):
    source = source_of(server.url)
    assert content_of(source) == CONTENT
    folder = download.cached_path(source).parent
    (folder / (source.file_name + ".lock")).unlink()
    folder.chmod(0o500)
    assert content_of(source) == CONTENT
    assert [path.name for path in folder.iterdir()] == [source.file_name]
    folder.chmod(0o700)


def test_too_little_space_is_told_before_the_transfer(server, monkeypatch):
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda _: usage._replace(free=1e5)
    )
    with pytest.raises(DownloadError, match="0 MB are free; check the folder and the"):
        download.open_published(source_of(server.url))
    assert server.ranges == []


def in_another_process(source, code):
    """Run code in a new Python process with `source` defined and JAXLAB_HOME set."""
    script = (
        "from pretrained import download\nfrom pretrained.sources import Source\n"
        f"source = {source!r}\n{code}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


READ = "print(len(download.open_published(source).read()))"


def test_a_full_disk_keeps_what_fits_for_the_next_run(server):
    source = source_of(server.url)
    half = SIZE // 2
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({half},) * 2)"
    process = in_another_process(
        source,
        f"{limit}\ntry: download.open_published(source)\n"
        "except Exception as error: print(type(error).__name__, error)",
    )
    out, err = process.communicate()
    assert "DownloadError" in out and "File too large; check the folder" in out, err
    assert not download.cached_path(source).exists()
    server.sent = 0
    assert content_of(source) == CONTENT
    assert server.sent <= half + KEPT


def test_two_processes_at_once_both_succeed_and_one_downloads(server):
    def slowly(handler):
        time.sleep(1)
        whole(handler)

    server.behaviours = [slowly]
    source = source_of(server.url)
    both = [in_another_process(source, READ) for _ in range(2)]
    results = [process.communicate() for process in both]
    assert [out for out, _ in results] == [f"{SIZE}\n"] * 2
    assert len(server.ranges) == 1
    assert sum("waiting for another process" in err for _, err in results) == 1


def test_a_killed_download_continues(server):
    server.behaviours = [stall_in_body, whole]
    source = source_of(server.url)
    process = in_another_process(source, READ)
    partial = download.cached_path(source)
    partial = partial.with_name(partial.name + ".partial")
    while not partial.exists() or partial.stat().st_size < SIZE // 2 - KEPT:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not download.cached_path(source).exists()
    assert content_of(source) == CONTENT
    assert server.ranges[1] is not None


def test_offline_opens_no_socket(server):
    source = source_of(server.url)
    watch = (
        "import sys\n"
        "events = []\n"
        "sys.addaudithook(lambda name, _: events.append(name))\n"
    )
    ask = (
        "try: print(len(download.open_published(source, offline=True).read()))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print([event for event in events if event.startswith('socket')])\n"
    )
    process = in_another_process(source, watch + ask)
    out, _ = process.communicate()
    first, sockets = out.splitlines()
    assert first.startswith("DownloadError") and source.url in first
    assert sockets == "[]"
    # A cached file is read without a socket; as a control, a download does open one.
    assert content_of(source) == CONTENT
    out, _ = in_another_process(source, watch + ask).communicate()
    assert out.splitlines() == [str(SIZE), "[]"]
    download.cached_path(source).unlink()
    online = watch + ask.replace(", offline=True", "")
    out, _ = in_another_process(source, online).communicate()
    assert "socket.connect" in out


def little_known(url):
    """Return a source of which only bounds of the size and 8 digits are known."""
    source = source_of(url)
    bounds = (SIZE - 300, SIZE + 700)
    return source._replace(bytes=bounds, sha256=source.sha256[:8])


def test_a_little_known_file_is_checked_by_what_is_known_then_by_its_own_hash(
    server, capfd
):
    """A transfer that breaks goes on, though the size is only known in bounds."""
    server.behaviours = [cut(0.5), cut(0.8), whole]
    source = little_known(server.url)
    assert content_of(source) == CONTENT
    assert [header is None for header in server.ranges] == [True, False, False]
    said = capfd.readouterr().err
    assert f"with the published first digits of its SHA-256, {source.sha256}; " in said
    path = download.cached_path(source)
    record = path.with_name(f"{path.name}.sha256")
    assert record.read_text().strip() == hashlib.sha256(CONTENT).hexdigest()
    assert content_of(source, offline=True) == CONTENT
    other = source.sha256 + "0" * 56
    record.write_text(other)
    with pytest.raises(IntegrityError, match="is not the published file"):
        content_of(source, offline=True)
    server.behaviours = [whole]
    with pytest.raises(IntegrityError, match=f"expected {other}, as in "):
        content_of(source)


def test_a_little_known_file_that_lies_in_the_cache_is_recorded(server):
    source = little_known(server.url)
    path = download.cached_path(source)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert content_of(source, offline=True) == CONTENT
    assert path.with_name(f"{path.name}.sha256").exists() and not server.ranges


@pytest.mark.parametrize("text", ["", "0123", "\u00e9" * 64])
def test_a_damaged_record_is_written_again(text, server, capfd):
    source = little_known(server.url)
    assert content_of(source) == CONTENT
    path = download.cached_path(source)
    record = path.with_name(f"{path.name}.sha256")
    record.write_text(text, "utf-8")
    capfd.readouterr()
    assert content_of(source, offline=True) == CONTENT
    assert record.read_text().strip() == hashlib.sha256(CONTENT).hexdigest()
    assert "first digits of its SHA-256" in capfd.readouterr().err


def test_a_complete_partial_file_of_unknown_size_is_taken(server):
    """The server answers that no byte is missing."""
    source = little_known(server.url)
    path = download.cached_path(source)
    path.parent.mkdir(parents=True)
    path.with_name(path.name + PARTIAL).write_bytes(CONTENT)
    server.behaviours = [
        lambda handler: handler.answer(416, Content_Range=f"bytes */{SIZE}")
    ]
    assert content_of(source) == CONTENT
    assert server.ranges == [f"bytes={SIZE}-"]


@pytest.mark.parametrize(
    ("behaviour", "kind", "message"),
    [
        (wrong_length(SIZE + 701), DownloadError, "expected 999,700 to 1,000,700"),
        (wrong_length(SIZE - 301), DownloadError, "the server offers 999699 bytes"),
        (flipped, IntegrityError, "SHA-256 checksum mismatch"),
        (cut(0.5), DownloadError, "of 999,700 to 1,000,700 bytes are downloaded"),
    ],
)
def test_a_little_known_file_with_other_content_is_refused(
    behaviour, kind, message, server
):
    server.behaviours = [behaviour]
    source = little_known(server.url)
    with pytest.raises(kind, match=message):
        content_of(source)
    path = download.cached_path(source)
    assert not path.exists()
    assert not path.with_name(f"{path.name}.sha256").exists()


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXLAB_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "jaxlab"
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "other"))
    path = download.cached_path(SOURCES["alexnet"]["imagenet"])
    assert path == tmp_path / "other" / "weights" / "alexnet-owt-7be5be79.pth"
    monkeypatch.setenv("JAXLAB_HOME", "~/lab")
    assert download.cache_folder() == Path.home() / "lab"


def test_the_table_is_consistent():
    for source in (each for found in SOURCES.values() for each in found.values()):
        assert len(bytes.fromhex(source.sha256)) in (4, 32)
        # torch puts the start of the SHA-256 into the file name
        assert source.file_name.endswith(f"-{source.sha256[:8]}.pth")
        assert source.url.startswith("https://")
        least, most = download._sizes(source)
        assert least <= most < least + 2000
        # The first wide ResNets are published in float16.
        is_half = source.network.startswith("wide") and source.title.endswith("V1")
        assert least > (2 if is_half else 4) * source.parameters
