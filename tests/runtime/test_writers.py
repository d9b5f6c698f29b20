"""The output file of `bgem3 encode`, written whole or not at all."""

from pathlib import Path

import pytest

from bgem3.runtime import cli


@pytest.mark.parametrize("suffix", [".jsonl", ".npz", ".parquet"])
@pytest.mark.parametrize("before", [None, "what was there"], ids=["new", "existing"])
def test_an_encode_that_fails_midway_leaves_its_output_file_as_it_was(
    random_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    before: str | None,
) -> None:
    lines, output = tmp_path / "lines", tmp_path / "out" / f"embeddings{suffix}"
    lines.write_text('{"text": "a"}\n{"text": "b"}\n{"title": "c"}\n', encoding="utf-8")
    output.parent.mkdir()
    if before is not None:
        output.write_text(before, encoding="utf-8")
    monkeypatch.setattr(cli, "TEXTS_PER_CHUNK", 1)
    arguments = [str(random_artifact), str(lines), "--text-field", "text", "-o", str(output), "--device", "cpu"]
    assert cli.main(["encode", *arguments]) == 2
    assert "line 3 is not a JSON object with the field 'text'" in capsys.readouterr().err
    assert [path.name for path in output.parent.iterdir()] == ([] if before is None else [output.name])
    assert before is None or output.read_text(encoding="utf-8") == before
