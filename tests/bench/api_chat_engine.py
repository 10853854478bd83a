#!/usr/bin/env python3
"""An engine that says one token every ten milliseconds: the time at which it said it.

It speaks `domain::engine`'s protocol and computes nothing, so that what is measured is the way of a token and
not the making of it. `CLOCK_MONOTONIC` is the same for all processes of a machine.
"""

import json
import sys
import threading
import time

INTERVAL = 0.010
LOCK = threading.Lock()


def say(reply):
    with LOCK:
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def generate(request):
    tell = lambda **event: say({"reply": "generation", "id": request["id"], "event": event})
    tokens = request["question"]["sampling"]["max_tokens"] or 16
    tell(event="started", prompt_tokens=1)
    due = time.monotonic()
    for _ in range(tokens):
        due += INTERVAL
        time.sleep(max(0, due - time.monotonic()))
        tell(event="delta", index=0, text=f"{time.monotonic_ns()} ")
    tell(event="finished", index=0, reason="stop")
    tell(event="done", prompt_tokens=1, completion_tokens=tokens)


def main():
    say({"reply": "ready", "model_type": "llama", "parameters": 1, "device": "cpu", "context_length": 8192})
    for line in sys.stdin:
        command = json.loads(line)
        if command["command"] == "generate":
            threading.Thread(target=generate, args=[command["request"]], daemon=True).start()


main()
