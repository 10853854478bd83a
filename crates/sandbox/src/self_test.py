# A grader that tries the ways out of its cage. It returns 1 when all are closed, and raises with the open ones.
import os


def grade(sample, item):
    parent = os.getppid()
    ways = {
        "reading files": lambda: open("/etc/passwd").read(),
        "listing folders": lambda: os.listdir("/"),
        "writing files": lambda: open("/tmp/grader-was-here", "w"),
        "the environment of the server": lambda: open(f"/proc/{parent}/environ", "rb").read(1),
        "the memory of the server": lambda: open(f"/proc/{parent}/mem", "rb"),
        "network": network,
        "sockets of this machine": local_sockets,
        "new processes": fork,
        "other programs": lambda: os.execv("/bin/sh", ["sh", "-c", "exit 0"]),
        "signals": lambda: os.kill(parent, 0),
        "higher limits": higher_limits,
        # Of itself: an open way to trace the server would stop it.
        "tracing": lambda: call(101 if os.uname().machine == "x86_64" else 117, 0, 0, 0, 0),
        "reading memory": lambda: call(310 if os.uname().machine == "x86_64" else 270, parent, 0, 0, 0, 0, 0),
        "namespaces": lambda: call(272 if os.uname().machine == "x86_64" else 97, 0x10000000),
    }
    ways_out = [name for name, way in ways.items() if is_open(way)]
    variables = set(os.environ) - {"LC_CTYPE"}
    if variables:
        ways_out.append(f"the environment ({len(variables)} variables)")
    if ways_out:
        raise RuntimeError("not closed: " + ", ".join(ways_out))
    return 1.0


def is_open(way):
    try:
        way()
    except OSError:
        return False
    return True


def network():
    import socket

    socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def local_sockets():
    import socket

    socket.socketpair()


def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    # Its end is a signal, which would stop this process once it lets itself be traced.
    os.waitpid(child, 0)


def higher_limits():
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_CPU, (10_000, 10_000))
    except ValueError as error:
        raise OSError(str(error)) from error


def call(number, *arguments):
    try:
        import ctypes
    except ImportError:
        raise OSError("no ctypes") from None
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *[ctypes.c_long(argument) for argument in arguments]) < 0:
        raise OSError(ctypes.get_errno(), "refused")
