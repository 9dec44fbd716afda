"""Has a command run by a fork of ``forked.py``'s server, and ends as it ends. Imports little: it is started for every command.

python -IS forked_client.py SOCKET PYTHON PROGRAM WORD…
"""

import json
import os
import signal
import socket
import struct
import sys

address, python, *words = sys.argv[1:]
received = []
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect(address)
pid = None


def passed_on(number, _frame):
    received.append(number)
    if pid is not None:
        connection.send(bytes([received.pop(0)]))


for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, passed_on)
asked = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()  # noqa: PTH109
socket.send_fds(connection, [struct.pack("I", len(asked))], [0, 1, 2])
connection.sendall(asked)
pid = struct.unpack("i", connection.recv(4))[0]
if pid == 0:  # the server refuses
    program, *rest = words
    if os.path.basename(program) != "python":  # noqa: PTH119
        rest = ["-c", "from safework_cli.cli.main import main; main()", *rest]
    os.execv(python, [python, *rest])  # noqa: S606
for number in received:
    connection.send(bytes([number]))
ended = connection.recv(4)
code = struct.unpack("i", ended)[0] if ended else 1
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
