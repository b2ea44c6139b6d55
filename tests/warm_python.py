"""A Python that has loaded PyTorch already: each program is a process of its own, without the wait.

Nine tenths of a small run are imports. Here a process imports what isn't this code's own and forks
once for each program; `executable` stands in for `sys.executable`, also in what a program starts.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
if len(sys.argv) < 2 or sys.argv[1].startswith("-") and sys.argv[1] != "-m":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({place!r})
socket.send_fds(server, [b"x"], [0, 1, 2])
request = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}}
server.sendall(json.dumps(request).encode() + b"\\n")
sys.exit(int(server.recv(16) or b"1"))
"""


@contextmanager
def warm_python(folder: Path) -> Iterator[str]:
    """Yield the path of an executable to call as `python SCRIPT …`, for as long as the block lasts.

    folder: a short path, as a socket's name is. `-m MODULE …` goes too; `-c` to the real one.
    """
    place, client = folder / "socket", folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, place=str(place)))
    client.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen(64)
        command = [sys.executable, __file__, str(server.fileno()), str(client)]
        process = subprocess.Popen(command, pass_fds=[server.fileno()])
        try:
            yield str(client)
        finally:
            process.kill()
            process.wait()


def serve(server: socket.socket, executable: str) -> None:
    """Fork for each connection; the fork's fork is the program, and the fork tells its status."""
    import torchvision  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection = server.accept()[0]
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        streams = socket.recv_fds(connection, 1, 3)[1]
        request = json.loads(connection.makefile().readline())
        program = os.fork()
        if not program:
            connection.close()
            server.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            # New ones, as the server's may be files and these pipes.
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            sys.exit(run(executable=executable, **request))
        status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        connection.sendall(str(status % 256).encode())
        os._exit(0)


def run(argv: list[str], cwd: str, environment: dict[str, str], executable: str) -> None:
    """Run a script, or a module, as Python itself would."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    module = argv[0] == "-m"
    sys.argv, sys.executable = argv[1:] if module else argv, executable
    further = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [cwd if module else str(Path(argv[0]).resolve().parent), *further]
    if module:
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
