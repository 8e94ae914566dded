"""Calls that are killed part-way."""

import os
import signal
import sys


NEVER = 10**9  # lines, more than any call has


def die_after(lines, files, skipped, ran, call, arguments):
    """Make a call, and die by SIGKILL after so many lines of some files; `ran` is set if it lives."""
    left = lines

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.endswith(files) or frame.f_code.co_name in skipped:
            return None
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    call(*arguments)
    sys.settrace(None)
    ran.value = lines - left


def run_killed(context, files, call, *arguments, lines=NEVER, skipped=(), timeout=120):
    """Make a call in a process of its own that dies by SIGKILL.

    Args:
        context: of multiprocessing.
        files: ends of the names of the files whose lines count.
        lines: after so many.
        skipped: functions whose lines do not count.

    Returns:
        The exit code, and how many lines it ran if it was not killed.
    """
    ran = context.Value("q", 0)
    process = context.Process(target=die_after, args=(lines, files, skipped, ran, call, arguments))
    process.start()
    process.join(timeout)
    return process.exitcode, ran.value
