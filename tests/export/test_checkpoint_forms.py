"""The forms in which people have checkpoints: which are exported, and what is said of the others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.reference import SENTENCES, last_states, parity_texts
from bgem3.runtime import CheckpointError
from bgem3.runtime import export_cache as cache
from bgem3.runtime.adapters import adapter_files
from bgem3.runtime.artifact import MANIFEST
from bgem3.runtime.checkpoint_files import checkpoint_hash, find_checkpoint

Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def loaded(random_checkpoint: Path) -> Checkpoint:
    """The checkpoint as it is."""
    return load_checkpoint(random_checkpoint)


@pytest.fixture
def folder(random_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, for a test to change."""
    return Path(shutil.copytree(random_checkpoint, tmp_path / "checkpoint"))


def write(name: str, content: str | bytes | dict[str, Any] | list[Any] | None) -> Edit:
    """Return the function that writes a file into a folder; None removes the file."""

    def edit(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        else:
            text = content if isinstance(content, (str, bytes)) else json.dumps(content)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return edit


def with_settings(file: str = "config.json", /, **values: Any) -> Edit:
    """Return the function that changes settings."""
    return lambda folder: write(file, json.loads((folder / file).read_text(encoding="utf-8")) | values)(folder)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def store(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def renamed(*prefixes: str) -> Edit:
    """Return the function that stores the weights once under each prefix."""

    def edit(folder: Path) -> None:
        tensors = stored(folder)
        store(folder, {p + name: values.clone() for p in prefixes for name, values in tensors.items()})

    return edit


def edited(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    """Return the function that changes the stored tensors."""

    def edit(folder: Path) -> None:
        tensors = stored(folder)
        change(tensors)
        store(folder, tensors)

    return edit


def moved(old: str, new: str) -> Edit:
    return lambda folder: (folder / old).rename(folder / new)


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    """Check that two checkpoints compute the same."""
    assert found.spec == expected.spec
    ours, theirs = found.model.state_dict(), expected.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for text in ("", SENTENCES[0]):
        (ids, states), (expected_ids, expected_states) = (last_states(one, text) for one in (found, expected))
        assert ids == expected_ids
        assert torch.equal(states, expected_states)


# Settings that do not matter


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(with_settings("tokenizer_config.json", extra_special_tokens=["<q>"]), id="list_of_extra_tokens"),
        pytest.param(with_settings("tokenizer_config.json", extra_special_tokens={"q": "<q>"}), id="dict_of_tokens"),
        pytest.param(with_settings("tokenizer_config.json", extra_special_tokens=3), id="number_of_extra_tokens"),
        pytest.param(with_settings("tokenizer_config.json", tokenizer_class="TokenizersBackend"), id="class_of_v5"),
        pytest.param(with_settings("tokenizer_config.json", tokenizer_class="NoSuchTokenizer"), id="unknown_class"),
        pytest.param(with_settings("tokenizer_config.json", tokenizer_class=None), id="no_class"),
        pytest.param(with_settings("tokenizer_config.json", tokenizer_class=[1]), id="class_of_another_type"),
        pytest.param(with_settings("tokenizer_config.json", added_tokens_decoder={"x": 1}), id="wrong_added_tokens"),
        pytest.param(with_settings("tokenizer_config.json", cls_token="<pad>", unk_token={"a": 1}), id="wrong_roles"),
        pytest.param(with_settings("tokenizer_config.json", model_max_length=1e30, backend="x"), id="unknown_settings"),
        pytest.param(with_settings("tokenizer_config.json", auto_map=["a"], tokenizer_class="A"), id="auto_map_list"),
        pytest.param(
            with_settings("tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}), id="other_code"
        ),
        pytest.param(write("tokenizer_config.json", None), id="no_file"),
        pytest.param(write("tokenizer_config.json", ""), id="empty_file"),
        pytest.param(write("tokenizer_config.json", "[1, 2]"), id="list"),
        pytest.param(write("tokenizer_config.json", "null"), id="null"),
        pytest.param(write("tokenizer_config.json", "[" * 100_000), id="deeply_nested"),
        pytest.param(write("tokenizer_config.json", b"\xff\xfe\x00"), id="binary"),
        pytest.param(write("special_tokens_map.json", '{"cls_token": 7}'), id="damaged_special_tokens_map"),
        pytest.param(write("added_tokens.json", "garbage"), id="damaged_added_tokens"),
    ],
)
def test_no_form_of_the_tokenizers_settings_matters(folder: Path, loaded: Checkpoint, edit: Edit) -> None:
    edit(folder)
    found = load_checkpoint(folder)
    assert found.spec == loaded.spec
    texts = parity_texts(loaded)
    assert [found.token_ids(text) for text in texts] == [loaded.token_ids(text) for text in texts]


@pytest.mark.parametrize("max_length", [None, 2, 3, 17, 128])
def test_token_ids_are_those_of_transformers(loaded: Checkpoint, max_length: int | None) -> None:
    theirs: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(loaded.folder / "tokenizer.json")
    )
    for text in parity_texts(loaded):
        expected = theirs(text, truncation=max_length is not None, max_length=max_length)["input_ids"]
        assert loaded.token_ids(text, max_length) == expected


@pytest.mark.parametrize(
    "edit",
    [
        *(
            pytest.param(with_settings("config.json", **{name: value}), id=f"{name}_{value}")
            for name in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
            for value in ("flash_attention_2", "sdpa", "nonsense", None, 3)
        ),
        *(
            pytest.param(with_settings("config.json", **{name: value}), id=f"{name}_{value}")
            for name in ("torch_dtype", "dtype")
            for value in ("bfloat16", "float8", "auto", None, 16)
        ),
        pytest.param(with_settings(architectures=["Unknown"], transformers_version="99"), id="of_a_later_version"),
        pytest.param(with_settings(auto_map={"AutoModel": "code.Model"}), id="auto_map"),
        pytest.param(with_settings(adapters={"a": 1}, rope_parameters=None, pruned_heads={"0": [1]}), id="unknown"),
        pytest.param(with_settings(is_decoder=None, position_embedding_type=None), id="null"),
        pytest.param(with_settings(quantization_config=None, id2label={"x": 1}, num_labels="two"), id="labels"),
        pytest.param(
            lambda folder: write("config.json", b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())(folder),
            id="byte_order_mark",
        ),
        pytest.param(
            lambda folder: write("tokenizer.json", b"\xef\xbb\xbf" + (folder / "tokenizer.json").read_bytes())(folder),
            id="byte_order_mark_of_the_tokenizer",
        ),
    ],
)
def test_settings_that_do_not_decide_what_is_computed_have_no_effect(
    folder: Path, loaded: Checkpoint, edit: Edit
) -> None:
    edit(folder)
    assert_same(load_checkpoint(folder), loaded)


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("strategy", ["BatchLongest", {"Fixed": 64}])
def test_padding_and_truncation_stored_in_the_tokenizer_do_not_matter(
    folder: Path, loaded: Checkpoint, strategy: Any, direction: str
) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    padding = {"strategy": strategy, "direction": direction.title(), "pad_to_multiple_of": 8}
    padding |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    truncation = {"direction": direction.title(), "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    write("tokenizer.json", settings | {"padding": padding, "truncation": truncation})(folder)
    assert_same(load_checkpoint(folder), loaded)


# Tokenizers


def with_tokenizer(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(values)
        write("tokenizer.json", values)(folder)

    return edit


def swap(values: dict[str, Any]) -> None:
    single = values["post_processor"]["single"]
    single[0], single[-1] = single[-1], single[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(swap, r"does not put CLS before and EOS after a text.*'</s>', '<s>'", id="swapped"),
        pytest.param(lambda v: v.update(post_processor=None), r"does not put CLS before.*becomes \[\]", id="none"),
        pytest.param(
            lambda v: [v["model"].update(unk_id=None), unname(v, "<unk>")], "has no token for unknown", id="unk"
        ),
        pytest.param(lambda v: v.update(model={}), "cannot read the tokenizer", id="no_model"),
    ],
)
def test_a_tokenizer_without_its_special_tokens_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    with_tokenizer(change)(folder)
    with pytest.raises(CheckpointError, match=f"(?s){words}"):
        load_checkpoint(folder)


def unname(values: dict[str, Any], token: str) -> dict[str, Any]:
    """Give a special token another text; return the settings."""
    values["added_tokens"] = [added for added in values["added_tokens"] if added["content"] != token]
    values["model"]["vocab"] = [["?" if name == token else name, score] for name, score in values["model"]["vocab"]]
    return values


def test_the_pad_id_is_the_configs_where_the_tokenizer_names_no_pad_token(folder: Path, loaded: Checkpoint) -> None:
    with_tokenizer(lambda values: unname(values, "<pad>"))(folder)
    assert load_checkpoint(folder).spec == loaded.spec


def test_the_unknown_id_of_a_tokenizer_that_names_its_text_is_that_texts(folder: Path, loaded: Checkpoint) -> None:
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "[UNK]": 3, "a": 4}
    settings = json.loads(Tokenizer(BPE(words, [], unk_token="[UNK]")).to_str())
    theirs = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    write("tokenizer.json", settings | {"post_processor": theirs["post_processor"]})(folder)
    assert load_checkpoint(folder).spec.unk_id == 3


# Adapters

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "BAAI/bge-m3"}


