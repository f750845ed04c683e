"""Ask for every TFDS dataset by name, offline, where none is prepared.

Each must end in one line that says what is missing or why it cannot be used, before
anything is connected to, looked up or written. Names after the script's are the only
ones that are asked for.
"""

import contextlib
import io
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import InputError, JaxlabError, NetworkError, UsageError

UNSUITABLE = "cannot be used"
OUTCOMES = {
    NetworkError: ("not prepared", "--offline forbids the download"),
    InputError: ("needs files by hand", "by hand"),
    UsageError: (UNSUITABLE, "is not an image-classification dataset that can be used"),
}
NETWORK = (
    *("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"),
)


class Network:
    """Notes what asks for the network: Python by its sockets, TensorFlow by a proxy.

    TensorFlow's own connections are not seen by Python, but go to the proxy.
    """

    def __init__(self):
        """Listen as the proxy of this process, from now to its end."""
        self.asked: list[str] = []
        server = socket.create_server(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            os.environ[name] = address
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()
        sys.addaudithook(self._hear)

    def _accept(self, server: socket.socket) -> None:
        while True:
            connection, _ = server.accept()
            self.asked.append("the proxy")
            connection.close()

    def _hear(self, event: str, arguments: tuple) -> None:
        if event in NETWORK:
            self.asked.append(f"{event} {arguments}")


def outcome(name: str, folder: str) -> tuple[str, str]:
    """Return how a name ends, and the line."""
    from jaxlab.data.tfds import load_tfds

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            load_tfds(name, Preprocess(63), data_dir=folder, offline=True, log=print)
        return "ready", ""
    except JaxlabError as error:
        kind, phrase = OUTCOMES[type(error)]
        line = error.text
    except Exception as error:  # what this script looks for
        return "FAULT", f"{type(error).__name__}: {error}"
    is_line = phrase in line and "\n" not in line and len(line) < 900
    if not is_line or printed.getvalue():
        return "FAULT", f"{line!r}, printed {printed.getvalue()!r}"
    return kind, line


def main(flags: list[str]) -> None:
    """Print each name with its outcome, then the counts; raise SystemExit if wrong."""
    quick = "--quick" in flags
    flags = [name for name in flags if name != "--quick"]
    network = Network()
    from jaxlab.data.tfds_builder import known_names

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in flags or known_names():
            kind, line = outcome(name, folder)
            if network.asked or list(Path(folder).iterdir()):
                kind, line = "FAULT", f"asked {network.asked}, wrote into {folder}"
                network.asked.clear()
            counts[kind] += 1
            print(f"{name}: {kind}: {line}")
    _check_that_the_network_is_noticed(network, quick)
    print(*(f"{count} {kind}" for kind, count in counts.most_common()), sep=", ")
    if counts["FAULT"]:
        raise SystemExit(1)


def _check_that_the_network_is_noticed(network: Network, quick: bool) -> None:
    """Raise AssertionError unless Python's and TensorFlow's connections are noticed.

    TensorFlow is not asked if `quick`, because its import is slow.
    """
    with contextlib.suppress(OSError):
        socket.create_connection(("localhost", 9), 1)
    assert any("getaddrinfo" in event for event in network.asked)
    if quick:
        return
    network.asked.clear()
    from jaxlab.data.tfds_builder import tfds

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever TFDS raises in the end
            tfds().builder("aloha_mobile")

    threading.Thread(target=ask, daemon=True).start()  # it tries for minutes
    deadline = time.monotonic() + 60
    while not network.asked and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "the proxy" in network.asked
