"""Lists and single objects at a million rows against a thousand: the same calls, the same server, in one run."""

import subprocess
import time

import api_server

SMALL, LARGE = 1_000, 1_000_000
REPEATS = 40

MIDDLE_JOB, MIDDLE_FILE = "ftjob-bench{:013d}", "file-bench{:014d}"


def calls(rows):
    """What is asked, in a database with `rows` of each kind; the cursors point into the middle."""
    job, file = MIDDLE_JOB.format(rows // 2), MIDDLE_FILE.format(rows // 2)
    first = MIDDLE_JOB.format(1)
    return {
        "retrieve a job": f"/fine_tuning/jobs/{job}",
        "list jobs": "/fine_tuning/jobs?limit=20",
        "list jobs, from the middle": f"/fine_tuning/jobs?limit=20&after={job}",
        "list jobs, frequent metadata": "/fine_tuning/jobs?limit=20&metadata[team]=usual",
        "list jobs, rare metadata": f"/fine_tuning/jobs?limit=20&metadata[number]={rows // 1000 * 1000}",
        "list jobs, metadata of none": "/fine_tuning/jobs?limit=20&metadata[team]=nobody",
        "list jobs without metadata": "/fine_tuning/jobs?limit=20&metadata=null",
        "retrieve a file": f"/files/{file}",
        "list files": "/files?limit=20",
        "list files, from the middle": f"/files?limit=20&after={file}",
        "list files, oldest first": "/files?limit=20&order=asc",
        "list files of a rare purpose": "/files?limit=20&purpose=batch",
        "list files of no purpose": "/files?limit=20&purpose=vision",
        "list events of a long job": f"/fine_tuning/jobs/{first}/events?limit=20",
    }


def measure(_options):
    with api_server.Cluster() as server:
        figures = {}
        for rows in (SMALL, LARGE):
            began = time.monotonic()
            subprocess.run([api_server.FILL, "rows", str(rows)], env=server.database_environment(), check=True)
            print(f"{rows} rows of each kind: {time.monotonic() - began:.0f} s to fill")
            figures[rows] = {name: milliseconds(server, path) for name, path in calls(rows).items()}
    print(f"\n{'call':<32} {'at 1,000':>10} {'at 1,000,000':>13} {'ratio':>6}")
    result = {}
    for name, small in figures[SMALL].items():
        large = figures[LARGE][name]
        print(f"{name:<32} {small:>7.2f} ms {large:>10.2f} ms {large / small:>6.2f}")
        result[name] = {"small_ms": round(small, 3), "large_ms": round(large, 3), "ratio": round(large / small, 2)}
    return result


def milliseconds(server, path):
    """The median; the first calls warm the plans and the cache."""
    times = []
    with server.connection() as connection:
        for _ in range(REPEATS):
            began = time.perf_counter()
            connection.get(path)
            times.append(time.perf_counter() - began)
    times = sorted(times[REPEATS // 4:])
    return times[len(times) // 2] * 1000