def with_lora_weights(folder: Path) -> None:
    """Store the weights as peft does before they are merged."""
    tensors = stored(folder)
    name = "encoder.layer.0.attention.self.query"
    tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
    tensors |= {f"{name}.lora_{part}.default.weight": torch.ones(2, 2) for part in "AB"}
    store(folder, {f"base_model.model.{key}": values for key, values in tensors.items()})


LORA = {"base_model.model.encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(2, 2)}
ARRANGEMENTS = [
    pytest.param(write("adapter_config.json", ADAPTER), id="settings"),
    pytest.param(write("adapter_config.json", "garbage"), id="damaged_settings"),
    pytest.param(write("adapter_model.safetensors", b"x"), id="safetensors"),
    pytest.param(write("adapter_model.bin", b"x"), id="bin"),
    pytest.param(write("adapters/english/adapter_config.json", ADAPTER), id="in_a_folder_of_adapters"),
    pytest.param(write("checkpoint-500/adapter_model.safetensors", b"x"), id="in_a_trainers_checkpoint"),
    pytest.param(
        lambda folder: [write("adapter_config.json", ADAPTER)(folder), (folder / "model.safetensors").unlink()],
        id="without_base_weights",
    ),
    pytest.param(
        lambda folder: [write("adapter_config.json", ADAPTER)(folder), (folder / "config.json").unlink()],
        id="without_settings_of_a_model",
    ),
    pytest.param(
        lambda folder: (folder / "adapter_config.json").symlink_to("/no/such/file"), id="as_a_link_that_leads_nowhere"
    ),
    pytest.param(write("adapter_model-00001-of-00002.safetensors", b"x"), id="in_parts"),
    pytest.param(lambda folder: store(folder, LORA, "lora_weights.safetensors"), id="under_another_name"),
    pytest.param(lambda folder: torch.save(LORA, folder / "lora.pt"), id="of_torch_under_another_name"),
    pytest.param(lambda folder: store(folder, LORA, "deep/er/a.safetensors"), id="deep"),
    pytest.param(
        edited(lambda tensors: tensors.update({"encoder.layer.0.output.adapters.a.down.weight": torch.ones(2, 2)})),
        id="of_adapter_hub",
    ),
    pytest.param(
        lambda folder: torch.save(
            {"base_layer.weight": torch.ones(1, 96), "lora_A.weight": torch.ones(1)}, folder / "sparse_linear.pt"
        ),
        id="in_a_head",
    ),
    pytest.param(with_lora_weights, id="among_the_weights"),
    pytest.param(edited(lambda tensors: tensors.update({"lora_A.weight": torch.ones(2, 2)})), id="one_more_tensor"),
]


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
def test_an_adapter_is_refused_in_every_arrangement(folder: Path, arrange: Edit) -> None:
    arrange(folder)
    with pytest.raises(CheckpointError, match=r"holds a LoRA adapter.*merge it first.*merge_and_unload"):
        load_checkpoint(folder)


def test_a_damaged_file_beside_the_weights_is_no_adapter(folder: Path) -> None:
    path = folder / "optimizer.pt"
    torch.save({"state": torch.ones(2)}, path)
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert adapter_files(folder, ()) == []


def test_an_adapter_of_another_kind_is_named(folder: Path) -> None:
    write("adapter_config.json", {"peft_type": "IA3"})(folder)
    with pytest.raises(CheckpointError, match=r"holds an adapter \(IA3\).*merge it first"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapters/english/adapter_config.json"])
def test_a_kept_export_is_not_used_once_the_checkpoint_gains_an_adapter(
    folder: Path, tmp_path: Path, name: str
) -> None:
    key = checkpoint_hash(folder)
    kept = tmp_path / "bgem3" / f"{key[:32]}-fp16-v1"
    write(MANIFEST, {"format_version": 1})(kept)
    assert cache.find_or_export(folder, "fp16", tmp_path) == kept
    write(name, ADAPTER)(folder)
    assert checkpoint_hash(folder) != key
    with pytest.raises(CheckpointError, match="holds a LoRA adapter"):
        cache.find_or_export(folder, "fp16", tmp_path)


# Names of tensors

PREFIXES = ["model.", "roberta.", "xlm_roberta.", "0.auto_model.", "module.", "backbone.", "encoder.model.", "a.b.c.d."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_under_one_prefix_are_read(folder: Path, loaded: Checkpoint, prefix: str) -> None:
    renamed(prefix)(folder)
    assert_same(load_checkpoint(folder), loaded)


def test_weights_without_a_prefix_go_before_others(folder: Path, loaded: Checkpoint) -> None:
    tensors = stored(folder)
    store(folder, tensors | {f"ema.{name}": torch.zeros_like(values) for name, values in tensors.items()})
    assert_same(load_checkpoint(folder), loaded)


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(renamed("student.", "teacher."), r"hold 2 models.*student\., teacher\.", id="two_models"),
        pytest.param(
            lambda folder: [renamed("model.")(folder), edited(lambda t: t.pop(f"model.{QUERY}"))(folder)],
            rf"1 tensors are missing, such as model\.{QUERY}",
            id="one_missing_under_a_prefix",
        ),
        pytest.param(
            lambda folder: store(folder, {"linear.weight": torch.ones(2), "linear.bias": torch.ones(2)}),
            r"hold no backbone; found the tensors linear\.bias, linear\.weight, expected names such as embeddings",
            id="another_model",
        ),
        pytest.param(lambda folder: store(folder, {}), "hold no backbone; found the tensors none", id="no_tensors"),
        pytest.param(
            edited(lambda t: t.update({QUERY: t[QUERY].to(torch.int8)})),
            f"tensor {QUERY} is stored as torch.int8, expected floating-point.*before it was quantized",
            id="int8",
        ),
        pytest.param(
            edited(lambda t: t.update({QUERY: t[QUERY].to(torch.float8_e4m3fn)})), "stored as torch.float8", id="float8"
        ),
    ],
)
def test_weights_that_are_no_one_backbones_say_what_was_found(folder: Path, edit: Edit, words: str) -> None:
    edit(folder)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(folder)


def as_head(change: Callable[[dict[str, torch.Tensor]], object], name: str) -> Edit:
    """Return the function that stores a head otherwise."""
    return lambda folder: torch.save(change(torch.load(folder / name)), folder / name)


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
@pytest.mark.parametrize("prefix", ["linear.", "module.", "sparse_linear.", "colbert_linear.", "0.linear."])
def test_a_head_under_a_prefix_is_read(folder: Path, loaded: Checkpoint, name: str, prefix: str) -> None:
    as_head(lambda state: {prefix + key: values for key, values in state.items()}, name)(folder)
    assert_same(load_checkpoint(folder), loaded)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda s: {"a.weight": s["weight"], "b.bias": s["bias"]}, id="of_two_layers"),
        pytest.param(lambda s: {f"{n}.{key}": v for n in "ab" for key, v in s.items()}, id="two_layers"),
        pytest.param(lambda s: {"a.weight": s["weight"]}, id="without_bias"),
        pytest.param(lambda s: {"a.kernel": s["weight"], "a.bias": s["bias"]}, id="another_name"),
        pytest.param(lambda s: {}, id="nothing"),
    ],
)
def test_a_head_that_is_no_one_layer_names_the_keys_that_were_found(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    as_head(change, "sparse_linear.pt")(folder)
    names = ", ".join(sorted(torch.load(folder / "sparse_linear.pt"))) or "none"
    with pytest.raises(CheckpointError, match=rf"sparse_linear\.pt.*found {names}, expected weight and bias"):
        load_checkpoint(folder)


def as_bin(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    """Return the function that stores the weights as torch.save does, changed."""

    def edit(folder: Path) -> None:
        torch.save(change(stored(folder)), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    return edit


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "module"])
def test_a_state_dict_that_a_trainer_wrapped_is_read(folder: Path, loaded: Checkpoint, name: str) -> None:
    as_bin(lambda state: {"epoch": 3, name: state})(folder)
    as_head(lambda state: {name: state}, "sparse_linear.pt")(folder)
    assert_same(load_checkpoint(folder), loaded)


def test_python_objects_are_not_loaded_and_torchs_advice_to_load_them_is_not_given(folder: Path) -> None:
    torch.save(torch.nn.Linear(96, 1), folder / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match=r"holds Python objects, which are never loaded.*state_dict") as caught:
        load_checkpoint(folder)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_heads_in_another_form_are_named_and_no_others_recommended(folder: Path, suffix: str) -> None:
    moved("sparse_linear.pt", f"sparse_linear{suffix}")(folder)
    with pytest.raises(CheckpointError, match=rf"no sparse_linear\.pt, but sparse_linear{suffix}; store") as caught:
        find_checkpoint(folder)
    assert "heads_from" not in str(caught.value)


def test_heads_among_the_weights_that_torch_stored_are_read(folder: Path, loaded: Checkpoint) -> None:
    heads: dict[str, torch.Tensor] = {}
    for head in ("sparse_linear", "colbert_linear"):
        heads |= {f"{head}.{key}": values for key, values in torch.load(folder / f"{head}.pt").items()}
        (folder / f"{head}.pt").unlink()
    as_bin(lambda state: {f"model.{key}": values for key, values in state.items()} | heads)(folder)
    assert_same(load_checkpoint(folder), loaded)


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_heads_among_the_weights_are_read_where_they_have_no_file(
    folder: Path, loaded: Checkpoint, prefix: str
) -> None:
    renamed("model.")(folder)
    tensors = stored(folder)
    for head in ("sparse_linear", "colbert_linear"):
        state = torch.load(folder / f"{head}.pt")
        tensors |= {f"{prefix}{head}.{key}": values for key, values in state.items()}
        (folder / f"{head}.pt").unlink()
    store(folder, tensors)
    assert_same(load_checkpoint(folder), loaded)
    assert set(load_checkpoint(folder).source["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert checkpoint_hash(folder)


# Files


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt"]
)
def test_a_git_lfs_pointer_says_how_to_get_the_file(folder: Path, name: str) -> None:
    write(name, "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 2271064456\n")(folder)
    with pytest.raises(
        CheckpointError, match=rf"{name} is a git-lfs pointer.*run `git lfs pull` in {folder}"
    ) as caught:
        load_checkpoint(folder)
    assert "again" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(
            write("model.safetensors", "/annex/objects/MD5E-s9--1\n"), "git-annex pointer.*git annex get", id="annex"
        ),
        pytest.param(moved("model.safetensors", "model.safetensors.dvc"), "dvc; run `dvc pull`", id="dvc"),
        pytest.param(write(MANIFEST, {"format_version": 1}), "it is an exported artifact; give the", id="artifact"),
    ],
)
def test_what_stands_in_place_of_weights_says_how_to_get_them(folder: Path, edit: Edit, words: str) -> None:
    edit(folder)
    if "artifact" in words:
        (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(folder)


def in_parts(folder: Path) -> None:
    """Store the weights in two files with their index, as transformers does with large models."""
    tensors = stored(folder)
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    place = {key: names[i % 2] for i, key in enumerate(sorted(tensors))}
    for name in names:
        store(folder, {key: tensors[key] for key in place if place[key] == name}, name)
    write("model.safetensors.index.json", {"metadata": {}, "weight_map": place})(folder)


def test_weights_in_parts_are_read(folder: Path, loaded: Checkpoint) -> None:
    in_parts(folder)
    assert_same(load_checkpoint(folder), loaded)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(
            write("model-00002-of-00002.safetensors", None),
            r"has no model-00002-of-00002\.safetensors, which the weights' index names",
            id="part_missing",
        ),
        pytest.param(write(INDEX, "garbage"), r"cannot read .*index\.json as the list", id="index_text"),
        pytest.param(write(INDEX, []), r"cannot read .*index\.json as the list", id="index_list"),
        pytest.param(write(INDEX, {}), r"cannot read .*index\.json as the list", id="index_without_map"),
        pytest.param(write(INDEX, {"weight_map": {"a": 1}}), r"cannot read .*index\.json", id="index_of_numbers"),
        pytest.param(write(INDEX, {"weight_map": {}}), "names files out of its folder, or none", id="index_of_nothing"),
        pytest.param(write(INDEX, {"weight_map": {"a": "../x.bin"}}), "names files out of its folder", id="index_out"),
        pytest.param(
            write(INDEX, None), r"no model\.safetensors, but model-00001-of-00002\.safetensors, ", id="index_missing"
        ),
        pytest.param(
            write(INDEX, "version https://git-lfs.github.com/spec/v1\n"), "run `git lfs pull`", id="index_pointer"
        ),
    ],
)
def test_parts_of_weights_that_do_not_fit_their_index_are_named(folder: Path, edit: Edit, words: str) -> None:
    in_parts(folder)
    edit(folder)
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.fp16.safetensors", r"rename model\.fp16\.safetensors to model\.safetensors"),
        ("model.bf16.safetensors", r"rename model\.bf16\.safetensors to model\.safetensors"),
        ("pytorch_model.fp16.bin", r"rename pytorch_model\.fp16\.bin to pytorch_model\.bin"),
        ("model.fp16-00001-of-00002.safetensors", r"save_pretrained"),
        ("model_fp16.safetensors", r"only model\.safetensors and pytorch_model\.bin, whole or in parts"),
        ("model.onnx", "save_pretrained"),
        ("flax_model.msgpack", "save_pretrained"),
        ("tf_model.h5", "save_pretrained"),
        ("bge-m3-q8.gguf", "save_pretrained"),
    ],
)
def test_weights_of_another_form_are_named(folder: Path, name: str, words: str) -> None:
    moved("model.safetensors", name)(folder)
    with pytest.raises(CheckpointError, match=rf"has no model\.safetensors, but {name}; .*{words}"):
        find_checkpoint(folder)


