# Runs one grader. Everything that has to be opened is opened before the grader's own code runs; its output goes
# nowhere, and the answer is one line of JSON on what was standard output.
import os

os.closerange(3, 1024)

import json
import math
import sys

request = json.loads(sys.stdin.buffer.read())
out = os.dup(1)
null = os.open("/dev/null", os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(null, descriptor)
os.close(null)


def answer(value, write=os.write, end=os._exit, out=out):
    write(out, (json.dumps(value) + "\n").encode())
    end(0)


def words(error):
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "grader.py":
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    where = f" (line {lines[-1]})" if lines else ""
    if isinstance(error, SyntaxError) and error.filename == "grader.py":
        where = f" (line {error.lineno})"
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error)
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:1000] + where


def graded():
    namespace = {"__name__": "grader", "__builtins__": __builtins__}
    exec(compile(request["source"], "grader.py", "exec"), namespace)
    grade = namespace.get("grade")
    if not callable(grade):
        return {"error": "the program has no function grade(sample, item)"}
    if "item" not in request:
        return {"reward": 0.0}
    reward = grade(request["sample"], request["item"])
    # Numbers of numpy are no subclasses of float, but say what they are.
    is_number = isinstance(reward, (int, float)) or (
        hasattr(type(reward), "__float__") and type(reward).__module__ == "numpy" and getattr(reward, "ndim", 1) == 0
    )
    if not is_number:
        return {"error": f"grade returned {type(reward).__name__}, not a number"}
    reward = float(reward)
    if not math.isfinite(reward):
        return {"error": f"grade returned {reward}, which is no number to reward with"}
    return {"reward": reward}


try:
    result = graded()
except BaseException as error:
    result = {"error": words(error)}
answer(result)
