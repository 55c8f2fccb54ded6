"""`bench admission`: every request is served in full under each rule, and only the bold one takes memory back often."""

from collections.abc import Sequence

import pytest
from click.testing import CliRunner

from penstock.benchmarks import admission
from penstock.cli.bench import command
from penstock.engine.step import StepItem
from penstock.policy.admission import RULES


class Echo:
    """A model that says its last token plus one."""

    def step(self, items: Sequence[StepItem]) -> list[int | None]:
        return [(item.tokens[-1] + 1) % 4096 if item.sample else None for item in items]


@pytest.fixture(scope="module")
def trials() -> dict[str, admission.Trial]:
    requests = admission.read_requests(120)
    blocks = admission.memory_blocks(requests, 16)
    trials = {rule: admission.Trial(rule, requests, blocks, Echo(), 4096) for rule in RULES}
    admission.take_turns(list(trials.values()), lambda _: None)
    return trials


def test_every_request_has_all_its_tokens_once_and_the_same_under_each_rule(trials):
    for number, request in enumerate(trials["predicted"].requests):
        outputs = [trial.outputs[str(number)] for trial in trials.values()]
        assert all(output == outputs[0] and len(output) == request.output_tokens for output in outputs)
    wanted = sum(request.output_tokens for request in trials["predicted"].requests)
    assert [trial.tokens for trial in trials.values()] == [wanted] * len(RULES)


def test_the_bold_rule_takes_memory_back_and_the_timid_one_never(trials):
    assert trials["aggressive"].preemptions > 10 * trials["predicted"].preemptions
    assert trials["conservative"].preemptions == 0
    assert trials["predicted"].steps < trials["conservative"].steps


def test_memory_holds_less_than_the_slots_would_take():
    requests = admission.read_requests(50)
    ends = sum((one.prompt_tokens + one.output_tokens for one in requests), 0) / 50
    assert 0.55 < admission.memory_blocks(requests, 1) / (ends * admission.ROLE.decode_slots) <= 0.6


def test_what_the_command_does_not_know_is_refused():
    assert CliRunner().invoke(command, ["admission", "--rule", "bold"]).exit_code == 2
