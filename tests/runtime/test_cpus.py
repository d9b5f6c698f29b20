"""How many CPUs a process may use, on folders that look like a machine's /proc and /sys."""

import os
from pathlib import Path

import pytest

from bgem3.runtime.cpus import available_cpus

N_CPUS = 8
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
NO_CPU = "31 30 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
HYBRID = "41 30 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.fixture(autouse=True)
def _affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, N_CPUS)


def allow(monkeypatch: pytest.MonkeyPatch, n_cpus: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(n_cpus)), raising=False)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(text))


def count(root: Path, cgroup: str, mountinfo: str, limits: dict[str, str]) -> int:
    """Count the CPUs of a process; ``limits`` are files below /sys/fs/cgroup."""
    write(root, {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo})
    write(root / "sys/fs/cgroup", limits)
    return available_cpus(root=root)


def v1_limit(folder: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000\n", N_CPUS),
        ("300000 100000\n", 3),
        ("150000 100000\n", 2),
        ("300001 100000\n", 4),
        ("50000 100000\n", 1),
        ("1000 1000000\n", 1),
        ("25000 10000\n", 3),
    ],
)
def test_a_v2_quota_is_rounded_up_to_whole_cpus(tmp_path: Path, cpu_max: str, expected: int) -> None:
    assert count(tmp_path, "0::/\n", V2, {"cpu.max": cpu_max}) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", N_CPUS), ("0\n", N_CPUS), ("400000\n", 4), ("150000\n", 2)])
def test_a_v1_quota_is_rounded_up_to_whole_cpus(tmp_path: Path, quota: str, expected: int) -> None:
    assert count(tmp_path, "4:cpu,cpuacct:/\n3:cpuset:/\n", NO_CPU + V1, v1_limit("cpu,cpuacct", quota)) == expected


@pytest.mark.parametrize("tightest", ["", "user.slice/", "user.slice/a:b c/"])
def test_the_tightest_v2_quota_up_to_the_mount_holds(tmp_path: Path, tightest: str) -> None:
    limits = dict.fromkeys(["cpu.max", "user.slice/cpu.max", "user.slice/a:b c/cpu.max"], "600000 100000\n")
    limits[f"{tightest}cpu.max"] = "200000 100000\n"
    assert count(tmp_path, "0::/user.slice/a:b c\n", V2, limits) == 2


@pytest.mark.parametrize("tightest", ["", "/docker", "/docker/one"])
def test_the_tightest_v1_quota_up_to_the_mount_holds(tmp_path: Path, tightest: str) -> None:
    limits = v1_limit("cpu,cpuacct", "-1\n") | v1_limit("cpu,cpuacct/docker", "600000\n")
    limits |= v1_limit(f"cpu,cpuacct{tightest}", "200000\n")
    assert count(tmp_path, "7:cpu,cpuacct:/docker/one\n", V1, limits) == 2


def test_the_quota_of_another_cgroup_is_not_ours(tmp_path: Path) -> None:
    limits = {"ours/cpu.max": "500000 100000\n", "other/cpu.max": "100000 100000\n"}
    limits |= {"ours/child/cpu.max": "100000 100000\n"}
    assert count(tmp_path, "0::/ours\n", V2, limits) == 5


def test_of_a_hybrid_machine_the_hierarchy_that_limits_holds(tmp_path: Path) -> None:
    cgroup = "4:memory:/\n1:cpu,cpuacct:/jobs\n0::/jobs\n"
    limits = v1_limit("cpu,cpuacct/jobs", "300000\n") | {"unified/jobs/cgroup.procs": "1\n"}
    assert count(tmp_path, cgroup, V1 + NO_CPU + HYBRID, limits) == 3


def test_a_cgroup_is_looked_up_in_its_own_hierarchy_only(tmp_path: Path) -> None:
    cgroup = "4:memory:/memory\n1:cpu,cpuacct:/v1\n0::/v2\n"
    limits = v1_limit("cpu,cpuacct/v1", "500000\n") | {"unified/v2/cpu.max": "600000 100000\n"}
    for other in ("cpu,cpuacct/memory", "cpu,cpuacct/v2", "cpuset/v1", "cpuset/v2"):
        limits |= v1_limit(other, "100000\n")
    limits |= {"unified/memory/cpu.max": "100000 100000\n", "unified/v1/cpu.max": "100000 100000\n"}
    assert count(tmp_path, cgroup, V1 + NO_CPU + HYBRID, limits) == 5


