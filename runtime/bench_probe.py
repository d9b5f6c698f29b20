"""Measurements that need a process to themselves: memory, operators' times, and attention kernels.

The functions start the process; :func:`main` is what runs in it, with bgem3 and nothing else loaded.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.bench_hardware import device_memory_mib
from bgem3.runtime.bench_workload import ExactTexts, random_lengths
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.device import open_encoder
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.reference import Reference

KERNEL_LOG = {"ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"}  # read when a session is made
MARK = "encoding a text of tokens:"
PACKED_TEXT = 512  # tokens of each text of the packed micro-batch
RANDOM_TEXT = 2048  # most tokens of a text of random length
N_ENCODED = 2  # times that operators are timed; the last counts
N_POINTS = 10  # at which memory is read while batches of random shapes run


def attention_kernels(load: dict[str, Any], lengths: Sequence[int], timeout: float) -> dict[str, Any]:
    """Encode one text of each length and return the attention kernels that ONNX Runtime says it used.

    Parameters
    ----------
    load : arguments of :meth:`BGEM3Model.load`
    lengths : tokens per text
    timeout : seconds

    Returns
    -------
    By length: ``n_nodes`` by operator, data type and kernel, and one ``line`` as it was printed; or ``not_run``.
    """
    request = {"measure": "kernels", "load": load, "lengths": list(lengths)}
    printed, failure = _run(request, timeout, KERNEL_LOG)
    found = parse_kernels(printed)
    missing = {"not_run": failure or "ONNX Runtime printed no line on an attention kernel"}
    return {str(n_tokens): found.get(n_tokens, missing) for n_tokens in lengths}


def parse_kernels(printed: str) -> dict[int, dict[str, Any]]:
    r"""Return what a process printed on attention kernels, by the tokens of the text it encoded.

    >>> line = "\x1b[36mOperator=MultiHeadAttention Node=a DataType=fp16 SdpaKernel=FLASH_ATTENTION\x1b[0m"
    >>> parse_kernels(f"{MARK} 16\n{line}\n{line}\n")[16]["n_nodes"]
    {'MultiHeadAttention fp16 FLASH_ATTENTION': 2}
    """
    found = {}
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)  # without colours
    for block in plain.split(MARK)[1:]:
        n_tokens, _, lines = block.partition("\n")
        matches = list(re.finditer(r"Operator=(\S+).*? DataType=(\S+) SdpaKernel=(\S+)", lines))
        if matches:
            n_nodes = Counter(" ".join(match.groups()) for match in matches)
            found[int(n_tokens)] = {"n_nodes": dict(n_nodes), "line": matches[0].group()}
    return found


def operator_seconds(load: dict[str, Any], workloads: dict[str, list[str]], timeout: float) -> dict[str, Any]:
    """Encode texts on CPU and return the seconds of each of ONNX Runtime's operators, by workload; or ``not_run``.

    Parameters
    ----------
    load : arguments of :meth:`BGEM3Model.load`
    workloads : texts by name
    timeout : seconds
    """
    printed, failure = _run({"measure": "operators", "load": load, "workloads": workloads}, timeout)
    found: dict[str, Any] = {}
    for line in printed.splitlines():
        found |= json.loads(line)
    return {name: found.get(name, {"not_run": failure}) for name in workloads}


def memory_use(
    load: dict[str, Any], n_packed_tokens: int, n_longest: int, n_batches: int, timeout: float
) -> dict[str, Any]:
    """Measure memory after loading, a full micro-batch, the longest text, and batches of random shapes.

    Parameters
    ----------
    load : arguments of :meth:`BGEM3Model.load`
    n_packed_tokens, n_longest : tokens of the micro-batch and of the longest text
    n_batches : batches of random shapes
    timeout : seconds

    Returns
    -------
    ``stages``, by name: ``peak_rss_mib``, the process's peak so far, and on CUDA ``device_mib``, in use on the device
    by all processes, which before loading holds this process's CUDA context too. ``growth_mib`` of each over the random
    shapes, if there are any. If not all was reached, ``not_run`` says why.
    """
    request = {
        "measure": "memory",
        "load": load | {"token_budget": n_packed_tokens},
        "n_packed_tokens": n_packed_tokens,
        "n_longest": n_longest,
        "n_batches": n_batches,
    }
    printed, failure = _run(request, timeout)
    stages: dict[str, dict[str, int]] = {}
    for line in printed.splitlines():
        stages |= json.loads(line)
    if failure:
        return {"stages": stages, "not_run": f"{failure}, after {list(stages)[-1:]}"}
    before, after = stages[_longest_stage(n_longest)], list(stages.values())[-1]
    growth = {"growth_mib": {key: after[key] - before[key] for key in after}} if n_batches else {}
    return {"stages": stages} | growth


def _longest_stage(n_tokens: int) -> str:
    return f"one text of {n_tokens} tokens"


def _run(request: dict[str, Any], timeout: float, variables: dict[str, str] | None = None) -> tuple[str, str]:
    """Answer a request in a new process; return the whole lines it printed, and why it ended early, if it did."""
    command = [sys.executable, "-m", "bgem3.runtime.bench_probe", json.dumps(request, default=str)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, env=os.environ | (variables or {}))
    except subprocess.TimeoutExpired as error:
        printed, failure = error.stdout or b"", "time limit"
    else:
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        printed = done.stdout
        failure = f"exit status {done.returncode}: {errors[-1] if errors else 'no message'}" if done.returncode else ""
    return printed[: printed.rfind(b"\n") + 1].decode(errors="replace"), failure


def main(request: dict[str, Any]) -> None:
    """Answer one request; results go to standard output line by line, so that a killed process leaves some."""
    if request["measure"] == "operators":
        _use_operators(request)
        return
    if request["measure"] == "memory":
        read_memory("before loading", request["load"]["device"])
    with BGEM3Model.load(**request["load"]) as model:
        texts = ExactTexts(model.tokenizer, model.spec, Reference.load(Path(request["load"]["folder"])).texts)
        answer = _use_memory if request["measure"] == "memory" else _use_kernels
        answer(request, model, texts)


def read_memory(stage: str, device: str) -> None:
    """Print the memory in use at a stage, as a line of JSON."""
    device_mib = {"device_mib": device_memory_mib(device)} if device.startswith("cuda") else {}
    print(json.dumps({stage: {"peak_rss_mib": peak_rss_mib()} | device_mib}), flush=True)


def peak_rss_mib() -> int:
    """Return this process's peak resident memory in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the process was before it became this program
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) // 1024
    import resource  # Unix alone has it

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _use_operators(request: dict[str, Any]) -> None:
    load = request["load"]
    artifact = read_artifact(load["folder"])
    for name, texts in request["workloads"].items():
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder) / "profile"
            session = open_encoder(
                artifact, device="cpu", precision=load["precision"], n_threads=load["n_threads"], profile=prefix
            )
            assert isinstance(session, CpuSession)
            model = BGEM3Model(artifact, session)
            for _ in range(N_ENCODED):
                model.encode(texts)
            events = json.loads(session.end_profiling().read_text(encoding="utf-8"))
        nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
        nodes = nodes[len(nodes) - len(nodes) // N_ENCODED :]  # the last pass, which is warm
        seconds: Counter[str] = Counter()
        for event in nodes:
            seconds[event["args"]["op_name"]] += event["dur"] / 1e6
        print(json.dumps({name: dict(seconds.most_common())}), flush=True)


def _use_kernels(request: dict[str, Any], model: BGEM3Model, texts: ExactTexts) -> None:
    for n_tokens in request["lengths"]:
        text = texts(n_tokens, 1)
        print(MARK, n_tokens, flush=True)
        model.encode(text)


def _use_memory(request: dict[str, Any], model: BGEM3Model, texts: ExactTexts) -> None:
    device, n_packed, n_batches = request["load"]["device"], request["n_packed_tokens"], request["n_batches"]
    longest = model.spec.max_length
    read_memory("after loading", device)
    n_tokens = min(PACKED_TEXT, longest, n_packed)
    model.encode(texts(n_tokens, n_packed // n_tokens))
    read_memory(f"{n_packed} packed tokens", device)
    model.encode(texts(request["n_longest"], 1))
    read_memory(_longest_stage(request["n_longest"]), device)
    points = {n_batches * (i + 1) // N_POINTS for i in range(N_POINTS)}
    for number, lengths in enumerate(random_lengths(n_batches, min(RANDOM_TEXT, longest)), start=1):
        model.encode(["a " * n for n in lengths])  # about that many tokens
        if number in points:
            read_memory(f"{number} batches of random shapes", device)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
