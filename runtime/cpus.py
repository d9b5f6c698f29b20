"""The number of CPUs that this process may use."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

QUOTA = re.compile(r"\s*([1-9][0-9]{0,17})\s+([1-9][0-9]{0,17})\s*")  # CPU time in each period, and the period


def available_cpus(*, root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use, which is the default number of compute threads.

    It is the number of CPUs that the process may run on (its affinity, else all), or, on Linux, a tighter CPU quota of
    its cgroup or of a cgroup around it. A container's CPU limit is such a quota, and leaves the affinity as it is.

    cgroup v2 has the quota in ``cpu.max``, v1 in ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``. It is rounded up, as
    loky (joblib) and Go do: one thread cannot use 1.5 CPUs.

    Parameters
    ----------
    root : folder that holds ``proc/self/cgroup`` and ``sys/fs/cgroup``

    Returns
    -------
    At least 1. A file that is missing, unreadable or malformed sets no limit.
    """
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([n_cpus, *_quotas(root)])


def _quotas(root: Path) -> Iterator[int]:
    """Yield the quotas, in whole CPUs, of this process's cgroup and of those around it."""
    for folder in _cgroup_folders(root):
        v1 = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
        for quota in (_read(folder / "cpu.max"), v1):
            if match := QUOTA.fullmatch(quota):
                yield -(-int(match[1]) // int(match[2]))  # rounded up


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of those around it, in each hierarchy that may limit CPUs.

    A container may see the host's path of its cgroup, and its own cgroup at the top of the hierarchy.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        cgroup = top if ".." in path else top / path.lstrip("/")  # "..": it was moved out of its namespace
        yield from (folder for folder in (cgroup, *cgroup.parents) if folder.is_relative_to(top))


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())
    except (OSError, ValueError):  # ValueError: a malformed path
        return ""
