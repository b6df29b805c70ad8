"""Limits the system calls and resources of a process before it runs model-written code.

Namespaces (the sandbox around this process) hide files, network and other processes, but leave
some 400 system calls. The seccomp filter allows only the calls for computing, reading and
answering: no new process, thread, program or socket, no memory beyond the limit, no signal
handler. The filter is permanent: it refuses `prctl`, the call that installed it.

Source: linux include/uapi/linux/{seccomp,filter,prctl,audit}.h and Documentation/userspace-api/
seccomp_filter.rst; the numbers are those of asm/unistd_64.h (x86_64) and asm-generic/unistd.h
(aarch64).
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

# fmt: off
ALLOWED_SYSCALLS = (  # name             x86_64  aarch64  (None: no such call on that machine)
    ("read",                       0,   63), ("write",              1,   64),
    ("open",                       2, None), ("close",              3,   57),
    ("stat",                       4, None), ("fstat",              5,   80),
    ("lstat",                      6, None), ("lseek",              8,   62),
    ("mmap",                       9,  222), ("mprotect",          10,  226),
    ("munmap",                    11,  215), ("brk",               12,  214),
    ("pread64",                   17,   67), ("readv",             19,   65),
    ("writev",                    20,   66), ("access",            21, None),
    ("sched_yield",               24,  124), ("mremap",            25,  216),
    ("madvise",                   28,  233), ("nanosleep",         35,  101),
    ("getpid",                    39,  172), ("exit",              60,   93),
    ("uname",                     63,  160), ("getcwd",            79,   17),
    ("readlink",                  89, None), ("gettimeofday",      96,  169),
    ("getrusage",                 98,  165), ("times",            100,  153),
    ("getuid",                   102,  174), ("getgid",           104,  176),
    ("geteuid",                  107,  175), ("getegid",          108,  177),
    ("gettid",                   186,  178), ("futex",            202,   98),
    ("sched_getaffinity",        204,  123), ("getdents64",       217,   61),
    ("restart_syscall",          219,  128), ("clock_gettime",    228,  113),
    ("clock_getres",             229,  114), ("clock_nanosleep",  230,  115),
    ("exit_group",               231,   94), ("openat",           257,   56),
    ("newfstatat",               262,   79), ("readlinkat",       267,   78),
    ("faccessat",                269,   48), ("getrandom",        318,  278),
    ("statx",                    332,  291),
)
# column of the table above, AUDIT_ARCH constant
AUDIT_ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}
# fmt: on

INSTRUCTION_BYTES = 8  # bytes per filter instruction
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF instruction codes for 32-bit words
SYSCALL_OFFSET, ARCHITECTURE_OFFSET = 0, 4  # byte offsets in struct seccomp_data
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: errno 1 (PermissionError)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def confine_process(*, seconds: int, memory: int) -> None:
    """Sets the resource limits and installs the filter, irreversibly.

    Args:
        seconds: CPU time limit from the start of this process, s.
        memory: address space limit, bytes.
    Raises:
        OSError: The kernel refused; no untrusted code may run then.
    """
    program = build_filter(os.uname().machine)
    for resource_id, soft_limit, hard_limit in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # SIGXCPU identifies this limit
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 32, 32),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ):
        resource.setrlimit(resource_id, (soft_limit, hard_limit))
    instructions = ctypes.create_string_buffer(program)
    header = struct.pack("HP", len(program) // INSTRUCTION_BYTES, ctypes.addressof(instructions))
    header_buffer = ctypes.create_string_buffer(header)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header_buffer))


def build_filter(machine: str) -> bytes:
    """Builds a filter that allows the system calls of the table and refuses all others.

    Args:
        machine: `os.uname().machine`, such as x86_64.
    Returns:
        BPF instructions, 8 bytes each.
    Raises:
        OSError: The table has no system call numbers for this machine.
    """
    if machine not in AUDIT_ARCHITECTURES:
        raise OSError(f"the table has no system call numbers for {machine}")
    column, architecture = AUDIT_ARCHITECTURES[machine]
    numbers = [row[column] for row in ALLOWED_SYSCALLS if row[column] is not None]
    instructions = [
        (LOAD, 0, 0, ARCHITECTURE_OFFSET),
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, SYSCALL_OFFSET),
        *((JUMP_IF_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def _prctl(request: int, *arguments: int) -> None:
    kernel = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    if kernel.prctl(request, *words):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
