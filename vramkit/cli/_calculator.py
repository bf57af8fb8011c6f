"""Serve a page on this machine that estimates the memory of large models.

Nothing leaves the machine: the page loads nothing from elsewhere, and the server listens on this
machine only unless another address is given. Exit status: 0 when it was stopped, 2 for bad input or
usage.
"""

import argparse
import ipaddress
import socket

from vramkit.cli._arguments import integer
from vramkit.cli._output import note
from vramkit.cli._status import Status
from vramkit.errors import InvalidArgumentError

_LOCAL = ("localhost", "127.0.0.1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``vramkit calculator``."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=integer(1, 65_535), default=8800, help="port to listen on (default: 8800)"
    )
    parser.add_argument(
        "--open", action="store_true", help="open the page in the default web browser"
    )


def run(arguments: argparse.Namespace) -> Status:
    """Run ``vramkit calculator`` until it is interrupted; returns its exit status."""
    from vramkit.estimate.config import _page

    app = _page.create_app(allowed_hosts(arguments.host))
    try:
        import uvicorn
    except ImportError as err:
        raise _page.missing() from err
    _check_address(arguments.host, arguments.port)
    shown = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    address = f"http://{shown}:{arguments.port}/"
    note(f"vramkit calculator: {address} (stop with Ctrl-C)")
    if arguments.open:
        import webbrowser

        webbrowser.open(address)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")
    return Status.OK


def _check_address(host: str, port: int) -> None:
    """Tell a port that is in use, or an address of another machine, before anything is opened."""
    try:
        socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ).close()
    except OSError as err:
        raise InvalidArgumentError(
            f"cannot listen on port {port} of {host}: {err.strerror or err}; choose another --port "
            "or --host"
        ) from err


def allowed_hosts(host: str) -> tuple[str, ...]:
    """The names under which browsers may ask for the page.

    Args:
        host: The address to listen on; one that stands for all addresses allows every name.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return (*_LOCAL, host)
    if address.is_unspecified:
        return ("*",)
    # Browsers write IPv6 addresses in brackets, and as short as can be.
    return (*_LOCAL, f"[{address}]" if address.version == 6 else host)
