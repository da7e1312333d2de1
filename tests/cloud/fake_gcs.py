"""A bucket on loopback: gcp-storage-emulator with what it lacks (threads, preconditions) and faults on demand.

`with FakeGcs() as gcs:` serves `gs://bucket`; `gcs.environ` points gcsfs, tensorstore and google-cloud-cpp at it.
"""

import contextlib
import dataclasses
import functools
import http.server
import io
import json
import re
import threading
import time
import urllib.parse

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"


@dataclasses.dataclass
class Fault:
    """Requests whose 'METHOD /path?query' (unquoted) matches `pattern` wait `delay` seconds, then get `status`.

    status 0: the true answer. times: how often, -1 for always. content: the body, an error of Google's by default.
    """

    pattern: str
    status: int = 0
    delay: float = 0.0
    times: int = -1
    message: str = "injected"
    content: bytes = b""


class _Handler(emulator.RequestHandler):
    """Lets a fault answer, else checks ifGenerationMatch=0, else the emulator."""

    def __init__(self, gcs, *args, **kwargs):
        self.gcs = gcs
        super().__init__(gcs.storage, *args, **kwargs)

    def _serve(self, method):
        line = f"{method} {urllib.parse.unquote(self.path)}"
        fault = self.gcs.seen(line + " " + self.headers.get("Range", ""))
        length = int(self.headers.get("Content-Length") or 0)
        chunked = (self.headers.get("Transfer-Encoding") or "").lower() == "chunked"
        body = emulator._read_raw_data(self) if length or chunked else b""
        if fault:
            time.sleep(fault.delay)
            if fault.status:
                self._answer(fault.status, fault.message, fault.content)
                return
        # The body was read: the emulator reads it again, from memory.
        self.rfile = io.BytesIO(body or b"")
        if chunked:
            del self.headers["Transfer-Encoding"]
        if body and not length:
            self.headers["Content-Length"] = str(len(body))
        with self.gcs.lock:
            self._spell_out_range()
            if self._exists_against_wish(body):
                self._answer(412, "conditionNotMet: the object is there")
            else:
                emulator.Router(self).handle(method)

    def _spell_out_range(self):
        """'the last N bytes' as a range that starts somewhere, which is all that the emulator knows."""
        last = re.fullmatch(r"bytes=-(\d+)", self.headers.get("Range", ""))
        name = re.search(r"/o/([^?]+)", self.path)
        if last and name:
            size = len(self.gcs.storage.get_file(BUCKET, urllib.parse.unquote(name[1])))
            self.headers.replace_header("Range", f"bytes={max(0, size - int(last[1]))}-")

    def _exists_against_wish(self, body):
        parts = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query)
        if query.get("ifGenerationMatch") != ["0"]:
            return False
        name = query.get("name", [None])[0]
        if name is None and body:
            meta = re.search(rb'\{[^{}]*"name":[^{}]*\}', body)
            name = json.loads(meta[0])["name"] if meta else None
        return name is not None and self.gcs.exists(name)

    def _answer(self, status, message, content=b""):
        content = content or json.dumps({"error": {"code": status, "message": message}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = functools.partialmethod(_serve, "GET")
    do_POST = functools.partialmethod(_serve, "POST")
    do_PUT = functools.partialmethod(_serve, "PUT")
    do_PATCH = functools.partialmethod(_serve, "PATCH")
    do_DELETE = functools.partialmethod(_serve, "DELETE")


class FakeGcs(contextlib.AbstractContextManager):
    """The server, in a thread; `requests` is what was asked, `faults` what goes wrong."""

    def __init__(self):
        self.storage = Storage(use_memory_fs=True)
        self.lock = threading.RLock()
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        buckets.create_bucket(BUCKET, self.storage)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environ(self):
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            # Nobody may look for the credentials of this machine.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
            "GOOGLE_APPLICATION_CREDENTIALS": "",
        }

    def __enter__(self):
        # A client that has read enough hangs up.
        self._server.handle_error = lambda *_: None
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def seen(self, line):
        """Notes a request; returns the fault that meets it, if any."""
        with self.lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def exists(self, name):
        with self.lock:
            return name in self.names()

    def names(self):
        """Every object's name."""
        with self.lock:
            return sorted(self.storage.objects.get(BUCKET, {}))
