"""The shop's orders API, over Redis.

GET /orders lists the newest orders, POST /orders takes {"bricks": 1 to 1000},
GET /healthz answers when Redis does.
"""

import json
import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHOWN = 20


class Redis:
    """A connection to Redis that is made anew after an error."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.address = (host, int(port))
        self.file = None

    def call(self, *words):
        """Send one command and return its reply: int, str, list or None."""
        if self.file is None:
            sock = socket.create_connection(self.address, timeout=3)
            self.file = sock.makefile("rwb")
        try:
            self.file.write(b"*%d\r\n" % len(words))
            for word in words:
                data = str(word).encode()
                self.file.write(b"$%d\r\n%s\r\n" % (len(data), data))
            self.file.flush()
            return self._reply()
        except (OSError, ValueError):
            self.file = None
            raise

    def _reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.file.read(size + 2)[:-2].decode()
        return [self._reply() for _ in range(int(rest))]


local = threading.local()


def redis():
    if not hasattr(local, "redis"):
        local.redis = Redis(os.environ["REDIS"])
    return local.redis


def newest():
    orders = []
    for number in redis().call("LRANGE", "orders", 0, SHOWN - 1):
        bricks, state = redis().call("HMGET", f"order:{number}", "bricks", "state")
        orders.append({"number": int(number), "bricks": int(bricks), "state": state})
    return orders


def place(bricks):
    number = redis().call("INCR", "number")
    redis().call("HSET", f"order:{number}", "bricks", bricks, "state", "ordered")
    redis().call("LPUSH", "orders", number)
    redis().call("LPUSH", "to-ship", number)
    return {"number": number, "bricks": bricks, "state": "ordered"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, status, value):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def guarded(self, action):
        try:
            self.answer(*action())
        except (OSError, RuntimeError) as error:
            print(f"{self.command} {self.path}: {error}")
            self.answer(503, {"error": "Redis does not answer"})

    def do_GET(self):
        if self.path == "/orders":
            self.guarded(lambda: (200, newest()))
        elif self.path == "/healthz":
            self.guarded(lambda: (200, redis().call("PING")))
        else:
            self.answer(404, {"error": "not found"})

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        if size > 4096:
            self.close_connection = True
            self.answer(413, {"error": "too large"})
            return
        body = self.rfile.read(size)
        try:
            bricks = json.loads(body)["bricks"]
        except (ValueError, KeyError, TypeError):
            bricks = None
        if self.path != "/orders":
            self.answer(404, {"error": "not found"})
        elif not isinstance(bricks, int) or not 1 <= bricks <= 1000:
            self.answer(400, {"error": "bricks must be a whole number from 1 to 1000"})
        else:
            self.guarded(lambda: (201, place(bricks)))

    def log_message(self, *_):
        """Requests are in the gateway's access log."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def main():
    server = Server(("0.0.0.0", 8000), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("listening on 8000")
    server.serve_forever(poll_interval=0.05)


main()
