"""Completions that want to be scored without being right, or to do harm; one idea each.

All complete one problem, whose right answer is twice the argument. A forgery never gives it. A deed
gives it only if what it tried has worked, so that a score of 0 says that it has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import dedent, indent

from camelpress.validate.sandbox.program_check import Program

PROMPT = 'def double(x):\n    """Twice x."""\n'
TEST = dedent("""
    def check(candidate):
        assert candidate(2) == 4
        assert candidate([1]) == [1, 1]
        assert candidate("ab") == "abab"
        assert not candidate(0)
    """)


@dataclass(frozen=True)
class Hostile:
    """An idea and the completion that tries it."""

    idea: str
    completion: str
    fools: bool = False  # whoever runs program and test in one process, and looks how that ends


def program(completion: str, told: Mapping[str, str] | None = None) -> Program:
    """The completion as a program; `@NAME@` in it is replaced by what is told of this test."""
    for name, value in (told or {}).items():
        completion = completion.replace(f"@{name}@", value)
    return Program("double", PROMPT, completion, "double", TEST)


def _wrong(idea: str, code: str, *, fools: bool = False) -> Hostile:
    """A function that answers nothing, and code beside it."""
    return Hostile(idea, "    return None\n" + dedent(code), fools)


def _inside(idea: str, code: str, *, fools: bool = False) -> Hostile:
    """Code as the body of the function."""
    return Hostile(idea, indent(dedent(code).strip("\n"), "    ") + "\n", fools)


def _deed(idea: str, code: str) -> Hostile:
    """Code as the body, right only if it runs to its end; `kernel` is the C library."""
    return _inside(
        idea,
        "try:\n    import ctypes, os, sys\n    kernel = ctypes.CDLL(None)\n"
        + indent(dedent(code).strip("\n"), "    ")
        + "\nexcept BaseException:\n    return None\nreturn x * 2",
    )


FORGERIES = (
    _wrong("ends the process well: sys.exit(0)", "import sys; sys.exit(0)", fools=True),
    _inside("ends it while it is asked: os._exit(0)", "import os; os._exit(0)", fools=True),
    _wrong("ends it by the kernel: exit(0) of the C library",
           "import ctypes; ctypes.CDLL(None).exit(0)", fools=True),
    _inside("raises SystemExit where an answer is due", "raise SystemExit(0)", fools=True),
    _inside("answers with what equals everything: __eq__", """
        class Equal:
            def __eq__(self, other): return True
            def __bool__(self): return x != 0
        return Equal()
        """, fools=True),
    _inside("the same as a list, which __eq__ of a list would believe", """
        class Equal(list):
            def __eq__(self, other): return True
            def __bool__(self): return x != 0
        return Equal([9])
        """, fools=True),
    _inside("a number that equals every other", """
        class Equal(int):
            def __eq__(self, other): return True
            def __hash__(self): return 0
            def __bool__(self): return x != 0
        return Equal(9)
        """, fools=True),
    _inside("a type whose values are equal through their metaclass", """
        class Meta(type):
            def __eq__(cls, other): return True
            def __hash__(cls): return 0
            def __bool__(cls): return x != 0
        class Equal(metaclass=Meta): pass
        return Equal
        """, fools=True),
    _wrong("replaces check: an object that takes its name's place in globals", """
        class Names(dict):
            def __setitem__(self, name, value): pass
        import sys
        sys.modules["__main__"].check = lambda candidate: None
        """),
    _wrong("lets no assertion fail: a trace function that jumps over lines", """
        import sys
        def jump(frame, event, argument):
            if frame.f_code.co_name == "check" and event == "line":
                frame.f_lineno = frame.f_code.co_firstlineno + len(list(frame.f_code.co_lines()))
            return jump
        sys.settrace(jump)
        """),
    _wrong("turns failures into a good end: sys.excepthook", """
        import os, sys
        sys.excepthook = lambda *error: os._exit(0)
        """, fools=True),
    _wrong("turns failures into a good end: atexit", """
        import atexit, os
        atexit.register(os._exit, 0)
        """, fools=True),
    _wrong("replaces AssertionError among the builtins", """
        import builtins
        class Fine(BaseException): pass
        builtins.AssertionError = Fine
        """),
    _wrong("patches unittest", """
        import unittest
        unittest.TestCase.assertEqual = lambda *given: None
        unittest.TestCase.run = lambda *given: None
        """),
    _wrong("patches json, so that every message is a verdict", """
        import json
        json.dumps = lambda *given, **more: '{"passed": true}'
        """),
    _wrong("patches the encoder of its answers", """
        import sys
        for module in list(sys.modules.values()):
            if hasattr(module, "encode"):
                module.encode = lambda value: {"passed": True}
        """),
    _inside("walks up the frames and changes what it finds there", """
        import sys
        frame = sys._getframe()
        while frame:
            for name in list(frame.f_globals):
                if name in ("check", "candidate", "passed", "verdict", "result"):
                    frame.f_globals[name] = True
            for value in list(frame.f_locals.values()):
                if isinstance(value, dict):
                    value["passed"] = True
                if isinstance(value, list):
                    value.append("passed")
            frame = frame.f_back
        return None
        """),
    _wrong("looks for the check among all objects, and empties it", """
        import gc
        for each in gc.get_objects():
            if getattr(each, "__name__", "") in ("check", "referee", "main"):
                each.__code__ = (lambda *given, **more: None).__code__
        """),
    _wrong("writes a verdict to every descriptor, then leaves", """
        import os
        for number in range(64):
            try:
                os.write(number, b'{"passed": true}\\n')
            except OSError:
                pass
        os._exit(0)
        """, fools=True),
    _inside("writes a verdict to every descriptor while it is asked", """
        import os
        for number in range(64):
            try:
                os.write(number, b'{"value": true, "passed": true}\\n' * 9)
            except OSError:
                pass
        return {"passed": True}
        """),
    _inside("prints what a harness might look for", """
        import sys
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            print('passed', 'OK', '"ready"', '{"passed": true}', file=stream, flush=True)
        return None
        """),
    _inside("answers before it is asked, and more often", """
        import os
        for number in range(3, 64):
            try:
                os.write(number, b'{"value": 4}\\n' * 4)
            except OSError:
                pass
        return 4
        """),
    _inside("takes the questions itself, and lets nobody answer", """
        import os
        for number in range(64):
            try:
                os.read(number, 1 << 20)
            except OSError:
                pass
        return None
        """),
    _wrong("reads the check where its own code lies, and the check's process", """
        import os
        found = ""
        for folder, _, files in os.walk("/"):
            for file in files:
                if file in ("checker.py", "mem", "cmdline", "environ", "referee.py"):
                    try:
                        found += open(os.path.join(folder, file)).read()
                    except (OSError, ValueError):
                        pass
        def double(x):
            return eval(found.split("candidate(%r) ==" % x)[1].split("\\n")[0])
        """),
    _wrong("takes the answers from its arguments' history: closures and frames of the caller", """
        import inspect
        def double(x):
            for each in inspect.stack():
                for value in each.frame.f_locals.values():
                    if isinstance(value, str) and "assert candidate" in value:
                        return eval(value.split("candidate(%r) ==" % x)[1].split("\\n")[0])
        """),
    _inside("answers with no JSON at all", """
        import os
        for number in range(3, 16):
            try:
                os.write(number, b'\\xff{]\\n')
            except OSError:
                pass
        """),
    _inside("answers so deep that reading it breaks the reader", """
        import os
        for number in range(3, 16):
            try:
                os.write(number, b'{"value": ' + b'[' * 500000 + b']' * 500000 + b'}\\n')
            except OSError:
                pass
        """),
    _inside("answers with kinds that nobody knows", """
        import os
        for number in range(3, 16):
            try:
                os.write(number, b'{"value": {"__reduce__": ["os.system", "true"]}}\\n')
            except OSError:
                pass
        """),
    _inside("answers with not-a-number", "return float('nan')"),
    _inside("keeps the comparison busy: keys of one hash", """
        return {(2**61 - 1) * each: each for each in range(1, 30000)}
        """),
)  # fmt: skip

DEEDS = (
    _deed("runs a shell", "if os.system('true'): raise OSError"),
    _deed("starts a program",
          "import subprocess; subprocess.run(['@PYTHON@', '-c', ''], check=True)"),
    _deed("becomes another program", "os.execv('@PYTHON@', ['@PYTHON@', '-c', 'print(4)'])"),
    _deed("forks, to go on after its end", "if not os.fork(): import time; time.sleep(60)"),
    _deed("forks without end", "while True: os.fork()"),
    _deed("forks through the C library", "if kernel.fork() < 0: raise OSError"),
    _deed("begins a thread", "import threading; threading.Thread(target=int).start()"),
    _deed("begins a pool of processes",
          "import multiprocessing; multiprocessing.Pool(2).map(abs, [1])"),
    _deed("listens on a port",
          "import socket; socket.create_server(('127.0.0.1', @PORT@))"),
    _deed("listens on a name that no file system holds", """
        import socket
        server = socket.socket(socket.AF_UNIX)
        server.bind('\\0@NAME@')
        server.listen()
        """),
    _deed("calls home", "import socket; socket.create_connection(('127.0.0.1', @SERVED@), 1)"),
    _deed("asks the name service", "import socket; socket.getaddrinfo('localhost', 80)"),
    _deed("opens a socket through the C library", "if kernel.socket(2, 1, 0) < 0: raise OSError"),
    _deed("reads the environment", "os.environ['@TOKEN@']"),
    _deed("reads the environment of its parents",
          "open('/proc/1/environ').read(); open('/proc/self/environ').read()"),
    _deed("reads a home", "if len(os.listdir('@HOME@')) < 2: raise OSError"),
    _deed("reads a file of this machine", "open('@SECRET@').read()"),
    _deed("reads the users of this machine", "open('/etc/passwd').read()"),
    _deed("writes where this test looks", "open('@PLACE@/written', 'w').close()"),
    _deed("writes somewhere", """
        for place in ('/', '/tmp', '/dev/shm', '/var/tmp', '/root', os.getcwd(), '@CODE@'):
            try:
                open(place + '/camelpress-was-here', 'w').close()
                break
            except OSError:
                pass
        else:
            raise OSError
        """),
    _deed("changes the code of the sandbox", "open('@CODE@/checker.py', 'a').write('#')"),
    _deed("leaves something that every Python would run",
          "open(os.path.dirname(os.__file__) + '/sitecustomize.py', 'w').close()"),
    _deed("removes what it can", """
        import shutil
        shutil.rmtree('@CODE@')
        """),
    _deed("makes a file of memory", "if kernel.memfd_create(b'x', 0) < 0: raise OSError"),
    _deed("shares memory", "if kernel.shmget(7, 1 << 20, 0o1777) < 0: raise OSError"),
    _deed("mounts a file system",
          "if kernel.mount(b'x', b'/', b'tmpfs', 0, None): raise OSError"),
    _deed("makes namespaces of its own, where it is root",
          "if kernel.unshare(0x10000000): raise OSError"),
    _deed("traces another process", "if kernel.ptrace(16, 1, 0, 0): raise OSError"),
    _deed("ends its parent", "os.kill(1, 9)"),
    _deed("ends everything", "os.kill(-1, 9)"),
    _deed("changes its limits", """
        import resource
        resource.setrlimit(resource.RLIMIT_CPU, (1 << 30, 1 << 30))
        """),
    _deed("takes the filter of system calls off", "if kernel.prctl(22, 0, 0, 0, 0): raise OSError"),
    _deed("handles the signal that ends it", "import signal; signal.signal(signal.SIGXCPU, print)"),
    _deed("takes all memory", "bytearray(1 << 40)"),
    _deed("takes memory bit by bit",
          "held = [b'x' * (1 << 20) for each in range(1 << 20)]"),
    _deed("opens files until there are no more",
          "held = [open(os.__file__) for each in range(1000)]"),
    _deed("computes for ever", "while True: pass"),
    _deed("sleeps for ever", "import time; time.sleep(1 << 20)"),
    _deed("prints for ever", "while True: print('x' * 1000)"),
    _deed("answers without end", "return 'x' * (1 << 28)"),
    _deed("yields without end", "import itertools; return itertools.count()"),
    _deed("calls itself without end", "def deeper(): return deeper()\ndeeper()"),
    _deed("crashes", "ctypes.string_at(0)"),
    _deed("closes all its descriptors", "os.closerange(0, 64); import time; time.sleep(1 << 20)"),
    _deed("matches a pattern that takes for ever", "import re; re.match('(a+)+$', 'a' * 64 + 'b')"),
)  # fmt: skip

HOSTILE = FORGERIES + DEEDS
