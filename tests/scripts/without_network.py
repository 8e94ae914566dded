"""Runs commands one after another and reports which outside hosts each tried to reach: `COMMANDS.json REPORT.json`."""

import json
import runpy
import socket
import sys
import threading
import time
from pathlib import Path


HERE = {None, "", "127.0.0.1", "localhost", "::1", "0.0.0.0", socket.gethostname()}
tried: list[str] = []


def refuse_outside(name, host_of):
    """Replace a function of sockets by one that notes and refuses hosts other than this one."""
    owner = socket.socket if hasattr(socket.socket, name) else socket
    real = getattr(owner, name)

    def guarded(*arguments, **options):
        host = host_of(*arguments)
        if host not in HERE:
            tried.append(f"{name} {host}")
            raise OSError(f"no network in this test: {host}")
        return real(*arguments, **options)

    setattr(owner, name, guarded)


def host_of_address(_socket, address, *_):
    return address[0] if isinstance(address, tuple) else None


for method in ("connect", "connect_ex"):
    refuse_outside(method, host_of_address)
for function in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
    refuse_outside(function, lambda host, *_, **__: host[0] if isinstance(host, tuple) else host)

commands, report = (Path(name) for name in sys.argv[1:])
found = {}
for name, (module, *arguments) in json.loads(commands.read_text()).items():
    tried.clear()
    sys.argv = [module, *arguments]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        code = leaving.code or 0
    for thread in threading.enumerate():  # what a library looks up beside the work
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(5)
    time.sleep(0.2)
    found[name] = {"code": str(code), "tried": sorted(set(tried))}
report.write_text(json.dumps(found))