def test_a_variant_beside_the_weights_is_not_read(folder: Path, loaded: Checkpoint) -> None:
    store(folder, {"garbage": torch.ones(1)}, "model.fp16.safetensors")
    assert_same(load_checkpoint(folder), loaded)
    assert "model.fp16.safetensors" not in load_checkpoint(folder).source["files"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "sparse_linear.pt", "config.json"])
def test_a_link_that_leads_nowhere_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(".git/annex/objects/abc")
    with pytest.raises(
        CheckpointError, match=rf"no {name}: .*{name} is a link to .git/annex/objects/abc, which is not"
    ):
        find_checkpoint(folder)


def test_a_sentencepiece_model_alone_says_how_to_write_the_tokenizer(folder: Path) -> None:
    moved("tokenizer.json", "sentencepiece.bpe.model")(folder)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, but sentencepiece.*AutoTokenizer\.from_pretrained"):
        find_checkpoint(folder)


def test_a_folder_above_the_checkpoint_names_it(folder: Path) -> None:
    write("1_Pooling/config.json", {})(folder.parent)  # of sentence-transformers: no model
    with pytest.raises(CheckpointError, match=rf"has no config\.json.*but {folder} has one; is that the checkpoint"):
        find_checkpoint(folder.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_given_for_its_folder_names_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name} is a file; give the checkpoint's folder, {folder}"):
        find_checkpoint(folder / name)


@pytest.mark.parametrize("replacement", [None, [], {}, -1, 10**30, "x", True, 0.5], ids=repr)
def test_any_one_damaged_setting_is_refused_or_of_no_effect(folder: Path, loaded: Checkpoint, replacement: Any) -> None:
    """One setting at a time takes a wrong value: the same model comes out, or CheckpointError."""
    original = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in original:
        write("config.json", original | {name: replacement})(folder)
        try:
            found = load_checkpoint(folder)
        except CheckpointError:
            continue
        if name not in ("layer_norm_eps", "num_attention_heads"):  # any number may be right
            assert found.spec == loaded.spec, name
