"""The configuration that is printed: whole, explained, and itself a configuration."""

import json
from dataclasses import fields, replace

import pytest
from click.testing import CliRunner

from penstock.cli.config import command
from penstock.cluster.config import Config, default, load
from penstock.cluster.profile import load as load_profile
from penstock.cluster.settings import as_yaml, settings

OWN = replace(
    default(),
    engine=replace(default().engine, model="/models/a", host_kv_bytes=1 << 30),
    cost=load_profile("llama-2-7b-a100-tp1").cost,
)


@pytest.mark.parametrize("config", [default(), OWN], ids=["defaults", "one's own"])
def test_what_is_printed_is_a_configuration_with_the_same_values(tmp_path, config):
    path = tmp_path / "c.yaml"
    path.write_text(as_yaml(config))
    assert load(path) == config


def test_every_key_is_there_with_a_meaning_and_its_default():
    keys = {key.path: key for _, _, section in settings(OWN) for key in section}
    sections = [field.name for field in fields(Config) if field.name != "cost"]
    named = {f"{name}.{field.name}" for name in sections for field in fields(type(getattr(default(), name)))}
    assert keys.keys() == named | {"cost"} and all(key.meaning for key in keys.values())
    changed = {path for path, key in keys.items() if key.value != key.default}
    assert changed == {"engine.model", "engine.host_kv_bytes", "cost"}
    assert "# Folder of a Hugging Face checkpoint" in as_yaml(OWN) and "(default: embedded)" in as_yaml(OWN)


def test_the_command_prints_the_defaults_or_those_of_a_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("cluster: {decode: 5}")
    assert CliRunner().invoke(command, []).output == as_yaml(default())
    said = json.loads(CliRunner().invoke(command, [str(path), "--json"]).output)
    assert (said["cluster.decode"]["value"], said["cluster.decode"]["default"]) == (5, 2)
