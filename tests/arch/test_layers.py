"""The shape of the program, read from its source: who imports whom, who speaks SQL, how long a function is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import carolctl

ROOT = Path(carolctl.__file__).parent
LONGEST_FUNCTION = 50


class Module(NamedTuple):
    """A source file: its dotted name and its tree."""

    name: str
    tree: ast.Module

    def lies_in(self, *places: str) -> bool:
        """Whether it is one of these modules or lies in one of these packages."""
        return any(self.name == place or self.name.startswith(f"{place}.") for place in places)


def _modules() -> Iterator[Module]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        yield Module(".".join(parts), ast.parse(path.read_text(encoding="utf-8")))


MODULES = tuple(_modules())
NAMES = {module.name for module in MODULES}


def imported(module: Module) -> set[str]:
    """Everything that a module imports, wherever in it, by full name; of ours the modules."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name} imports relatively"
            assert node.module is not None
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(members & NAMES or {node.module})
    return found


IMPORTS = {module.name: imported(module) for module in MODULES}


def top(names: set[str]) -> set[str]:
    """The top-level packages of those names."""
    return {name.partition(".")[0] for name in names}


def importers(package: str) -> set[str]:
    """The modules of ours that import that package."""
    return {name for name, found in IMPORTS.items() if package in top(found)}


def of_ours(name: str) -> set[str]:
    return {found for found in IMPORTS[name] if found.partition(".")[0] == "carolctl"}


def package(name: str) -> set[str]:
    """That module or package, with everything in it."""
    return {module.name for module in MODULES if module.lies_in(name)}


# -- imports ----


def test_the_walk_sees_the_program() -> None:
    assert {"carolctl.tick", "carolctl.store.db", "carolctl.cli.entry", "carolctl"} <= NAMES
    assert "carolctl.store.tx" in IMPORTS["carolctl.store.db"]
    assert "croniter" in top(IMPORTS["carolctl.schedule"])


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("sqlite3", {"carolctl.store"}),
        ("rich", {"carolctl.cli.render"}),
        ("croniter", {"carolctl.schedule", "carolctl.cronfields"}),
        ("requests", {"carolctl.http_call", "carolctl.http_request", "carolctl.http_wire"}),
        ("urllib3", {"carolctl.http_call", "carolctl.http_request", "carolctl.http_wire"}),
        ("tenacity", {"carolctl.http_call"}),
        ("typer", {"carolctl.cli"}),
    ],
)
def test_every_library_has_its_owner(library: str, owners: set[str]) -> None:
    allowed = set().union(*(package(owner) for owner in owners))
    assert importers(library) <= allowed
    assert importers(library), "the rule speaks of a library that nobody uses"


def test_nothing_below_imports_the_command_line() -> None:
    cli = package("carolctl.cli")
    above = {
        (name, found)
        for name in NAMES - cli
        for found in of_ours(name)
        if found in cli and (name, found) != ("carolctl.__main__", "carolctl.cli.entry")
    }
    assert above == set()


_PURE = (
    "carolctl.instant", "carolctl.model", "carolctl.endings", "carolctl.policy", "carolctl.schedule",
    "carolctl.cronfields", "carolctl.progression",
    "carolctl.forecast", "carolctl.rearrange",
)  # fmt: skip
_IO = {
    "os", "io", "sys", "time", "socket", "ssl", "sqlite3", "subprocess", "signal", "select", "shutil", "pathlib",
    "tempfile", "glob", "fcntl", "threading", "multiprocessing", "asyncio", "http", "urllib", "random", "secrets",
    "logging", "contextvars",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in _PURE if name in NAMES])
def test_nouns_and_mathematics_are_pure(name: str) -> None:
    assert not top(IMPORTS[name]) & _IO
    assert of_ours(name) <= {*_PURE, "carolctl.errors"}


