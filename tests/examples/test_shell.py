"""The shell scripts in examples/, in three shells and with busybox's programs."""

import os
import shlex
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.conftest import Connect, StartService
from tests.examples.conftest import EXAMPLES, Start, run
from tests.pages.access import Tokens
from tests.support.client import ChatClient
from tests.support.waiting import eventually

_NOTIFY = EXAMPLES / "notify.sh"
_RUN = EXAMPLES / "run-and-notify.sh"
_HARD = "a 'quoted' \"text\" with \\n, $HOME, %41, `date`, caf\u00e9 \U0001f600\n@second line"


def program(folder: Path, name: str, text: str) -> None:
    """Write a program into a folder."""
    file = folder / name
    file.write_text(text, encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[tuple[str, ...], str]:
    """A shell, and the PATH for it: busybox comes with its own od, sed, tail and tr."""
    path = shutil.which(request.param)
    assert path is not None, "install Debian's busybox"
    if request.param != "busybox":
        return (path,), "/usr/bin:/bin"
    for name in (
        "cat",
        "date",
        "dirname",
        "mktemp",
        "od",
        "readlink",
        "rm",
        "sed",
        "sleep",
        "tail",
        "tr",
        "uname",
    ):
        (tmp_path / name).symlink_to(path)
    (tmp_path / "curl").symlink_to(str(shutil.which("curl")))
    return (path, "sh"), str(tmp_path)


async def test_a_text_arrives_as_it_was_given(
    chat: ChatClient, shell: tuple[tuple[str, ...], str]
) -> None:
    command, path = shell
    for name in ("ops", "a/b \u00e9", "batch"):
        sent = await run(*command, _NOTIFY, name, _HARD, CHAT_URL=chat.base, PATH=path)
        assert sent == (0, "", "")
        piped = await run(*command, _NOTIFY, name, given=_HARD, CHAT_URL=chat.base, PATH=path)
        assert piped == (0, "", "")
        inbox = "%62atch" if name == "batch" else name
        found = await chat.request("POST", f"/chat/{inbox}/read") if inbox != name else None
        texts = [_HARD, _HARD]
        if found is None:
            assert await chat.texts(name) == texts
        else:
            assert found.body.decode().count("@second line") == len(texts)


async def test_a_refused_message_is_reported(
    chat: ChatClient, shell: tuple[tuple[str, ...], str]
) -> None:
    command, path = shell
    refused = await run(*command, _NOTIFY, "..", "hello", CHAT_URL=chat.base, PATH=path)
    assert (refused.code, refused.output) == (1, "")
    # The answer's detail and its status, and no JSON.
    assert refused.errors.startswith("notify.sh: the message to .. was not sent: username ")
    assert refused.errors.endswith(" (status 400)\n")
    assert "{" not in refused.errors
    elsewhere = await run(*command, _NOTIFY, "a", "b", CHAT_URL=f"{chat.base}/docs", PATH=path)
    assert elsewhere.errors.endswith("(status 404)\n")


async def test_nothing_and_nobody_are_refused(
    chat: ChatClient, shell: tuple[tuple[str, ...], str]
) -> None:
    command, path = shell
    given = {"CHAT_URL": chat.base, "PATH": path}
    assert (await run(*command, _NOTIFY, PATH=path)).code == 2
    unnamed = await run(*command, _NOTIFY, "", "hello", **given)
    assert unnamed == (2, "", "notify.sh: the name of the inbox is empty; nothing was sent\n")
    empty = await run(*command, _NOTIFY, "ops", **given)
    assert empty == (1, "", "notify.sh: standard input is empty; nothing was sent\n")
    assert await chat.texts("ops") == []


async def test_a_notice_can_be_read_after_its_delay(
    chat: ChatClient, shell: tuple[tuple[str, ...], str]
) -> None:
    command, path = shell
    given = {"CHAT_URL": chat.base, "PATH": path, "NOTIFY_TIMEOUT": "60"}
    assert (await run(*command, _NOTIFY, "ops", "later", NOTIFY_DELAY="0.5", **given)).code == 0
    assert (await run(*command, _NOTIFY, "far", "later", NOTIFY_DELAY="600", **given)).code == 0
    assert await chat.texts("ops", "?wait=20") == ["later"]
    assert await chat.texts("far") == []
    assert await chat.metric("chat_messages_scheduled_total") == 2
    wrong = await run(*command, _NOTIFY, "ops", "later", NOTIFY_DELAY="soon", **given)
    assert wrong == (
        2,
        "",
        "notify.sh: NOTIFY_DELAY must be a number of seconds; nothing was sent\n",
    )
    given["NOTIFY_TIMEOUT"] = "1d"
    wrong = await run(*command, _NOTIFY, "ops", "hello", **given)
    whole = "notify.sh: NOTIFY_TIMEOUT must be a whole number of seconds; nothing was sent\n"
    assert wrong == (2, "", whole)
    given["NOTIFY_TIMEOUT"] = "0"
    refused = await run(*command, _NOTIFY, "ops", "hello", **given)
    assert refused.code == 1
    assert ": NOTIFY_TIMEOUT must be " in refused.errors
    given["NOTIFY_TIMEOUT"] = "60"
    refused = await run(*command, _NOTIFY, "ops", "hello", NOTIFY_DELAY="9" * 12, **given)
    assert refused.code == 1
    assert ": NOTIFY_DELAY must be " in refused.errors


async def test_a_lost_answer_stores_no_second_message(chat: ChatClient, tmp_path: Path) -> None:
    # The first answer is lost, and the second is a proxy's.
    lossy = f"""#!/bin/sh
if mkdir {tmp_path}/lost 2>/dev/null; then
  /usr/bin/curl "$@" >/dev/null
  printf '\\n000'
  exit 56
fi
if mkdir {tmp_path}/busy 2>/dev/null; then cat >/dev/null; printf 'busy\\n503'; exit; fi
exec /usr/bin/curl "$@"
"""
    program(tmp_path, "curl", lossy)
    path = f"{tmp_path}:/usr/bin:/bin"
    sent = await run(_NOTIFY, "ops", "hello", CHAT_URL=chat.base, PATH=path)
    assert (sent.code, sent.output) == (0, "")
    # It says once that it tries again.
    assert sent.errors.count("\n") == 1
    assert sent.errors.endswith("; trying again, for at most 2 minutes\n")
    assert await chat.texts("ops") == ["hello"]
    assert (tmp_path / "busy").exists()


async def test_no_argument_of_curl_holds_a_secret(
    shell: tuple[tuple[str, ...], str],
    start_service: StartService,
    connect: Connect,
    tokens: Tokens,
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    token = tokens.add("cron", send=["ops"])
    file.write_text(f"{token}\n", encoding="ascii")
    chat = connect(await start_service(access="tokens", access_file=str(tokens.path)))
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs, "curl", f'#!/bin/sh\necho "$@" >>{tmp_path}/seen\nexec /usr/bin/curl "$@"\n')
    command, path = shell
    given = {"CHAT_URL": chat.base, "PATH": f"{programs}:{path}"}
    sent = await run(*command, _NOTIFY, "ops", "top secret", CHAT_TOKEN_FILE=str(file), **given)
    assert sent == (0, "", "")
    seen = (tmp_path / "seen").read_text(encoding="utf-8")
    assert "Idempotency-Key" in seen
    assert token not in seen
    assert "top secret" not in seen
    refused = await run(*command, _NOTIFY, "ops", "hello", **given)
    assert refused.code == 1
    assert refused.errors.endswith(
        "(status 401); set CHAT_TOKEN or CHAT_TOKEN_FILE to a valid token\n"
    )


async def test_a_file_with_more_than_a_token_sends_nothing(
    chat: ChatClient, shell: tuple[tuple[str, ...], str], tmp_path: Path
) -> None:
    command, path = shell
    given = {"CHAT_URL": chat.base, "PATH": path}
    file = tmp_path / "token"
    missing = await run(*command, _NOTIFY, "ops", "hello", CHAT_TOKEN_FILE=str(file), **given)
    reason = f"notify.sh: cannot read the token in {file}; nothing was sent\n"
    assert missing == (2, "", reason)
    for content in ("", "\n"):
        file.write_text(content, encoding="ascii")
        empty = await run(*command, _NOTIFY, "ops", "hello", CHAT_TOKEN_FILE=str(file), **given)
        assert empty == (2, "", f"notify.sh: there is no token in {file}; nothing was sent\n")
    for content in (
        "abc\nsecond line",
        'abc"\ndata = "',
        "# the token of cron\nabc",
        '"abc"',
        "abc\\n",
        "abc ",
        "abc\u00e9",
    ):
        file.write_text(f"{content}\n", encoding="utf-8")
        for variable, value in (("CHAT_TOKEN_FILE", str(file)), ("CHAT_TOKEN", content)):
            wrong = await run(*command, _NOTIFY, "ops", "hello", **{variable: value}, **given)
            origin = file if variable == "CHAT_TOKEN_FILE" else variable
            reason = f"notify.sh: {origin} must hold a token and nothing else; nothing was sent\n"
            assert wrong == (2, "", reason)
    assert await chat.texts("ops") == []


async def test_a_token_comes_from_a_variable_or_a_file(
    shell: tuple[tuple[str, ...], str],
    start_service: StartService,
    connect: Connect,
    tokens: Tokens,
    tmp_path: Path,
) -> None:
    token = tokens.add("cron", send=["ops"], read=["ops"])
    chat = connect(await start_service(access="tokens", access_file=str(tokens.path)))
    command, path = shell
    given = {"CHAT_URL": f"{chat.base}/", "PATH": path}
    file = tmp_path / "token"
    for end in ("", "\n", "\r\n"):
        file.write_text(token + end, encoding="ascii", newline="")
        sent = await run(*command, _NOTIFY, "ops", "a", CHAT_TOKEN_FILE=str(file), **given)
        assert sent == (0, "", "")
    file.unlink()
    # As for `chat`, the variable comes first.
    both = {"CHAT_TOKEN": token, "CHAT_TOKEN_FILE": str(file)}
    assert await run(*command, _NOTIFY, "ops", "b", **both, **given) == (0, "", "")


async def test_the_scripts_describe_themselves(shell: tuple[tuple[str, ...], str]) -> None:
    command, path = shell
    for script, last in ((_NOTIFY, "reason.\n"), (_RUN, "cron mails it.\n")):
        described = await run(*command, script, "--help", PATH=path)
        assert (described.code, described.errors) == (0, "")
        assert f"  {script.name} NAME " in described.output
        assert "#!" not in described.output
        assert described.output.endswith(last)


async def test_a_link_and_a_signal_are_followed(
    chat: ChatClient, shell: tuple[tuple[str, ...], str], tmp_path: Path
) -> None:
    command, path = shell
    link = tmp_path / "nightly"
    link.symlink_to(_RUN)
    given = {"CHAT_URL": chat.base, "PATH": path}
    killed = await run(*command, link, "ops", *command, "-c", "kill -9 $$", **given)
    assert (killed.code, killed.output) == (137, "")
    (text,) = await chat.texts("ops")
    assert text.startswith(f"FAILED with exit code 137 (signal 9) on {os.uname().nodename}: ")


async def test_the_end_of_a_command_is_sent(
    chat: ChatClient, shell: tuple[tuple[str, ...], str]
) -> None:
    command, path = shell
    given = {"CHAT_URL": chat.base, "PATH": path}
    script = "cat -; echo 'no space' >&2; exit 3"
    failed = await run(*command, _RUN, "ops", *command, "-c", script, given="caf\u00e9\n", **given)
    assert failed == (3, "", "")
    (text,) = await chat.texts("ops")
    first, *rest = text.splitlines()
    assert first.startswith(f"FAILED with exit code 3 on {os.uname().nodename}: ")
    assert rest[-1] == "no space"
    assert (await run(*command, _RUN, "ops", "cat", given="x" * 9999, **given)).code == 0
    (text,) = await chat.texts("ops")
    assert text.startswith(f"ok on {os.uname().nodename}: cat (")
    assert text.endswith("\n" + "x" * 4000)


async def test_the_command_can_be_pasted_back(
    chat: ChatClient, shell: tuple[tuple[str, ...], str]
) -> None:
    command, path = shell
    given = {"CHAT_URL": chat.base, "PATH": path}
    words = [
        "cat",
        "/dev/null",
        "",
        "a b",
        "it's",
        "$HOME",
        "--x=y",
        "x=y",
        "*",
        "caf\u00e9",
        "a\nb",
    ]
    await run(*command, _RUN, "ops", *words, **given)
    (text,) = await chat.texts("ops")
    _, _, quoted = text.rpartition(f" on {os.uname().nodename}: ")
    quoted, _, _ = quoted.partition(" (0 s)\n")
    assert shlex.split(quoted) == words
    assert quoted.startswith("cat /dev/null '' 'a b' ")
    assert " --x=y " in quoted


async def test_a_text_that_is_not_utf_8_is_cleaned(
    chat: ChatClient, shell: tuple[tuple[str, ...], str]
) -> None:
    command, path = shell
    wrong = {
        "\\303\\251\\351": "???",  # The end of it is Latin-1.
        "\\300\\200": "??",  # Too long for what it is.
        "\\355\\240\\200": "???",  # Half of a pair.
        "\\364\\220\\200\\200": "????",  # Beyond the last character.
        "\\303a\\251": "?a?",
    }
    right = "caf\u00e9 \u20ac \ud7ff \ufffd \U0001f600 \U0010ffff"
    given = {"CHAT_URL": chat.base, "PATH": path}
    for octal in wrong:
        script = f"printf '{octal}' | {shlex.join((*command, str(_NOTIFY), 'ops'))}"
        assert await run(*command, "-c", script, **given) == (0, "", "")
    assert (await run(*command, _NOTIFY, "ops", given=right, **given)).code == 0
    assert await chat.texts("ops") == [*wrong.values(), right]


async def test_an_output_that_is_not_utf_8_is_sent(
    chat: ChatClient, shell: tuple[tuple[str, ...], str]
) -> None:
    command, path = shell
    latin = (*command, "-c", "printf 'caf\\351'")
    assert (await run(*command, _RUN, "ops", *latin, CHAT_URL=chat.base, PATH=path)).code == 0
    (text,) = await chat.texts("ops")
    assert text.endswith("\ncaf?")


async def test_the_output_is_not_lost_without_a_service(chat: ChatClient, tmp_path: Path) -> None:
    program(tmp_path, "sleep", "#!/bin/sh\n")
    given = {"CHAT_URL": "http://127.0.0.1:9", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    failed = await run(_RUN, "ops", "sh", "-c", "echo important; exit 4", **given)
    assert failed.code == 4
    assert failed.errors.endswith("important\n")


async def test_a_message_pops_up_and_is_acknowledged(
    chat: ChatClient, start: Start, tmp_path: Path
) -> None:
    program(tmp_path, "chat", f'#!/bin/sh\nexec {sys.executable} -P -m chat_service "$@"\n')
    shows = f"""#!/bin/sh
printf '%s|' "$@" >{tmp_path}/shown.new
mv {tmp_path}/shown.new {tmp_path}/shown
"""
    program(tmp_path, "notify-send", shows)
    path = f"{tmp_path}:/usr/bin:/bin"
    await start(EXAMPLES / "pop-up.sh", "bob's", CHAT_URL=chat.base, PATH=path)
    await chat.post("bob's", _HARD)

    async def shown() -> bool:
        return (tmp_path / "shown").exists()

    await eventually(shown)
    assert (tmp_path / "shown").read_text(encoding="utf-8") == f"--|bob's|{_HARD}|"

    async def read() -> bool:
        return await chat.metric("chat_messages_pending") == 0

    await eventually(read)
