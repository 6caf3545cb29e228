"""Whether a process still runs, and is still the same one: with the standard library alone."""

import os
import sys

__all__ = ("began", "runs")


def began(pid: int) -> str | None:
    """Give what tells a process from an earlier one of the same number.

    ``None`` if the platform does not tell in a simple way: only Linux does.
    """
    found = _in_proc(pid)
    return found[1] if found else None


def runs(pid: int, beginning: str | None) -> bool:
    """Tell whether a process is there.

    Args:
        pid: Its number.
        beginning: What :func:`began` gave for it; if it differs now, the number has gone to
            another one.
    """
    found = _in_proc(pid)
    if found is None:
        return _answers(pid)
    state, now = found
    # Z and X have ended, and wait for their parent to take note.
    return state not in {"Z", "X"} and beginning in {None, now}


def _in_proc(pid: int) -> tuple[str, str] | None:
    """Give the state of a process and the time of its start, as Linux tells them."""
    if sys.platform != "linux":
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The second field is the command's name, which may hold anything.
    fields = text.rpartition(b")")[2].split()
    return fields[0].decode(), fields[19].decode()


if sys.platform == "win32":

    def _answers(pid: int) -> bool:
        """Ask the system; ``os.kill`` would end the process."""
        import ctypes  # noqa: PLC0415 - only here

        synchronize, denied, still_runs = 0x0010_0000, 5, 0x102
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(kernel.OpenProcess(synchronize, False, pid))
        if not handle:
            return ctypes.get_last_error() == denied
        try:
            return bool(kernel.WaitForSingleObject(handle, 0) == still_runs)
        finally:
            kernel.CloseHandle(handle)

else:

    def _answers(pid: int) -> bool:
        """Ask the system, by a signal that does nothing."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