@pytest.mark.parametrize("name", [name for name in _PURE if name in NAMES])
def test_nouns_and_mathematics_are_told_the_time_and_open_nothing(name: str) -> None:
    [module] = [module for module in MODULES if module.name == name]
    calls = {ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
    ambient = {
        call for call in calls if call in ("open", "print", "input") or re.search(r"\.(now|utcnow|today)$", call)
    }  # fmt: skip
    assert ambient == set()


#: Who may be imported from where: what lies lowest first.
_LOWEST = {"carolctl", "carolctl.errors", "carolctl.instant", "carolctl.model"}
_TOOLS = {
    *_LOWEST, "carolctl.lockguard", "carolctl.failpoints", "carolctl.places", "carolctl.clock",
    "carolctl.config", "carolctl.notices", "carolctl.installed_units",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(_TOOLS & NAMES))
def test_tools_rest_on_tools(name: str) -> None:
    assert of_ours(name) <= (_LOWEST if name in _LOWEST else _TOOLS)


@pytest.mark.parametrize("name", sorted(package("carolctl.store")))
def test_the_store_knows_values_and_tools_and_no_verb(name: str) -> None:
    assert of_ours(name) <= _TOOLS | package("carolctl.store") | {"carolctl.legacy_cells"}
    assert not top(IMPORTS[name]) & {"socket", "subprocess", "http", "threading"}


@pytest.mark.parametrize("name", sorted(package("carolctl.launch")))
def test_whatever_starts_processes_has_no_means_to_write_to_the_store(name: str) -> None:
    assert not {found for found in of_ours(name) if found in package("carolctl.store")}


def test_whatever_reaches_the_network_has_no_means_to_write_to_the_store() -> None:
    for name in importers("requests") | importers("urllib3"):
        assert not of_ours(name) & package("carolctl.store"), name


def test_no_module_is_named_after_nothing_in_particular() -> None:
    vague = {"util", "utils", "common", "helper", "helpers", "manager", "managers", "misc", "core", "base"}
    assert not {name for name in NAMES if set(name.split(".")) & vague}


# -- SQL ----

_SQL = re.compile(
    r"\b(SELECT\s.+\sFROM|INSERT (OR \w+ )?INTO|UPDATE \w+\s+SET|DELETE FROM|CREATE (TABLE|INDEX|VIEW|TRIGGER)"
    r"|ALTER TABLE|DROP (TABLE|INDEX)|BEGIN (IMMEDIATE|EXCLUSIVE|DEFERRED)|PRAGMA \w+|ATTACH|VACUUM)\b",
    re.DOTALL,
)
#: The name of a legacy table, as a default of an option and as a question about it.
_LEGACY_NAMES = {"carolctl.cli.migration_commands", "carolctl.export_legacy", "carolctl.migrate_jobs"}


def texts(module: Module) -> Iterator[tuple[int, str]]:
    """The string literals of a module with their lines, apart from docstrings; f-strings by their fixed parts."""
    told = {
        id(body[0].value)
        for node in ast.walk(module.tree)
        if isinstance(body := getattr(node, "body", None), list)
        and body
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            told.add(id(node.value))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


OUTSIDE = [module for module in MODULES if not module.lies_in("carolctl.store")]


@pytest.mark.parametrize("module", OUTSIDE, ids=lambda module: module.name)
def test_nothing_outside_the_store_speaks_sql(module: Module) -> None:
    spoken = [(line, text) for line, text in texts(module) if _SQL.search(text)]
    assert spoken == []


@pytest.mark.parametrize("module", OUTSIDE, ids=lambda module: module.name)
def test_nothing_outside_the_store_touches_the_job_table(module: Module) -> None:
    named = [(line, text) for line, text in texts(module) if "scheduled_jobs" in text]
    if module.name in _LEGACY_NAMES:
        named = [(line, text) for line, text in named if text != "scheduled_jobs"]
    assert named == []


_NAMES_OF_OURS = re.compile(r"_?[A-Z][A-Z_]*")
_NAMING_CALLS = {"column_list", "quoted", "int", "literal", "_slot"}
#: What else may stand in a statement: built from names of columns, from parts of ours, or from quoted names.
_BUILT = {
    "carolctl.store.jobs": {"assignments", "condition"},
    "carolctl.store.runs": {"where", "chosen"},
    "carolctl.store.records": {"table", "key", "old", "where", "chosen"},
    "carolctl.store.migrate": {"number"},
    "carolctl.store.legacy": {"table", "columns", "values", "create"},
}


def _is_a_name(node: ast.expr, built: set[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name in built or _NAMES_OF_OURS.fullmatch(name) is not None
        case ast.Call(func=ast.Name(id=name)):
            return name in _NAMING_CALLS
        case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[argument]):
            parts = {node.id for node in ast.walk(argument) if isinstance(node, ast.Name)}
            return bool(parts & (built | _NAMING_CALLS))
    return False


IN_STORE = [module for module in MODULES if module.lies_in("carolctl.store")]


@pytest.mark.parametrize("module", IN_STORE, ids=lambda module: module.name)
def test_values_reach_a_statement_as_parameters_and_only_names_as_text(module: Module) -> None:
    built = _BUILT.get(module.name, set())
    suspects = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        fixed = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        holes = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        if re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA|WHERE|VALUES|CREATE TABLE)\b", fixed):
            suspects += [(node.lineno, ast.unparse(hole)) for hole in holes if not _is_a_name(hole, built)]
    assert suspects == []


@pytest.mark.parametrize("module", IN_STORE, ids=lambda module: module.name)
def test_no_statement_is_put_together_by_plus_percent_or_format(module: Module) -> None:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in ("execute", "executemany") and node.args:
            statement = node.args[0]
            pieced = any(
                isinstance(part, ast.BinOp) or (isinstance(part, ast.Attribute) and part.attr == "format")
                for part in ast.walk(statement)
            )
            assert not pieced, f"{module.name}:{node.lineno} {ast.unparse(statement)}"
        assert node.func.attr != "executescript", f"{module.name}:{node.lineno} commits what is open"


# -- size ----


def test_every_function_fits_on_a_page() -> None:
    too_long = [
        f"{module.name}:{node.lineno} {node.name} has {length} lines"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert too_long == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [module.name for module in MODULES if not ast.get_docstring(module.tree)]
    assert silent == []
