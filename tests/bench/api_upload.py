"""A large upload to a real `finetuned up` over HTTP, against `dd conv=fsync` and SHA-256 on the same disk.

Two ways: one request (`POST /v1/files`), and parts of 64 MiB (`/v1/uploads`), one after another as the SDK sends
them and two at a time. Each round runs all of them and the baseline, one after the other, with nothing left to be
written in between; medians are compared. The client sends with `sendfile`, to take little of the machine from the
server. Memory is the peak of the server's resident memory (VmHWM, reset before) over what it was before.
"""

import concurrent.futures
import hashlib
import http.client
import json
import os
import pathlib
import statistics
import subprocess
import time

import api_server

MIB = 1024 * 1024
PART = 64 * MIB
BOUNDARY = "bench-boundary"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def measure(options):
    settings = {"server.max_file_bytes": f"{2 * options.mib} MiB"}
    with api_server.Up(settings) as server:
        source = server.folder / "source.jsonl"
        write(source, options.mib)
        expected = sha256(source)
        ways = {
            "one request": lambda: one_request(server, source),
            "parts, one at a time": lambda: in_parts(server, source, 1),
            "parts, two at a time": lambda: in_parts(server, source, 2),
        }
        # A small file first: pools, plans and threads are there before the measurement.
        warm = server.folder / "warm.jsonl"
        write(warm, 16)
        delete(server, one_request(server, warm))
        delete(server, in_parts(server, warm, 1))
        seconds, memory = {"dd + SHA-256": []}, {}
        for _ in range(options.repeats):
            seconds["dd + SHA-256"].append(baseline(source))
            for name, way in ways.items():
                os.sync()
                before = server.resident_mib()
                server.reset_peak()
                began = time.perf_counter()
                file = way()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
                memory[name] = max(memory.get(name, 0), server.peak_mib() - before)
                check(server, file, source, expected)
                delete(server, file)
    return report(options, seconds, memory)


def report(options, seconds, memory):
    base = statistics.median(seconds["dd + SHA-256"])
    result = {"mib": options.mib, "rounds": options.repeats}
    print(f"{'':<24} {'seconds':>8} {'MiB/s':>8} {'ratio':>6} {'memory':>11}")
    for name, times in seconds.items():
        took = statistics.median(times)
        grown = f"{memory[name]:+8.1f} MiB" if name in memory else ""
        print(f"{name:<24} {took:>8.2f} {options.mib / took:>8.0f} {base / took:>6.2f} {grown:>11}")
        result[name] = {
            "seconds": [round(t, 3) for t in times], "mib_per_s": round(options.mib / took, 1),
            "ratio": round(base / took, 3), "memory_mib": round(memory.get(name, 0), 1),
        }
    return result


def write(path, mib):
    """Bytes that no disk can squeeze, and that differ everywhere."""
    block = os.urandom(MIB)
    with open(path, "wb") as file:
        for n in range(mib):
            file.write(n.to_bytes(8, "big") + block[8:])
        os.fsync(file.fileno())


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def baseline(source):
    """Seconds of a copy that is durable, and of its hash."""
    os.sync()
    copy = source.with_name("copy")
    began = time.perf_counter()
    subprocess.run(
        ["dd", f"if={source}", f"of={copy}", "bs=1M", "conv=fsync"], check=True, stderr=subprocess.DEVNULL
    )
    sha256(copy)
    took = time.perf_counter() - began
    copy.unlink()
    return took


def one_request(server, source):
    fields = [("purpose", "fine-tune")]
    return post(server, "/files", form(fields, "file", source, 0, source.stat().st_size))["id"]


def in_parts(server, source, at_once):
    size = source.stat().st_size
    body = {"filename": source.name, "purpose": "fine-tune", "bytes": size, "mime_type": "application/jsonl"}
    upload = post_json(server, "/uploads", body)["id"]

    def send(begin):
        length = min(PART, size - begin)
        return post(server, f"/uploads/{upload}/parts", form([], "data", source, begin, length))["id"]

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        parts = list(pool.map(send, range(0, size, PART)))
    return post_json(server, f"/uploads/{upload}/complete", {"part_ids": parts})["file"]["id"]


def form(fields, name, source, begin, length):
    """What stands before the content, the content as (file, begin, length), and what stands behind it."""
    head = "".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields
    )
    head += (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{source.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode(), (source, begin, length), f"\r\n--{BOUNDARY}--\r\n".encode()


def post(server, path, content):
    head, (source, begin, length), tail = content
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.putrequest("POST", f"/v1{path}")
    connection.putheader("Authorization", f"Bearer {api_server.KEY}")
    connection.putheader("Content-Type", FORM_TYPE)
    connection.putheader("Content-Length", str(len(head) + length + len(tail)))
    connection.endheaders(head)
    with open(source, "rb") as file:
        connection.sock.sendfile(file, begin, length)
    connection.send(tail)
    return answer(connection, path)


def post_json(server, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    headers = {"Authorization": f"Bearer {api_server.KEY}", "Content-Type": "application/json"}
    connection.request("POST", f"/v1{path}", json.dumps(body), headers)
    return answer(connection, path)


def answer(connection, path):
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    if reply.status != 200:
        raise RuntimeError(f"POST {path}: {reply.status} {body.decode()}")
    return json.loads(body)


def check(server, file, source, expected):
    """Read back, it is what was sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    headers = {"Authorization": f"Bearer {api_server.KEY}"}
    connection.request("GET", f"/v1/files/{file}/content", headers=headers)
    got = hashlib.file_digest(connection.getresponse(), "sha256").hexdigest()
    connection.close()
    if got != expected:
        raise RuntimeError(f"{file} is not {source}")


def delete(server, file):
    """Removes a file and waits until its content is gone, so that the disk is idle."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("DELETE", f"/v1/files/{file}", headers={"Authorization": f"Bearer {api_server.KEY}"})
    if connection.getresponse().status != 200:
        raise RuntimeError(f"{file} could not be deleted")
    connection.close()
    blobs = pathlib.Path(server.folder) / "data" / "blobs"
    while any(path.is_file() for path in blobs.rglob("*")):
        time.sleep(0.1)
