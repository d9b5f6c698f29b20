"""The commands as a user types them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from bgem3.runtime import BGEM3Model, Embeddings, cli
from bgem3.runtime.cli import main
from bgem3.runtime.custom_ops import best_kernels
from tests.paths import ROOT

LINES = ["What is BM25?", "", "面包 为什么 会 发 起来？"]


@pytest.fixture
def lines_file(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `bgem3` as a process of its own."""
    command = [sys.executable, "-m", "bgem3.runtime.cli", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def test_encode_writes_one_json_object_per_line_with_what_the_api_gives(
    random_artifact: Path, random_model: BGEM3Model
) -> None:
    done = run("encode", random_artifact, "--precision", "fp32", "--max-length", "9", stdin="\n".join(LINES))
    assert done.returncode == 0, done.stderr
    expected = random_model.encode(LINES, max_length=9)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(LINES)
    for i, row in enumerate(rows):
        assert (row["n_tokens"], row["truncated"]) == (expected.n_tokens[i], expected.truncated[i])
        np.testing.assert_allclose(row["dense"], expected.dense[i], atol=1e-5)
        np.testing.assert_allclose(row["multivector"], expected.multivector[i], atol=1e-5)
        assert row["sparse"] == pytest.approx({k: float(v) for k, v in expected.lexical_weights[i].items()}, abs=1e-5)


def test_encode_reads_a_field_of_json_lines_and_writes_only_the_outputs_asked_for(random_artifact: Path) -> None:
    stdin = "".join(json.dumps({"id": i, "body": line}) + "\n" for i, line in enumerate(LINES))
    done = run("encode", random_artifact, "--text-field", "body", "--outputs", "dense", stdin=stdin)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(row) for row in rows] == [{"n_tokens", "truncated", "dense"}] * len(LINES)


def test_encode_writes_npz_and_parquet(
    random_artifact: Path, random_model: BGEM3Model, lines_file: Path, tmp_path: Path
) -> None:
    expected = random_model.encode(LINES)
    for name in ("out.npz", "out.parquet"):
        assert (
            main(["encode", str(random_artifact), str(lines_file), "--precision", "fp32", "-o", str(tmp_path / name)])
            == 0
        )
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_allclose(arrays["dense"], expected.dense, atol=1e-5)
        np.testing.assert_allclose(arrays["multivector"], expected.multivector.packed, atol=1e-5)
        assert arrays["multivector_offsets"].tolist() == expected.multivector.offsets.tolist()
        assert arrays["sparse_indices"].tolist() == expected.sparse.indices.tolist()
        assert arrays["sparse_shape"].tolist() == list(expected.sparse.shape)
    rows = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["n_tokens"] for row in rows] == expected.n_tokens.tolist()
    np.testing.assert_allclose(rows[0]["dense"], expected.dense[0], atol=1e-5)
    assert [token for token, _ in rows[2]["sparse"]] == list(expected.lexical_weights[2])


def test_no_input_lines_give_an_empty_file_of_the_right_shape(
    random_artifact: Path, random_model: BGEM3Model, tmp_path: Path
) -> None:
    for name in ("out.jsonl", "out.npz", "out.parquet"):
        assert run("encode", random_artifact, "-o", tmp_path / name).returncode == 0
    assert (tmp_path / "out.jsonl").read_text() == ""
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["dense"].shape == (0, random_model.spec.hidden_size)
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 0


def test_score_prints_the_four_scores_as_a_table_or_json(random_artifact: Path, random_model: BGEM3Model) -> None:
    arguments = ["score", random_artifact, "--precision", "fp32", "-q", "BM25", "-p", LINES[0], "-p", LINES[2]]
    done = run(*arguments, "--weights", "1", "2", "3", "--json")
    rows = json.loads(done.stdout)
    expected = random_model.score(["BM25"], [LINES[0], LINES[2]], weights=(1, 2, 3))
    for j, row in enumerate(rows):
        for name in ("dense", "sparse", "multivector", "hybrid"):
            assert row[name] == pytest.approx(float(getattr(expected, name)[0, j]), abs=1e-5)
    assert f"{expected.dense[0, 0]:.4f}" in run(*arguments).stdout


def test_score_prints_texts_with_brackets_and_colons_as_they_are(random_artifact: Path) -> None:
    done = run("score", random_artifact, "-q", "[INST] [/INST]", "-p", "[red] :bee:")
    assert done.returncode == 0, done.stderr
    assert "[INST] [/INST]" in done.stdout
    assert "[red] :bee:" in done.stdout


def test_json_lines_are_not_taken_for_texts(random_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "honey"}\n')
    done = run("encode", random_artifact, path)
    assert done.returncode == 2
    assert "--text-field" in done.stderr
    assert run("encode", random_artifact, path, "--text-field", "text").returncode == 0


