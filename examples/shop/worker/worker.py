"""The shop's worker: ships what was ordered, one order at a time."""

import os
import signal
import socket
import sys
import time


def connect():
    host, port = os.environ["REDIS"].rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10).makefile("rwb")


def call(file, *words):
    """Send one command and return its reply as text, or None."""
    file.write(b"*%d\r\n" % len(words))
    for word in words:
        data = str(word).encode()
        file.write(b"$%d\r\n%s\r\n" % (len(data), data))
    file.flush()
    line = file.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("Redis closed the connection")
    if line[:1] == b"$" and line != b"$-1\r\n":
        return file.read(int(line[1:]) + 2)[:-2].decode()
    return None if line == b"$-1\r\n" else line[1:-2].decode()


def work():
    redis = connect()
    print("waiting for orders")
    while True:
        number = call(redis, "RPOP", "to-ship")
        if number is None:
            time.sleep(0.2)
            continue
        call(redis, "HSET", f"order:{number}", "state", "shipped")
        print(f"shipped order {number}")


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    try:
        work()
    except OSError as error:
        print(f"Redis: {error}; again in a second")
        time.sleep(1)
