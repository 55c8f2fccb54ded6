"""Help is fast and needs nothing, and a command that fails says why in one line."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import click
import grpc
import pytest

from penstock.cli import bench
from penstock.cli.errors import CheckFailed, Failed, exit_code
from penstock.cli.main import COMMANDS, main

HEAVY = {"torch", "ray", "transformers", "grpc"}


def penstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def test_help_lists_every_command_with_its_line():
    shown = penstock("--help")
    assert shown.returncode == 0
    for name, (_, line) in COMMANDS.items():
        assert f"{name} " in shown.stdout and line in shown.stdout


def test_help_imports_no_command_and_nothing_heavy():
    program = (
        "import sys, click.testing; from penstock.cli.main import penstock;"
        "print(click.testing.CliRunner().invoke(penstock, ['--help']).exit_code);"
        "print(*sorted({name.split('.')[0] for name in sys.modules}));"
        "print(*(name for name in sys.modules if name.startswith('penstock.cli.')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    code, roots, ours = run.stdout.splitlines()
    assert code == "0"
    assert HEAVY.isdisjoint(roots.split())
    assert set(ours.split()) == {"penstock.cli.main", "penstock.cli.errors", "penstock.cli.lazy"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_exists(name):
    command = import_module(COMMANDS[name][0]).command
    assert isinstance(command, click.Command)
    assert command.name == name


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["statsu"], "There is no command `statsu`. Did you mean `status`?"),
        (["bench", "prefixes"], "Did you mean `prefix`?"),
        (["xyzzy"], "There is no command `xyzzy`."),
        (["--nonsense"], "No such option"),
        (["profile", "--seconds", "nan"], "'nan' is not a valid integer"),
        (["profile", "--seconds", "5"], "not in the range"),
        (["profile", "--seed", "-1"], "not in the range"),
        (["profile", "--out", "/nowhere/profile.yaml"], "--out: /nowhere/profile.yaml cannot be written"),
        (["bench", "engine", "--rounds", "0"], "not in the range"),
        (["bench", "engine", "--threads", "0"], "not in the range"),
        (["bench", "transfer", "--rounds", "-1"], "not in the range"),
        (["bench", "migration", "--context", "5"], "not in the range"),
        (["bench", "admission", "5"], "unexpected extra argument"),
        (["bench", "prefix", "--capacity", "5"], "No such option"),
        (["bench", "kernels", "5"], "unexpected extra argument"),
        (["verify", "--requests", "0"], "not in the range"),
        (
            ["scale", "decod", "3"],
            "no pool 'decod'; there are prefill, decode, mixed. Did you mean `decode`?",
        ),
        (["scale", "xyzzy", "3"], "no pool 'xyzzy'; there are prefill, decode, mixed. Try"),
        (["flip", "decode-1", "--to", "prefil"], "Did you mean `prefill`?"),
        (["verify", "--transport", "nccl"], "is not one of"),
        (["verify", "--model", "x", "--checkpoint", "random"], "not both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_one_line_and_exit_code_2(arguments, words):
    run = penstock(*arguments)
    assert words in run.stderr
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert "--help" in run.stderr and run.stdout == ""


@pytest.mark.parametrize(
    "error, code, line",
    [
        (ValueError("max_tokens must be\nat least 1"), 2, "penstock: max_tokens must be at least 1"),
        (
            FileNotFoundError(2, "No such file or directory", "x.yaml"),
            2,
            "penstock: x.yaml: No such file or directory",
        ),
        (OSError(98, "Address already in use"), 2, "penstock: Address already in use"),
        (TimeoutError(), 2, "penstock: TimeoutError"),
        (click.ClickException("no"), 2, "penstock: no"),
        (CheckFailed("3 tokens differ"), 1, "penstock: 3 tokens differ"),
        (
            ModuleNotFoundError("No module named 'ray'", name="ray"),
            2,
            "penstock: this command needs the Python package ray: "
            "in Penstock's folder, pip install -c constraints.txt '.[all]'",
        ),
    ],
)
def test_the_users_error_is_one_line(error, code, line, capsys):
    assert exit_code(raising(error)) == code
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), AssertionError("x"), ModuleNotFoundError(name="penstock.x")]
)
def test_a_defect_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        exit_code(raising(error))


PATHS = [[name] for name in COMMANDS if name != "bench"] + [["bench", name] for name in bench.COMMANDS]


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_with_json_the_error_of_every_command_is_one_object(path, monkeypatch, capsys):
    codes = []
    for asked in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["penstock", *path, *asked, "--nonsense"])
        with pytest.raises(SystemExit) as ended:
            main()
        codes.append(ended.value.code)
    out, err = capsys.readouterr()
    told = json.loads(out)["error"]
    assert codes == [2, 2] and err == f"penstock: {told['message']}\n" * 2
    assert told["code"] == "INVALID_ARGUMENT" and "--nonsense" in told["message"]


def test_json_after_the_end_of_options_is_a_word(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["penstock", "status", "--", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "error, code, kind, field",
    [
        (ValueError("no"), 2, "INVALID_ARGUMENT", ""),
        (click.BadParameter("no", param=click.Option(["--max-tokens"])), 2, "INVALID_ARGUMENT", "max_tokens"),
        (Failed("no", "NOT_FOUND", "model"), 2, "NOT_FOUND", "model"),
        (click.ClickException("no"), 2, "FAILED_PRECONDITION", ""),
        (FileNotFoundError(2, "no", "x.yaml"), 2, "FAILED_PRECONDITION", ""),
        (ModuleNotFoundError("no", name="ray"), 2, "FAILED_PRECONDITION", ""),
    ],
)
def test_for_programs_an_error_says_its_kind_and_field(error, code, kind, field, capsys):
    assert exit_code(raising(error), as_json=True) == code
    told = json.loads(capsys.readouterr().out)["error"]
    assert (told["code"], told["field"]) == (kind, field) and told["message"]


def test_a_failed_check_adds_nothing_to_its_figures(capsys):
    assert exit_code(raising(CheckFailed("3 tokens differ")), as_json=True) == 1
    assert capsys.readouterr() == ("", "penstock: 3 tokens differ\n")


def test_a_defect_of_ours_is_an_object_and_keeps_its_traceback(capsys):
    with pytest.raises(RuntimeError):
        exit_code(raising(RuntimeError("x")), as_json=True)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "INTERNAL"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_ends_with_130_and_no_word(error, capsys):
    assert exit_code(raising(error)) == 130
    assert capsys.readouterr().err == ""


def test_a_command_may_give_its_own_exit_code():
    assert exit_code(lambda: 1) == 1
    assert exit_code(lambda: None) == 0


def test_a_dead_address_is_one_line(capsys):
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        assert exit_code(lambda: channel.unary_unary("/x/y")(b"", timeout=5)) == 2
    error = capsys.readouterr().err
    assert error.startswith("penstock: no cluster answers") and error.count("\n") == 1


def test_an_error_of_the_server_is_its_details_and_code(capsys):
    def refuse(_, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "no instance decode-9")

    async def call_aio(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            await channel.unary_unary("/x/y")(b"", timeout=5)

    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.method_handlers_generic_handler("x", {"y": grpc.unary_unary_rpc_method_handler(refuse)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert exit_code(lambda: channel.unary_unary("/x/y")(b"", timeout=5)) == 2
        assert exit_code(lambda: asyncio.run(call_aio(f"127.0.0.1:{port}"))) == 2
    finally:
        server.stop(None)
    assert capsys.readouterr().err == "penstock: no instance decode-9 (NOT_FOUND)\n" * 2