def test_long_input_is_encoded_in_chunks_of_bounded_size(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    n_texts: list[int] = []
    encode = BGEM3Model.encode

    def counting(self: BGEM3Model, texts: list[str], *options: Any) -> Embeddings:
        n_texts.append(len(texts))
        return encode(self, texts, *options)

    monkeypatch.setattr(cli, "CHARACTERS_PER_CHUNK", 100)
    monkeypatch.setattr(BGEM3Model, "encode", counting)
    (tmp_path / "lines.txt").write_text("\n".join(["honey " * 10] * 5))
    for name in ("out.parquet", "out.npz", "out.jsonl"):
        n_texts.clear()
        assert main(["encode", str(random_artifact), str(tmp_path / "lines.txt"), "-o", str(tmp_path / name)]) == 0
        assert n_texts == [2, 2, 1]
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 5
    with np.load(tmp_path / "out.npz") as arrays:
        assert len(arrays["dense"]) == 5
        assert arrays["multivector_offsets"][-1] == len(arrays["multivector"])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5


def test_verify_passes_a_whole_artifact_without_torch_and_reports_each_graph(demo_artifact: Path) -> None:
    code = f"""
import sys
from bgem3.runtime.cli import main
status = main(["verify", {str(demo_artifact)!r}, "--json"])
assert "torch" not in sys.modules
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    graphs = [f"{precision}/{graph}.onnx" for precision in ("fp16", "fp32") for graph in ("cuda", "cpu", "native")]
    assert list(reports) == [*graphs, "portable/model.onnx"]
    assert all(report["missed"] == [] for report in reports.values())
    assert "no CUDA provider" in reports["fp16/cuda.onnx"]["not_run"]
    shown = run("verify", demo_artifact, "--precision", "fp16").stdout
    assert "not run: " in shown
    assert shown.count("passed") == (2 if best_kernels() else 1)


def test_verify_fails_when_outputs_differ_from_the_published_values(demo_artifact: Path) -> None:
    done = run("verify", demo_artifact, "--precision", "fp32", "--published", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)["fp32/cpu.onnx"]
    assert len(report["missed"]) == len(report["published"]) == 5
    assert "published values" in report["missed"][0]


def test_info_shows_what_the_artifact_holds(demo_artifact: Path) -> None:
    assert json.loads(run("info", demo_artifact, "--json").stdout)["model"]["max_length"] == 512
    shown = run("info", demo_artifact).stdout
    assert all(words in shown for words in ("fp16/weights.bin", "max_length", "against the checkpoint"))


def test_export_exports_and_its_script_is_the_same_door(demo_checkpoint: Path, tmp_path: Path) -> None:
    done = run("export", demo_checkpoint, tmp_path / "a", "--precision", "fp32", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["graphs"] == [
        {"precision": "fp32", "device": device, "file": f"fp32/{device}.onnx"} for device in ("cuda", "cpu")
    ]
    assert done.stderr == ""
    script = [sys.executable, str(ROOT / "scripts/export_model.py"), str(demo_checkpoint), str(tmp_path / "a")]
    again = subprocess.run(script, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "nowhere"], "no artifact folder at nowhere"),
        (["encode", "ARTIFACT", "nowhere.txt"], "nowhere.txt"),
        (["encode", "ARTIFACT", "-o", "out.csv"], ".jsonl, .npz, .parquet"),
        (["encode", "ARTIFACT", "--text-field", "text"], "line 1 is not a JSON object with the field 'text'"),
        (["encode", "ARTIFACT", "--max-length", "1"], "max_length must be from 2"),
        (["encode", "ARTIFACT", "--device", "cuda"], "use device='cpu'"),
        (["encode", "ARTIFACT", "--threads", "0"], "n_threads must be"),
        (["score", "ARTIFACT", "-q", "a", "-p", "b", "--weights", "0", "0", "0"], "must not sum to 0"),
        (["verify", "ARTIFACT", "--precision", "int4"], "invalid choice"),
        (["nonsense"], "invalid choice"),
        ([], "required"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_ends_with_one_line_that_says_what_to_do(
    random_artifact: Path, arguments: list[str], words: str
) -> None:
    done = run(*(str(random_artifact) if a == "ARTIFACT" else a for a in arguments), stdin="not json\n")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_reader_that_leaves_early_is_no_error(random_artifact: Path) -> None:
    command = f"yes honey | head -2000 | {sys.executable} -m bgem3.runtime.cli encode {random_artifact} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("command", ["export", "encode", "score", "verify", "info"])
def test_every_command_has_help(command: str) -> None:
    assert "usage: bgem3" in run(command, "--help").stdout
