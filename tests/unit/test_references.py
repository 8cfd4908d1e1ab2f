"""References to secrets: what they become, how they fail without telling, and what redaction leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from carolctl import lockguard, references
from carolctl.errors import BadConfig, Exit
from carolctl.references import Resolver, redact, variables


@pytest.fixture
def resolver() -> Resolver:
    return Resolver({"TOKEN": "s3cret-token", "EMPTY": "", "NESTED": "${env:TOKEN}"})


def test_a_variable_is_put_in_place(resolver: Resolver) -> None:
    assert resolver.resolve("Bearer ${env:TOKEN}!") == "Bearer s3cret-token!"
    assert resolver.secrets == {"s3cret-token"}


def test_the_module_functions_read_the_real_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROL_TEST_TOKEN", "abcd")
    assert references.resolve("${env:CAROL_TEST_TOKEN}") == "abcd"
    assert references.resolve_document({"k": ["${env:CAROL_TEST_TOKEN}", 1, None]}) == {
        "k": ["abcd", 1, None]
    }


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("abc\n", "abc"),
        ("abc", "abc"),
        ("abc\n\n", "abc\n"),
        ("abc\r\n", "abc"),
        ("a\nb\n", "a\nb"),
        ("", ""),
    ],
)
def test_a_file_loses_one_trailing_newline(tmp_path: Path, content: str, value: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content.encode())
    assert Resolver().resolve(f"${{file:{path}}}") == value


def test_a_symbolic_link_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("value\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Resolver().resolve(f"${{file:{tmp_path}/link}}") == "value"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing here", "nothing here"),
        ("$${env:TOKEN}", "${env:TOKEN}"),
        ("$${", "${"),
        ("${name} and $HOME and {x}", "${name} and $HOME and {x}"),
        ("${env:NESTED}", "${env:TOKEN}"),
        ("${env:TOKEN}${env:TOKEN}", "s3cret-tokens3cret-token"),
        ("<${env:EMPTY}>", "<>"),
    ],
)
def test_what_is_and_is_not_a_reference(resolver: Resolver, text: str, expected: str) -> None:
    assert resolver.resolve(text) == expected


@pytest.mark.parametrize(
    "text", ["${env:NO_SUCH}", "${env:}", "${env:A B}", "${env:TOKEN", "${file:}", "${file:relative/path}"]
)
def test_a_bad_reference_is_a_configuration_error(resolver: Resolver, text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        resolver.resolve(f"${{env:TOKEN}} {text}")
    assert caught.value.code == Exit.CONFIG
    assert "s3cret" not in caught.value.message


def test_the_error_names_the_reference(resolver: Resolver) -> None:
    with pytest.raises(BadConfig, match=r"\$\{env:NO_SUCH\}: the variable is not set"):
        resolver.resolve("${env:NO_SUCH}")


def test_files_that_are_no_secrets_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").write_bytes(b"x" * (64 * 1024 + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "most").write_bytes(b"x" * (64 * 1024))
    for name, why in {
        "fifo": "not a regular file",
        "huge": "larger than 64 KiB",
        "binary": "not UTF-8",
        "absent": "No such file",
        ".": "directory",
        "nul\0": "not a path",
    }.items():
        with pytest.raises(BadConfig, match=why):
            references.resolve(f"${{file:{tmp_path}/{name}}}")
    assert len(references.resolve(f"${{file:{tmp_path}/most}}")) == 64 * 1024


def test_documents_keep_their_keys_and_other_values(resolver: Resolver) -> None:
    document = {"${env:TOKEN}": {"deep": ["${env:TOKEN}", 1.5, True, None]}, "n": 7}
    assert resolver.resolve_document(document) == {
        "${env:TOKEN}": {"deep": ["s3cret-token", 1.5, True, None]},
        "n": 7,
    }


def test_no_file_is_read_under_the_write_lock(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("value")
    lockguard.set_write_open(True)
    try:
        with pytest.raises(lockguard.IOUnderLock):
            references.resolve(f"${{file:{tmp_path}/secret}}")
    finally:
        lockguard.set_write_open(False)


@pytest.mark.parametrize(
    ("text", "secrets", "expected"),
    [
        ("token abcd here", ["abcd"], "token [redacted] here"),
        ("abc stays", ["abc"], "abc stays"),
        ("longest first: abcdefgh", ["abcd", "abcdefgh"], "longest first: [redacted]"),
        ("redacted once: abcd", ["abcd", "reda"], "[redacted]cted once: [redacted]"),
        ("a/b c%2Fd", ["c/d/", "a/b c/d"], "a/b c%2Fd"),
        ("q=a%2Fb%20c", ["a/b c"], "q=[redacted]"),
        (r"as json: a\"b\"c", ['a"b"c'], "as json: [redacted]"),
        ("one line: second-line-x", ["first\nsecond-line-x\n"], "one line: [redacted]"),
        ("regex: a.*b+", ["a.*b+"], "regex: [redacted]"),
        ("nothing known", [], "nothing known"),
    ],
)
def test_redaction(text: str, secrets: list[str], expected: str) -> None:
    assert redact(text, secrets) == expected


def test_a_resolver_redacts_what_it_gave_out(resolver: Resolver) -> None:
    assert resolver.redact("s3cret-token") == "s3cret-token"
    resolver.resolve("${env:TOKEN}")
    assert resolver.redact("said s3cret-token twice: s3cret-token") == "said [redacted] twice: [redacted]"


def test_the_variables_of_a_document_are_found_without_a_look_at_their_values() -> None:
    document = {
        "a": ["x ${env:ONE}", {"b": "${env:TWO}${file:/etc/x}"}],
        "c": "$${env:NOT}",
        "d": 1,
        "e": None,
    }
    assert variables(document) == {"ONE", "TWO"}
    assert variables([]) == set()
