"""The documents against the program: each shows what the other has."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml

from penstock.cli import commands as command_group
from penstock.process.plan import DATE_PARTS, FUNCTIONS
from penstock.process.streams import Aggregate
from penstock.runtime import followers, models
from penstock.runtime.app import load_app
from penstock.runtime.plan import compile_plan
from penstock.serve import http, reading, server
from penstock.serve.access import OPENED_BY, Access
from penstock.serve.answers import CODES
from penstock.serve.metrics import CORE as CORE_METRICS
from penstock.serve.routes import Routes
from penstock.serve.settings import Doors, DoorSettings, PolicyDoor, TopicDoor
from penstock.serve.tokens import ROLES
from penstock.settings import SETTINGS, Setting

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEXTS = {path: path.read_text() for path in DOCUMENTS}

# Where a path in a document may begin.
FOLDERS = [ROOT, ROOT / "src" / "penstock", ROOT / "native" / "src", ROOT / "docs"]

# Folders of a data directory.
AT_RUN_TIME = ("log/", "ids/", "snapshots/")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def pipelines() -> Iterator[Any]:
    for path, text in TEXTS.items():
        for index, block in enumerate(blocks(text, "python")):
            if "ps.Pipeline(" in block:
                yield pytest.param(path, block, id=f"{name_of(path)}-{index}")


@pytest.mark.parametrize(("path", "block"), list(pipelines()))
def test_every_pipeline_in_the_documents_compiles(path: Path, block: str, tmp_path: Path) -> None:
    for rules in re.findall(r'rules="([^"]+)"', block):
        (tmp_path / rules).write_text(blocks(TEXTS[path], "toml")[0])
    (tmp_path / "app.py").write_text(block)
    compile_plan(load_app(tmp_path / "app.py"))


def shown_tests() -> Iterator[Any]:
    for path, text in TEXTS.items():
        for index, block in enumerate(blocks(text, "python")):
            if "import testing" in block:
                yield pytest.param(block, id=f"{name_of(path)}-{index}")


@pytest.mark.parametrize("block", list(shown_tests()))
def test_every_test_in_the_documents_passes(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(block, names)
    for name, value in names.items():
        if name.startswith("test_"):
            value()


@pytest.mark.parametrize("example", ["first.py", "first.toml"])
def test_the_first_pipeline_is_shown_as_it_is(example: str) -> None:
    text = (ROOT / "examples" / example).read_text()
    shown = re.sub(r'\A""".*?"""\s*', "", text, flags=re.DOTALL)
    assert shown in TEXTS[ROOT / "docs" / "start.md"]


def test_the_first_answer_is_shown_with_its_policy_s_version() -> None:
    (policy,) = compile_plan(load_app(ROOT / "examples" / "first.py")).document["policies"]
    assert f'"policy_version":"{policy["version"]}"' in TEXTS[ROOT / "docs" / "start.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_toml_block_is_toml(path: Path) -> None:
    for block in blocks(TEXTS[path], "toml"):
        tomllib.loads(block)


# Links and files.


def anchors(path: Path) -> set[str]:
    """The headings of a document as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[path])):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{link}: there is no such file"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_file_that_is_named_exists(path: Path) -> None:
    for named in re.findall(r"`([\w./-]+\.(?:py|rs|md|yaml)|(?:\w+/)+)`", prose(TEXTS[path])):
        found = any((folder / named).exists() for folder in [*FOLDERS, path.parent])
        assert found or named in AT_RUN_TIME, named


@pytest.mark.parametrize("document", ["README.md", "docs/reliability.md"])
def test_every_test_that_is_named_exists(document: str) -> None:
    named = re.findall(r"`(\w+)` in `([\w./]+)`", prose(TEXTS[ROOT / document]))
    assert len(named) > 10
    for test, file in named:
        assert re.search(rf"\b(def|fn) {test}\b", (ROOT / file).read_text()), test


def test_every_figure_of_the_readme_is_a_median_of_the_results() -> None:
    readme = TEXTS[ROOT / "README.md"]
    table = readme[readme.index("## How fast") : readme.index("## What it is not")]
    results = (ROOT / "bench" / "RESULTS.md").read_text()
    figures = [figure for row in re.findall(r"^\|.*\|$", table, re.MULTILINE) for figure in row.split("|", 2)[2:]]
    shown = re.findall(r"(?<![\w.,])[\d,.]*\d", " ".join(figures))
    assert len(shown) >= 12
    for figure in shown:
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d,]|\.\d)", results), figure


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for path, text in TEXTS.items():
        for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", text):
            found = re.search(rf"^{target}:", makefile, re.MULTILINE)
            assert found, f"{name_of(path)}: make {target}"