@pytest.mark.parametrize(
    ("cgroup", "mount_root"),
    [
        ("/docker/one", "/docker/one"),  # the host's path, and the container's folder mounted
        ("/docker/one/child", "/docker/one"),
        ("/", "/docker/one"),  # a namespace's path, a mount of the host's
        ("/docker/other", "/docker/one"),
        ("/docker/onerous", "/docker/one"),
        ("/", "/.."),
        ("/../other", "/"),  # moved out of its namespace
        ("/gone", "/"),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_mount_limits_also_a_cgroup_whose_path_is_not_found_in_it(
    tmp_path: Path, version: str, cgroup: str, mount_root: str
) -> None:
    mountinfo = (V2 if version == "v2" else V1).replace(" / ", f" {mount_root} ")
    limits = {"cpu.max": "200000 100000\n"} if version == "v2" else v1_limit("cpu,cpuacct", "200000\n")
    limits |= {"../other/cpu.max": "100000 100000\n"} | v1_limit("other", "100000\n")
    line = f"0::{cgroup}\n" if version == "v2" else f"5:cpu,cpuacct:{cgroup}\n"
    assert count(tmp_path, line, mountinfo, limits) == 2


@pytest.mark.parametrize(
    ("mount_root", "parent"),
    [("/pod", "/pod"), ("/..", "/.."), (r"/a\040b/c\134x2dd", r"/a b/c\x2dd")],  # mountinfo escapes, the other does not
)
def test_a_cgroup_below_a_mounts_root_is_found_below_the_mount(tmp_path: Path, mount_root: str, parent: str) -> None:
    limits = {"cpu.max": "max 100000\n", "child/cpu.max": "200000 100000\n"}
    assert count(tmp_path, f"0::{parent}/child\n", V2.replace(" / ", f" {mount_root} "), limits) == 2


def test_a_mount_point_may_be_anywhere(tmp_path: Path) -> None:
    write(tmp_path / "my cgroups", {"cpu.max": "200000 100000\n"})
    assert count(tmp_path, "0::/\n", V2.replace("/sys/fs/cgroup", r"/my\040cgroups"), {}) == 2


@pytest.mark.parametrize(
    "cpu_max",
    ["", "\n", "150000", "max", "-1 100000", "0 100000", "100000 0", "1.5 1", "a b", "1 2 3", "9" * 9999 + " 1"],
)
def test_a_malformed_quota_is_no_limit(tmp_path: Path, cpu_max: str) -> None:
    limits = {"cpu.max": cpu_max} | v1_limit("cpu,cpuacct", f"{cpu_max} x")
    assert count(tmp_path, "1:cpu,cpuacct:/\n0::/\n", V1 + V2, limits) == N_CPUS


@pytest.mark.parametrize(
    "text", ["", "\n\n", "::", "0:/", "0::", "0::relative", "30 23 - cgroup2", "\0 \udcff", " - " * 99]
)
def test_malformed_lists_of_cgroups_and_mounts_are_no_limit(tmp_path: Path, text: str) -> None:
    limits = {"cpu.max": "100000 100000\n"}
    assert count(tmp_path, text, V2, limits) == N_CPUS
    assert count(tmp_path, "0::/\n", text, limits) == N_CPUS
    assert count(tmp_path, f"{text}\n0::/\n", f"{text}\n{V2}", limits) == 1, "the lines that are whole still count"


def test_a_path_that_no_file_can_have_is_no_limit(tmp_path: Path) -> None:
    assert count(tmp_path, "0::/a\0b\n", V2, {}) == N_CPUS
    assert count(tmp_path, f"0::/{'long' * 999}\n", V2, {}) == N_CPUS


def test_missing_files_are_no_limit(tmp_path: Path) -> None:
    assert available_cpus(root=tmp_path) == N_CPUS
    assert available_cpus(root=tmp_path / "missing") == N_CPUS
    assert count(tmp_path, "1:cpu,cpuacct:/\n0::/\n", V1 + V2, {}) == N_CPUS
    (tmp_path / "sys/fs/cgroup/cpu.max").mkdir(parents=True)  # not a file to read
    assert available_cpus(root=tmp_path) == N_CPUS


def test_a_quota_of_v1_without_its_period_is_no_limit(tmp_path: Path) -> None:
    assert count(tmp_path, "1:cpu,cpuacct:/\n", V1, {"cpu,cpuacct/cpu.cfs_quota_us": "100000\n"}) == N_CPUS


def test_an_affinity_smaller_than_the_quota_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 2)
    assert count(tmp_path, "0::/\n", V2, {"cpu.max": "300000 100000\n"}) == 2


@pytest.mark.parametrize(("n_cpus", "expected"), [(6, 3), (2, 2), (None, 1)])
def test_a_system_without_affinity_counts_all_its_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_cpus: int | None, expected: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: n_cpus)
    assert available_cpus(root=tmp_path) == (n_cpus or 1)
    assert count(tmp_path, "0::/\n", V2, {"cpu.max": "300000 100000\n"}) == expected


def test_a_generous_quota_gives_no_more_than_the_cpus_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    generous = count(tmp_path, "0::/\n", V2, {"cpu.max": "99999900000 100000\n"})
    assert generous == available_cpus(root=tmp_path / "missing")
    assert 1 <= available_cpus() <= generous <= (os.cpu_count() or 1)


def test_counting_reads_no_more_than_the_files_of_its_own_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = "".join(f"{n}:name={n}:/\n" for n in range(2, 12)) + f"1:cpu,cpuacct:{'/x' * 8}\n0::{'/x' * 8}\n"
    other_mounts = "".join(f"{n} 23 8:{n} / /mnt/{n} rw shared:{n} - ext4 /dev/sda{n} rw\n" for n in range(60))
    read: list[Path] = []
    read_bytes = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    count(tmp_path, cgroup, other_mounts + V1 + HYBRID, {})
    n_folders = 2 * 9  # of v1 and of v2, eight deep and the top
    assert len(set(read)) == 2 + 3 * n_folders
    assert len(read) <= 3 + 3 * n_folders
