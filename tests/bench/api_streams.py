"""Five thousand open event streams: how long other calls take beside them, and what memory they cost."""

import asyncio
import json
import subprocess
import threading
import time

import api_server

STREAMS, JOBS = 5_000, 50
EVENTS_PER_SECOND, SECONDS = 20, 20
CALLS_PER_SECOND = 100
PATHS = ["/fine_tuning/jobs/ftjob-stream000000000001", "/fine_tuning/jobs?limit=20", "/files?limit=20", "/models"]


def measure(_options):
    settings = {"server.max_connections": STREAMS + 100}
    with api_server.Cluster(settings) as server:
        fill(server, 0.1)
        alone = call_times(server)
        before = server.resident_mib()
        beside, opened, latencies, delivered = asyncio.run(streams_open(server))
    result = {
        "streams": opened, "p50_alone_ms": percentile(alone, 50), "p99_alone_ms": percentile(alone, 99),
        "p50_beside_ms": percentile(beside, 50), "p99_beside_ms": percentile(beside, 99),
        "memory_mib": round(delivered["memory_mib"] - before, 1),
        "deliveries": len(latencies), "expected_deliveries": delivered["expected"],
        "event_p50_ms": percentile(latencies, 50), "event_p99_ms": percentile(latencies, 99),
    }
    print(f"{opened} streams over {JOBS} jobs, {EVENTS_PER_SECOND} events a second,"
          f" each to {opened // JOBS} streams; {CALLS_PER_SECOND} other calls a second\n")
    print(f"other calls alone       p50 {result['p50_alone_ms']:.1f} ms, p99 {result['p99_alone_ms']:.1f} ms")
    print(f"other calls beside them p50 {result['p50_beside_ms']:.1f} ms, p99 {result['p99_beside_ms']:.1f} ms")
    print(f"written to received     p50 {result['event_p50_ms']:.0f} ms, p99 {result['event_p99_ms']:.0f} ms,"
          f" {len(latencies)} of {delivered['expected']} deliveries")
    print(f"memory of the server    {result['memory_mib']} MiB more")
    return result


def fill(server, seconds):
    arguments = [api_server.FILL, "events", str(JOBS), str(EVENTS_PER_SECOND), str(seconds)]
    subprocess.run(arguments, env=server.database_environment(), check=True)


def percentile(values, percent):
    values = sorted(values)
    return round(values[min(len(values) - 1, len(values) * percent // 100)], 2)


def call_times(server, stop=None):
    """Milliseconds of calls sent at a steady pace, from the moment that each was due."""
    times, due = [], time.perf_counter()
    end = due + SECONDS
    with server.connection() as connection:
        number = 0
        while (time.perf_counter() < end) if stop is None else not stop.is_set():
            time.sleep(max(0.0, due - time.perf_counter()))
            connection.get(PATHS[number % len(PATHS)])
            times.append((time.perf_counter() - due) * 1000)
            due += 1 / CALLS_PER_SECOND
            number += 1
    return times


async def streams_open(server):
    latencies, ready = [], asyncio.Semaphore(200)
    streams = [asyncio.create_task(stream(server, i, latencies, ready)) for i in range(STREAMS)]
    opened = await wait_until_open(streams)
    latencies.clear()
    stop, times = threading.Event(), []
    caller = threading.Thread(target=lambda: times.extend(call_times(server, stop)))
    caller.start()
    await asyncio.to_thread(fill, server, SECONDS)
    await asyncio.sleep(2)
    stop.set()
    caller.join()
    memory = server.resident_mib()
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    expected = EVENTS_PER_SECOND * SECONDS * (STREAMS // JOBS)
    return times, opened, latencies, {"memory_mib": memory, "expected": expected}


async def wait_until_open(streams):
    while True:
        await asyncio.sleep(0.5)
        for task in streams:
            if task.done():
                task.result()
        opened = sum(getattr(task, "is_open", False) for task in streams)
        if opened == len(streams):
            return opened


async def stream(server, number, latencies, ready):
    """One client: headers, then lines; notes how old each event is that arrives."""
    task = asyncio.current_task()
    async with ready:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        job = f"ftjob-stream{number % JOBS + 1:012d}"
        writer.write(
            f"GET /v1/fine_tuning/jobs/{job}/events?stream=true HTTP/1.1\r\nHost: bench\r\n"
            f"Authorization: Bearer {api_server.KEY}\r\n\r\n".encode()
        )
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"stream {number}: {status.decode()}")
        while await reader.readline() != b"\r\n":
            pass
        task.is_open = True
    try:
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                data = json.loads(line[6:])["data"] or {}
                if "written_at" in data:
                    latencies.append((time.time() - data["written_at"]) * 1000)
        raise RuntimeError(f"stream {number} was ended by the server")
    finally:
        writer.close()
