"""The configuration: what is written is what runs, and what is wrong is said in one sentence that names the key."""

import json
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from penstock.cluster.config import Config, InstanceSettings, build, default, load, parse
from penstock.cluster.preparation import model_info
from penstock.cluster.settings import meanings
from penstock.engine.config import EngineConfig


def parts() -> list[type]:
    return [kind for kind in get_type_hints(Config).values() if is_dataclass(kind)]


def test_nothing_written_is_the_default():
    assert parse(None) == parse({}) == parse({"router": None, "engine": {}}) == default()
    assert (default().cluster.prefill, default().cluster.decode) == (1, 2)


def test_what_is_written_is_what_runs(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("cluster: {prefill: 2, ray_address: '10.0.0.1:6379'}\nhandover:\n  lease_s: 4\n")
    config = load(path)
    assert (config.cluster.prefill, config.cluster.ray_address) == (2, "10.0.0.1:6379")
    assert config.handover.lease_s == 4.0 and isinstance(config.handover.lease_s, float)
    assert config.engine == default().engine


@pytest.mark.parametrize(
    "tree, sentence",
    [
        ({"clutser": {}}, "no key `clutser`; did you mean `cluster`?"),
        ({"cluster": {"prefil": 1}}, "no key `cluster.prefil`; did you mean `prefill`?"),
        ({"engine": {"block-size": 16}}, "no key `engine.block-size`; did you mean `block_size`?"),
        ({"router": {"zzz": 1}}, "no key `router.zzz`; there are ahead_s, client_wait_s,"),
        ({"cluster": {"prefill": "two"}}, "cluster.prefill must be a whole number, got 'two'"),
        ({"cluster": {"prefill": 1.5}}, "cluster.prefill must be a whole number, got 1.5"),
        ({"cluster": {"prefill": True}}, "cluster.prefill must be a whole number, got True"),
        ({"cluster": {"prefill": None}}, "cluster.prefill must be a whole number, got None"),
        ({"cluster": {"log_json": 1}}, "cluster.log_json must be true or false, got 1"),
        ({"handover": {"lease_s": "3 GB"}}, "handover.lease_s must be a time such as `5.4 ms`"),
        ({"handover": {"lease_s": float("nan")}}, "handover.lease_s must be a finite number, got nan"),
        ({"engine": {"model": 7}}, "engine.model must be text, got 7"),
        ({"engine": 3}, "engine must be a mapping of keys to values, got 3"),
        ([], "the configuration must be a mapping of keys to values, got []"),
        ({"cluster": {"prefill": 0}}, "cluster.prefill must be at least 1, got 0"),
        ({"cluster": {"decode": 10**9}}, "cluster.decode must be at most 4096, got 1000000000"),
        ({"cluster": {"decode_slots": 2**33}}, "cluster.decode_slots must be at most 1048576"),
        ({"cluster": {"prefill_tokens": 2**33}}, "cluster.prefill_tokens must be at most 1048576"),
        ({"cluster": {"itl_target_s": 0.1}}, "cluster.itl_target_s needs cluster.profile"),
        ({"cluster": {"prefill_tokens": 0}}, "cluster.prefill_tokens of 0 needs cluster.profile"),
        ({"engine": {"threads": 10**12}}, "engine.threads must be at most 1024"),
        ({"engine": {"block_size": 10**8}}, "engine.block_size must be at most 65536"),
        ({"engine": {"admission": "hopeful"}}, "engine.admission must be one of predicted, aggressive,"),
        ({"engine": {"host_kv_bytes": -1}}, "engine.host_kv_bytes must be an integer of at least 0"),
        ({"engine": {"host_kv_bytes": 1, "prefix_cache": False}}, "engine.host_kv_bytes needs engine.prefix"),
        ({"cluster": {"prefill": -1, "mixed": 2}}, "cluster.prefill must be at least 0, got -1"),
        ({"cluster": {"mixed": -1}}, "cluster.mixed must be at least 0, got -1"),
        (
            {"cluster": {"decode_tensor_parallel": -1}},
            "cluster.decode_tensor_parallel must be 0 or above, got -1",
        ),
        (
            {"engine": {"tensor_parallel": 0}},
            "engine.tensor_parallel must be an integer of at least 1, got 0",
        ),
        ({"cluster": {"name": "My Cluster"}}, "cluster.name must be up to 40 lower-case letters"),
        ({"cluster": {"temp_dir": "/" + "x" * 60}}, "cluster.temp_dir must have at most 28 characters"),
        ({"cluster": {"controller_port": 70000}}, "cluster.controller_port must be a port or 0, got 70000"),
        ({"cluster": {"object_store_bytes": 1}}, "cluster.object_store_bytes: Ray wants at least"),
        (
            {"cluster": {"log_level": "loud"}},
            "cluster.log_level must be debug, info, warning or error, got 'loud'",
        ),
        ({"cluster": {"start_s": 0}}, "cluster.start_s must be above 0, got 0.0"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tree, sentence):
    with pytest.raises(ValueError) as raised:
        parse(tree)
    assert str(raised.value).startswith(sentence)
    assert "\n" not in str(raised.value)


def test_a_quantity_may_bring_its_own_unit():
    config = parse({"engine": {"kv_bytes": "2 GiB"}, "handover": {"lease_s": "2500 ms"}})
    assert config.engine.kv_bytes == 2 << 30 and isinstance(config.engine.kv_bytes, int)
    assert config.handover.lease_s == 2.5


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: [", ", line 1, column 5, is not YAML: expected the node content, but found '<stream end>'"),
        (
            "engine: {threads: 2}\nrouter: a: b",
            ", line 2, column 10, is not YAML: mapping values are not allowed here",
        ),
        ("cluster: {}\n---\n", ", line 2, column 1, is not YAML: but found another document"),
        ("router: \x01", " is not YAML: "),
        ("cluster: {prefil: 1}", ": no key `cluster.prefil`"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_place(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}{said}") and "\n" not in str(raised.value)


def test_paths_in_a_file_are_relative_to_its_folder(tmp_path):
    path = tmp_path / "c.yaml"
    (tmp_path / "mine.yaml").touch()

    def paths(model, profile):
        path.write_text(f"engine: {{model: {model}}}\ncluster: {{profile: {profile}}}")
        config = load(path)
        return config.engine.model, config.cluster.profile

    assert paths("models/a", "mine.yaml") == (str(tmp_path / "models/a"), str(tmp_path / "mine.yaml"))
    assert paths("/models/a", "/p.yaml") == ("/models/a", "/p.yaml")
    assert paths("embedded", "llama-2-7b-a100-tp1") == ("embedded", "llama-2-7b-a100-tp1")


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"cluster: \xff")
    with pytest.raises(ValueError, match=r"c.yaml is not UTF-8 text: invalid start byte at byte 9"):
        load(path)


def test_the_settings_of_an_instance_are_read_with_the_same_care():
    tree = {
        "name": "decode-0",
        "life": 1,
        "prefill_tokens": 512,
        "decode_slots": 64,
        "engine": {"kv_blocks": 9},
    }
    settings = build(InstanceSettings, tree)
    assert settings.engine.kv_blocks == 9
    with pytest.raises(ValueError, match="did you mean `life`"):
        build(InstanceSettings, {**tree, "live": 2})


@pytest.mark.parametrize("kind", parts(), ids=lambda kind: kind.__name__)
def test_every_key_says_what_it_is(kind):
    assert meanings(kind).keys() == {field.name for field in fields(kind)}


def test_each_pool_may_have_a_tensor_parallelism_of_its_own():
    config = parse({"engine": {"tensor_parallel": 2}, "cluster": {"decode_tensor_parallel": 1}})
    assert [config.engine_of(pool).tensor_parallel for pool in ("prefill", "decode")] == [2, 1]


def test_a_model_that_ranks_cannot_share_is_refused_before_anything_starts():
    config = parse({"cluster": {"decode_tensor_parallel": 4}})
    with pytest.raises(
        ValueError, match="engine.tensor_parallel: 4 does not divide the model's num_attention"
    ):
        model_info(config)


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("cluster: {decode: 3}\nrouter: {port: 0}\ncluster: {prefill: 2}\n")
    with pytest.raises(ValueError, match="twice.yaml: key `cluster` stands twice, the second time in line 3"):
        load(path)


def test_tokens_that_the_model_does_not_have_are_told_of(tmp_path, caplog):
    folder = EngineConfig().folder
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    known = json.loads((folder / "tokenizer.json").read_text())
    config = parse({"engine": {"model": str(tmp_path)}})
    model_info(config)
    assert not caplog.records
    known["added_tokens"].append(known["added_tokens"][0] | {"id": 4096, "content": "<beyond>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(known))
    model_info(config)
    assert "tokens up to 4096, and the model has 4096" in caplog.text
