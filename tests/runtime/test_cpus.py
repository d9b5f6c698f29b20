"""How many CPUs a process may use, on folders that look like a machine's /proc and /sys."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgem3.runtime.cpus import available_cpus

N_CPUS = 8


@pytest.fixture(autouse=True)
def _affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(N_CPUS)), raising=False)


def count(root: Path, cgroup: str, limits: dict[str, str]) -> int:
    """Write /proc/self/cgroup and files below /sys/fs/cgroup, and count the CPUs."""
    files = {"proc/self/cgroup": cgroup} | {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return available_cpus(root=root)


def v1(folder: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    return {f"cpu/{folder}cpu.cfs_quota_us": quota, f"cpu/{folder}cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        pytest.param("0::/\n", {"cpu.max": "300000 100000\n"}, 3, id="v2"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, N_CPUS, id="v2_without_a_quota"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "500000 100000\n", "a/cpu.max": "2 1"}, 2, id="a_parent_is_tighter"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "5 1"}, 2, id="the_child_is_tighter"),
        pytest.param("0::/a\n", {"b/cpu.max": "100000 100000\n"}, N_CPUS, id="another_cgroup"),
        pytest.param("0::/docker/one\n", {"cpu.max": "200000 100000\n"}, 2, id="a_container_that_sees_the_hosts_path"),
        pytest.param("0::/../other\n", {"cpu.max": "2 1", "../other/cpu.max": "1 1"}, 2, id="out_of_its_namespace"),
        pytest.param("4:cpu,cpuacct:/a\n0::/\n", v1("a/", "200000\n"), 2, id="v1"),
        pytest.param("4:cpu,cpuacct:/a\n", v1("a/", "-1\n"), N_CPUS, id="v1_without_a_quota"),
        pytest.param("4:memory:/a\n", v1("a/", "100000\n"), N_CPUS, id="v1_of_another_controller"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 2, id="rounded_up"),
        pytest.param("0::/\n", {"cpu.max": "1000 100000\n"}, 1, id="at_least_1"),
        pytest.param("0::/\n", {"cpu.max": "99900000 100000\n"}, N_CPUS, id="more_than_there_are"),
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, cgroup: str, limits: dict[str, str], expected: int) -> None:
    assert count(tmp_path, cgroup, limits) == expected


@pytest.mark.parametrize(
    "quota",
    ["", "\n", "150000", "max", "-1 100000", "0 100000", "100000 0", "1.5 1", "a b", "1 2 3", "9" * 9999 + " 1"],
)
def test_a_malformed_quota_is_no_limit(tmp_path: Path, quota: str) -> None:
    assert count(tmp_path, "1:cpu,cpuacct:/\n0::/\n", {"cpu.max": quota} | v1("", quota, "x")) == N_CPUS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("0:/,cpu.\0\n", max_size=30))
def test_a_malformed_list_of_cgroups_is_no_limit(tmp_path: Path, text: str) -> None:
    assert count(tmp_path, text, {}) == N_CPUS


def test_missing_and_unreadable_files_are_no_limit(tmp_path: Path) -> None:
    assert available_cpus(root=tmp_path / "missing") == N_CPUS
    assert count(tmp_path, f"0::/{'long' * 999}\n", {}) == N_CPUS
    (tmp_path / "sys/fs/cgroup/cpu.max").mkdir(parents=True)
    assert count(tmp_path, "0::/\n", {}) == N_CPUS


@pytest.mark.parametrize(("n_cpus", "expected"), [(6, 3), (2, 2), (None, 1)])
def test_a_system_without_affinity_counts_all_its_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_cpus: int | None, expected: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: n_cpus)
    assert available_cpus(root=tmp_path) == (n_cpus or 1)
    assert count(tmp_path, "0::/\n", {"cpu.max": "300000 100000\n"}) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")
def test_the_count_follows_this_processs_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    assert available_cpus(root=tmp_path) == len(os.sched_getaffinity(0))
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))
