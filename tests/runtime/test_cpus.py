"""How many CPUs a process may use, on folders that look like a machine's /proc and /sys."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgem3.runtime.cpus import available_cpus

N_CPUS = 8
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 30 0:29 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = V1.replace("cpu,cpuacct", "memory")
OWN_V2 = V2.replace(" / ", " /docker/one ")  # a container that sees the host's paths, and its own cgroup mounted
UNIFIED = V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
ELSEWHERE = V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/with\040space")
TWO, FIVE = "200000 100000\n", "500000 100000\n"


@pytest.fixture(autouse=True)
def _affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(N_CPUS)), raising=False)


def count(root: Path, cgroup: str, mounts: str, limits: dict[str, str]) -> int:
    """Write /proc/self/cgroup, /proc/self/mountinfo and files below /sys/fs/cgroup, and count the CPUs."""
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    for name, text in (files | {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return available_cpus(root=root)


def v1(folder: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    return {f"{folder}cpu.cfs_quota_us": quota, f"{folder}cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("cgroup", "mounts", "limits", "expected"),
    [
        pytest.param("0::/\n", V2, {"cpu.max": TWO}, 2, id="v2"),
        pytest.param("0::/\n", V2, {"cpu.max": "max 100000\n"}, N_CPUS, id="v2_without_a_quota"),
        pytest.param("0::/a/b\n", V2, {"a/b/cpu.max": FIVE, "a/cpu.max": TWO}, 2, id="a_parent_is_tighter"),
        pytest.param("0::/a/b\n", V2, {"a/b/cpu.max": TWO, "cpu.max": FIVE}, 2, id="the_child_is_tighter"),
        pytest.param("0::/a\n", V2, {"b/cpu.max": TWO, "a/b/cpu.max": TWO}, N_CPUS, id="another_cgroup"),
        pytest.param("0::/docker/one\n", OWN_V2, {"cpu.max": TWO}, 2, id="the_hosts_path_in_a_container"),
        pytest.param("0::/docker/one/a\n", OWN_V2, {"a/cpu.max": TWO}, 2, id="below_the_containers_mount"),
        pytest.param("0::/docker/onerous\n", OWN_V2, {"cpu.max": TWO}, 2, id="beside_the_containers_mount"),
        pytest.param("0::/../other\n", V2, {"cpu.max": TWO, "../other/cpu.max": "1 1"}, 2, id="out_of_its_namespace"),
        pytest.param("0::/a\n", UNIFIED, {"unified/a/cpu.max": TWO}, 2, id="another_mount_point"),
        pytest.param("0::/a b\n", ELSEWHERE, {"with space/a b/cpu.max": TWO}, 2, id="a_mount_point_with_a_space"),
        pytest.param("0::/\n", "", {"cpu.max": TWO}, N_CPUS, id="not_mounted"),
        pytest.param("4:cpu,cpuacct:/a\n0::/\n", V1, v1("a/", "200000\n"), 2, id="v1"),
        pytest.param("4:cpu,cpuacct:/a\n", V1, v1("a/", "-1\n"), N_CPUS, id="v1_without_a_quota"),
        pytest.param("4:memory:/a\n", V1_MEMORY, v1("a/", "100000\n"), N_CPUS, id="v1_of_another_controller"),
        pytest.param("0::/\n", V2, {"cpu.max": "150000 100000\n"}, 2, id="rounded_up"),
        pytest.param("0::/\n", V2, {"cpu.max": "1000 100000\n"}, 1, id="at_least_1"),
        pytest.param("0::/\n", V2, {"cpu.max": "99900000 100000\n"}, N_CPUS, id="more_than_there_are"),
        pytest.param("0::/\n", V2, {"cpu.max": "100000 0\n"}, N_CPUS, id="malformed"),
        pytest.param(f"0::/{'long' * 999}\n", V2, {}, N_CPUS, id="a_name_that_is_too_long"),
    ],
)
def test_the_tightest_quota_counts(
    tmp_path: Path, cgroup: str, mounts: str, limits: dict[str, str], expected: int
) -> None:
    assert count(tmp_path, cgroup, mounts, limits) == expected


malformed = st.text(st.characters(exclude_categories=["Cs"])) | st.text("0:/,cpu.\0\n ", max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cgroup=malformed | st.just("0::/\n"), mounts=malformed | st.just(V2), quota=malformed)
def test_malformed_files_are_no_limit(tmp_path: Path, cgroup: str, mounts: str, quota: str) -> None:
    assert count(tmp_path, cgroup, mounts, {"cpu.max": f"x{quota}"}) == N_CPUS


@pytest.mark.parametrize("n_cpus", [6, None])
def test_a_system_without_affinity_counts_all_its_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_cpus: int | None
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: n_cpus)
    assert available_cpus(root=tmp_path / "missing") == (n_cpus or 1)