def test_every_choice_stands_in_the_list_of_choices() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", TEXTS[folder / "README.md"]))
    assert listed == {path.name for path in folder.glob("0*.md")}


# The language of features.


@pytest.mark.parametrize("name", [*FUNCTIONS, "extract"])
def test_every_function_of_expressions_is_documented(name: str) -> None:
    assert f"`{name}(" in TEXTS[ROOT / "docs" / "features.md"]


@pytest.mark.parametrize("part", DATE_PARTS)
def test_every_part_of_a_time_is_documented(part: str) -> None:
    assert f"`{part}`" in TEXTS[ROOT / "docs" / "features.md"]


@pytest.mark.parametrize("name", get_args(Aggregate))
def test_every_aggregate_is_documented(name: str) -> None:
    assert f"`{name}(" in TEXTS[ROOT / "docs" / "features.md"]


# The command line.


Words = tuple[str, ...]


def commands(group: click.Group, words: Words = ()) -> Iterator[tuple[str, click.Command]]:
    """Each command with its words: `rules check`."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(commands(command_group))


def command_lines(text: str) -> Iterator[str]:
    """What the documents say after `penstock`, in consoles and between backquotes."""
    for block in blocks(text, "console"):
        joined = block.replace("\\\n", " ")
        yield from re.findall(r"^\$ penstock ([^\n]*)", joined, re.MULTILINE)
    yield from re.findall(r"`penstock ([^`]+)`", prose(text))


def command_of(line: str) -> str | None:
    """The longest command that the line begins with."""
    known = [name for name in COMMANDS if re.match(rf"{re.escape(name)}(\s|$)", line)]
    return max(known, key=len, default=None)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented_and_has_help(name: str) -> None:
    assert COMMANDS[name].help, f"penstock {name} has no help"
    lines = [line for text in TEXTS.values() for line in command_lines(text)]
    assert name in map(command_of, lines), f"penstock {name} stands in no document"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_documented_command_and_option_exists(path: Path) -> None:
    for line in command_lines(TEXTS[path]):
        if line in ("--help", "--version"):
            continue
        name = command_of(line)
        assert name is not None, f"penstock {line}"
        known = {option for param in COMMANDS[name].params for option in param.opts} | {"--help"}
        unknown = set(re.findall(r"(?<!\S)--[a-z-]+", line)) - known
        assert not unknown, f"penstock {line}"


# Settings.


def setting_row(setting: Setting) -> str:
    default = "–" if setting.default is None else f"`{setting.default}`"
    return f"| `{setting.name}` | {default} | {setting.range} | {setting.about} |"


def test_every_setting_is_documented_as_it_is() -> None:
    text = TEXTS[ROOT / "docs" / "operations.md"]
    rows = "\n".join(map(setting_row, SETTINGS))
    assert rows in text, f"docs/operations.md should have\n{rows}"


def fixed_bounds() -> dict[str, list[str]]:
    """What the table of the door's bounds and that of stopping should say, by heading."""
    door = DoorSettings()
    small, unread = (f"{size >> 10} KiB" for size in (reading.SMALL_BODY, http.WRITE_BUFFER_MAX))
    return {
        "Bounds of the door": [
            f"waits for the core | {door.answer_s:.0f} s |",
            f"bodies above {small} that are being received or answered, together | {door.held_bytes_max >> 20} MiB |",
            f"reads nothing of its answers | {door.write_s:.0f} s |",
            f"leaves unread | {unread} |",
            f"unanswered requests of one connection | {door.pipelined_max} |",
            f"headers of one request | {door.header_count_max} |",
            f"wait for one model | {door.model_queue_max} |",
        ],
        "Stopping": [
            f"| {door.drain_s:.0f} s; a second signal",
            f"| {models.STOP_S:.0f} s for each |",
            f"| {door.stop_s:.0f} s, then it is an error",
            f"| {server.LAST_WRITES_S:.0f} s |",
            f"| {followers.STOP_S:.0f} s, then it is killed",
        ],
        "One service": [f"A\nmodel has {door.model_start_s:.0f} s for that"],
    }


