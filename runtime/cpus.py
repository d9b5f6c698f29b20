"""The number of CPUs that this process may use."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUP = re.compile(r"^[0-9]+:([^:\n]*):(/.*)$", re.MULTILINE)  # controllers (none: cgroup v2), path
MOUNT = re.compile(r"^\S+ \S+ \S+ (/\S*) (/\S*) .* - (cgroup2?) \S* (\S+)$", re.MULTILINE)  # root, point, type, options
QUOTA = re.compile(r"\s*([1-9][0-9]{0,17})\s+([1-9][0-9]{0,17})\s*")  # CPU time in each period, and the period


def available_cpus(*, root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use, which is the default number of compute threads.

    It is the number of CPUs that the process may run on (its affinity, else all), or, on Linux, a tighter CPU quota of
    its cgroup or of a cgroup around it. A container's CPU limit is such a quota, and leaves the affinity as it is.

    cgroup v2 has the quota in ``cpu.max``, v1 in ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``. It is rounded up, as
    loky (joblib) and Go do: one thread cannot use 1.5 CPUs.

    Parameters
    ----------
    root : folder in which ``proc/self/cgroup``, ``proc/self/mountinfo`` and the mount points are looked up

    Returns
    -------
    At least 1. A file that is missing, unreadable or malformed sets no limit.
    """
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([n_cpus, *_quotas(root)])


def _quotas(root: Path) -> Iterator[int]:
    """Yield the quotas, in whole CPUs, of this process's cgroup and of the cgroups around it."""
    for folder in _cgroup_folders(root):
        v1 = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
        for quota in (_read(folder / "cpu.max"), v1):
            if match := QUOTA.fullmatch(quota):
                yield -(-int(match[1]) // int(match[2]))  # rounded up


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of the cgroups around it, in each hierarchy that limits CPUs."""
    mounts = MOUNT.findall(_read(root / "proc/self/mountinfo"))
    for controllers, cgroup in CGROUP.findall(_read(root / "proc/self/cgroup")):
        for mount_root, mount_point, filesystem, options in mounts:
            is_v2 = not controllers and filesystem == "cgroup2"
            is_v1 = "cpu" in controllers.split(",") and "cpu" in options.split(",")
            if is_v2 or is_v1:
                inside = _inside(PurePosixPath(cgroup), _unescape(mount_root))
                top = root / _unescape(mount_point).lstrip("/")
                yield from (top / path for path in (inside, *inside.parents))


def _inside(cgroup: PurePosixPath, mount_root: str) -> PurePosixPath:
    """Return a cgroup's path below a mount; the mount itself if the cgroup lies outside, as a container may see it."""
    path = cgroup.relative_to(mount_root) if cgroup.is_relative_to(mount_root) else PurePosixPath()
    return PurePosixPath() if ".." in path.parts else path


def _unescape(path: str) -> str:
    """Undo mountinfo's octal escapes: space, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())
    except (OSError, ValueError):  # ValueError: a malformed path
        return ""
