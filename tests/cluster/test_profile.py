"""Profiles: what is shipped loads, what is saved is read back, and what is wrong is named by file and field."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cluster import units
from penstock.cluster.profile import SHIPPED, Profile, load, save, shipped
from penstock.policy.cost import StepShape

EXAMPLE = "llama-2-7b-h100-tp1"


def tree() -> dict:
    return yaml.safe_load((SHIPPED / f"{EXAMPLE}.yaml").read_text())


def written(tmp_path: Path, change) -> Path:
    """A profile file after `change` was done to the tree of a good one."""
    path, good = tmp_path / "mine.yaml", tree()
    change(good)
    path.write_text(yaml.safe_dump(good))
    return path


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_profile_says_where_it_comes_from(name):
    profile = load(name)
    assert profile.provenance.source and profile.provenance.note and profile.error.basis
    assert {"nvlink", "cross_node", "host"} <= profile.cost.links.keys()


def test_the_shipped_ones_are_those_of_the_published_fits():
    models = {(load(name).model, load(name).tensor_parallel) for name in shipped()}
    llamas = {
        ("Llama-2-7B", 1),
        ("Llama-3-8B", 1),
        ("Llama-2-70B", 2),
        ("Llama-2-70B", 4),
        ("Llama-2-70B", 8),
    }
    opts = {("OPT-13B", n) for n in (1, 2, 4)} | {("OPT-66B", n) for n in (2, 3, 4, 8)}
    assert models == llamas | opts


def test_published_coefficients_price_published_shapes():
    """By hand from the fits: OPT-13B of DistServe on one A100, and Llama-2-7B's GEMMs on an H100."""
    opt = load("opt-13b-a100-tp1-distserve").cost.step
    assert opt.predict(StepShape.of([(512, 0)])) == pytest.approx(
        (18.1025 + 0.101912 * 512 + 7.12226e-6 * 512**2) / 1e3, rel=1e-5
    )
    decode = StepShape.of(contexts=[100] * 128)
    assert opt.predict(decode) == pytest.approx(
        (7.16619 + 0.0005798 * 12800 + 0.158311 * 128) / 1e3, rel=1e-5
    )
    llama = load(EXAMPLE).cost.step
    assert llama.predict(StepShape.of(contexts=[0] * 50)) == pytest.approx(
        (5.37 + 0.01665 * 50) / 1e3, rel=1e-5
    )
    assert llama.predict(StepShape.of(contexts=[0] * 95)) == pytest.approx(
        (4.24 + 0.01914 * 95) / 1e3, rel=1e-5
    )


@pytest.mark.parametrize("name", shipped())
def test_a_saved_profile_is_read_back(name, tmp_path):
    profile = load(name)
    again = load(save(profile, tmp_path / "copy.yaml"))
    assert again == profile


def test_six_digits_are_kept(tmp_path):
    profile = load(EXAMPLE)
    piece = replace(profile.cost.step.decode.below, base_s=1 / 3000)
    law = replace(profile.cost.step.decode, below=piece)
    cost = replace(profile.cost, step=replace(profile.cost.step, decode=law))
    again = load(save(replace(profile, cost=cost), tmp_path / "copy.yaml"))
    assert again.cost.step.decode.below.base_s == pytest.approx(1 / 3000, rel=1e-5)


def _set(tree: dict, where: str, value: object) -> None:
    *folders, last = where.split(".")
    for key in folders:
        tree = tree[key]
    tree[last] = value


@pytest.mark.parametrize(
    "where, value",
    [
        ("cost.step.decode.below.base_s", "5 GB"),
        ("cost.step.decode.below.base_s", "5"),
        ("cost.step.decode.below.base_s", "ms"),
        ("cost.step.decode.below.base_s", "1.2.3 ms"),
        ("cost.step.decode.below.base_s", "-5 ms"),
        ("cost.step.decode.below.base_s", -0.005),
        ("cost.step.decode.below.base_s", float("nan")),
        ("cost.step.decode.below.per_token_s", True),
        ("cost.step.prefill.split_tokens", 0),
        ("cost.step.prefill.split_tokens", 1.5),
        ("cost.links.nvlink.bandwidth_bytes_per_s", "357 ms"),
        ("cost.links.nvlink.bandwidth_bytes_per_s", "0 GB/s"),
        ("cost.links.nvlink.latency_s", "-1 us"),
        ("cost.links.nvlink", 7),
        ("cost.links", [1, 2]),
        ("cost.kv_bytes_per_token", -1),
        ("cost.capacity_tokens", "many"),
        ("cost.step", None),
        ("provenance.source", ""),
        ("provenance.date", "yesterday"),
        ("error.step_p50", -0.1),
        ("tensor_parallel", 0),
        ("model", 7),
        ("dtype", "banana"),
    ],
)
def test_a_wrong_value_is_named_by_file_and_field(where, value, tmp_path):
    path = written(tmp_path, lambda tree: _set(tree, where, value))
    with pytest.raises(ValueError) as caught:
        load(path)
    assert str(path) in str(caught.value) and where in str(caught.value)


@pytest.mark.parametrize(
    "where",
    [
        "cost",
        "cost.step.decode",
        "cost.step.decode.above.per_token_s",
        "cost.kv_bytes_per_token",
        "cost.links.host.latency_s",
        "provenance.source",
        "error.basis",
        "model",
    ],
)
def test_a_missing_field_is_named_by_file_and_field(where, tmp_path):
    def remove(tree: dict) -> None:
        *folders, last = where.split(".")
        for key in folders:
            tree = tree[key]
        del tree[last]

    path = written(tmp_path, remove)
    with pytest.raises(ValueError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {where} is missing"


def test_an_unknown_key_is_told_with_the_nearest_known(tmp_path):
    path = written(tmp_path, lambda tree: _set(tree, "cost.step.decode.below.base_ms", 5))
    with pytest.raises(ValueError, match=r"no key `cost.step.decode.below.base_ms`; did you mean `base_s`\?"):
        load(path)


@pytest.mark.parametrize("text", [b"", b"a: [", b"\xff\xfe", b"- 1\n- 2\n"])
def test_a_file_that_is_no_profile_is_named(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=str(path)):
        load(path)


def test_a_name_that_is_nowhere_is_told_with_those_shipped():
    with pytest.raises(ValueError, match=f"no profile 'llama'.*{EXAMPLE}"):
        load("llama")


@settings(deadline=None)
@given(st.floats(1e-12, 1e12), st.sampled_from(("base_s", "kv_bytes", "bandwidth_bytes_per_s")))
def test_a_quantity_that_is_written_is_read_back(value, name):
    text = units.write(value, name)
    assert isinstance(text, str)
    assert units.read(text, name) == pytest.approx(value, rel=1e-5)


def test_a_profile_needs_no_optional_field(tmp_path):
    def strip(tree: dict) -> None:
        for key in ("engine", "tensor_parallel", "gpus", "dtype"):
            tree.pop(key, None)
        tree["cost"].pop("links")
        tree["error"] = {"basis": "a guess"}

    assert isinstance(load(written(tmp_path, strip)), Profile)