@pytest.mark.parametrize("heading", fixed_bounds())
def test_the_bounds_that_are_no_settings_are_documented_as_they_are(heading: str) -> None:
    section = re.split(r"^#+ ", TEXTS[ROOT / "docs" / "operations.md"], flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(heading + "\n"))
    assert [bound for bound in fixed_bounds()[heading] if bound not in text] == []


# Metrics.


def metric_names() -> set[str]:
    """What the door and the core count, by their sources."""
    door = (ROOT / "src" / "penstock" / "serve" / "metrics.py").read_text()
    return {*re.findall(r'family\(\s*"(\w+)"', door), *(name for name, _ in CORE_METRICS.values())}


def test_the_metrics_are_the_documented_ones() -> None:
    documented = re.findall(r"`penstock_(\w+)`", TEXTS[ROOT / "docs" / "operations.md"])
    assert set(documented) == metric_names()


def test_every_number_of_the_core_is_a_metric() -> None:
    stats = (ROOT / "native" / "src" / "gate" / "stats.rs").read_text()
    counted = re.findall(r"pub (\w+): (?:u64|Histogram)", stats[stats.index("pub struct Stats") :])
    assert set(counted) <= set(CORE_METRICS)


# HTTP.

HTTP = yaml.safe_load((ROOT / "docs" / "http.yaml").read_text())
CORE = "\n".join(path.read_text() for path in (ROOT / "native" / "src").rglob("*.rs"))
CORE_CODES = set(
    re.findall(r'(?:error_body\(|Refused\(\d+, |&?waiter, (?:\d+|\*?status), )"(\w+)"', CORE)
)


@pytest.mark.parametrize("code", sorted({*CODES, *CORE_CODES}))
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in HTTP["info"]["description"]


def test_the_doors_paths_are_the_documented_ones() -> None:
    policies = (PolicyDoor("policy", 0, 1.0),)
    routes = Routes(Doors(policies=policies, topics=(TopicDoor("topic", 0),)), DoorSettings())
    everybody = Access(None, Counter()).caller(None)
    found = [routes.find(re.sub(r"[{}]", "", path).encode(), everybody)[0] for path in HTTP["paths"]]
    documented = {route.name for route in found}
    # A dry run is a parameter of decide, and what no route takes is refused.
    assert documented == {route.name for route in routes} - {"dry_run", "refused"}


# In the table of roles a path ends where any will do.
SHORT = {"policies/…": "policies/policy", "topics/…": "topics/topic", "decisions/…": "decisions/policy/id"}


def test_the_roles_that_open_each_path_are_the_documented_ones() -> None:
    everybody = Access(None, Counter()).caller(None)
    routes = Routes(Doors((PolicyDoor("policy", 0, 1.0),), (TopicDoor("topic", 0),)), DoorSettings())

    def opened_by(path: str) -> tuple[str, ...]:
        return OPENED_BY[routes.find(path.encode(), everybody)[0].name] or ()

    for path, operations in HTTP["paths"].items():
        for operation in operations.values():
            roles = [role for each in operation["security"] for role in each["token"]]
            assert tuple(roles) == opened_by(re.sub(r"[{}]", "", path))
    table = TEXTS[ROOT / "docs" / "operations.md"].partition("| Route | Open to the roles |")[2].partition("\n\n")[0]
    shown = re.findall(r"`\w+ (/\S+)`.* \| ([\w, ]+) \|$", re.sub("`, `", "` \n`", table), re.MULTILINE)
    assert len(shown) == len(HTTP["paths"]) - 1  # Two of them share a row.
    for path, text in shown:
        for short, whole in SHORT.items():
            path = path.replace(short, whole)
        assert opened_by(path) == (() if text == "everybody" else tuple(text.split(", "))), path


def test_the_roles_of_the_command_line_are_those_of_the_file() -> None:
    (roles,) = (param for param in COMMANDS["tokens new"].params if param.name == "roles")
    assert isinstance(roles.type, click.Choice) and tuple(roles.type.choices) == ROLES


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from references(each)


def test_every_reference_of_the_http_document_resolves() -> None:
    for reference in references(HTTP):
        node = HTTP
        for word in reference.removeprefix("#/").split("/"):
            node = node[word]
