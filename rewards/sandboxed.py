"""What runs inside the sandbox: sets the last limits, runs the program, reports a function's value as JSON.
Given to Python as text (`-c`), since no file of ours exists in there; the standard library alone. Nothing that it says
is trusted: it shares its process with the program."""

import importlib
import os
import resource
import select
import sys
from importlib.machinery import SourceFileLoader

SOURCE = "program.py"


def script() -> None:
    """Run the program as Python runs a file: nothing of ours is left in its namespace."""
    module, loader = sys.modules["__main__"], SourceFileLoader("__main__", SOURCE)
    for name in [name for name in vars(module) if not name.startswith("__")]:
        delattr(module, name)
    module.__file__, module.__doc__ = loader.path, None
    loader.exec_module(module)


def call() -> None:
    """Import the program, call the function that stdin names, write its value where stdout led before."""
    import json

    job, replies = json.load(sys.stdin), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the program prints is no value
    sys.path.insert(0, os.getcwd())
    module = importlib.import_module(SOURCE.removesuffix(".py"))
    owner = module if hasattr(module, job["fn_name"]) else module.Solution()
    function, args = getattr(owner, job["fn_name"]), job["args"]
    replies.write(json.dumps(function(**args) if isinstance(args, dict) else function(*args)))
    replies.flush()


if __name__ == "__main__":  # arguments: the file descriptor that holds the program, `script` or `call`, NAME=value …
    for name, value in (pair.split("=") for pair in sys.argv[3:]):  # root directory and user are given up for good
        if name == "CHROOT":
            os.chroot(value)  # the kernel makes no user namespace from in here, which could mount what it likes
        elif name == "UID":
            os.setgroups([])
            os.setresgid(*[int(value)] * 3)
            os.setresuid(*[int(value)] * 3)
        else:  # a resource limit, no higher than it was
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            most = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
            resource.setrlimit(kind, (most, most))
    reader = select.poll()
    reader.register(1, 0)
    if reader.poll(0):  # nobody waits any more, and who did died before bubblewrap asked to be told
        sys.exit()
    with open(int(sys.argv[1]), "rb+") as given, open(SOURCE, "wb") as file:
        file.write(given.read())
        given.truncate(0)  # tells who waits that the program begins
    run = {"script": script, "call": call}[sys.argv[2]]
    sys.argv[:] = [SOURCE]
    run()
