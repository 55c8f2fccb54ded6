"""The examples of docs/client.md run as they stand."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_tokenizer import byte_level
from toy_fleet import MODEL, ThreadedFleet

EXAMPLES = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/client.md").read_text(), re.DOTALL
)
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_page_about_clients_runs(example, tmp_path, monkeypatch, capsys):
    byte_level(tmp_path / "tokenizer.json")
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    model = replace(MODEL, tokenizer=tmp_path / "tokenizer.json")
    with ThreadedFleet(model=model) as running:
        monkeypatch.setenv("PENSTOCK_ADDRESS", running.fleet.address)
        exec(compile(example, "docs/client.md", "exec"), {})
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "length, 64 tokens"
