"""Serves gcp-storage-emulator in memory: python -m testing.servers.emulator PORT [ADDRESS]."""

import logging
import signal
import sys
from http.server import HTTPServer

from gcp_storage_emulator.server import create_server


def main(port: int, host: str = "127.0.0.1") -> None:
    """Print the address and serve."""
    logging.disable()
    HTTPServer.request_queue_size = 128  # with the default of 5 a burst of connections loses some
    server = create_server(host, port, in_memory=True)
    # Else every write encodes the description of all objects, which only a start from a disk reads:
    # two test files took 80 s with it, 43 s without.
    server._storage._write_config_to_file = lambda: None
    server.start()
    print(f"http://{host}:{server._api._httpd.server_address[1]}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
