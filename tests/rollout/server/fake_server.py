"""Stands in for vLLM: answers /health, and has a child that leaves its session, as an engine might.

usage: fake_server.py PORT NOTE [fail] [stubborn] [orphan]     NOTE: a file for the pid and shared memory of the child
"""

from __future__ import annotations

import http.server
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    """200 for everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def child(note: str, stubborn: bool) -> None:
    """Hold a piece of shared memory and wait."""
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    segment = Path(f"/dev/shm/psm_fake{os.getpid()}")
    segment.write_bytes(bytes(4096))
    with segment.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 4096)
    Path(note + ".tmp").write_text(json.dumps({"pid": os.getpid(), "segment": str(segment)}))
    os.replace(note + ".tmp", note)
    time.sleep(120)
    memory.close()


def main() -> None:
    port, note, *flags = sys.argv[1:]
    if "child" in flags:
        return child(note, "stubborn" in flags)
    print("loading the model", flush=True)
    if "fail" in flags:
        raise ValueError("no such architecture")
    if "stubborn" in flags:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "orphan" in flags:  # a process whose parent is dead, and that ends
        subprocess.run(["/bin/sh", "-c", "sleep 0.2 &"], check=True)
    subprocess.Popen([sys.executable, "-S", __file__, port, note, "child", *flags], start_new_session=True)
    while not Path(note).exists():
        time.sleep(0.01)
    http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
    return None


if __name__ == "__main__":
    main()
