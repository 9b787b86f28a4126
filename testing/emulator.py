"""Serves gcp-storage-emulator on 127.0.0.1, in memory: python -m testing.emulator PORT."""

import logging
import signal
import sys
from http.server import HTTPServer

from gcp_storage_emulator.server import create_server


def main(port: int) -> None:
    """Print the address and serve."""
    logging.disable()
    HTTPServer.request_queue_size = 128  # with the default of 5 a burst of connections loses some
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    print(f"http://127.0.0.1:{server._api._httpd.server_address[1]}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]))
