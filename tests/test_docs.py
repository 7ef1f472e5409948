"""The documentation says what the code does: its code runs, and nothing public is left out."""

import ast
import importlib.util
import json
import pkgutil
import re
import shlex
import types
import typing
from contextlib import suppress
from datetime import datetime
from io import StringIO
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import pytest
from django.apps import apps
from django.core.management import call_command, load_command_class
from django.dispatch import Signal

import django_dblock
from django_dblock import exceptions, signals
from django_dblock.cli import console
from django_dblock.cli.list import SCHEMA
from django_dblock.conf import Conf
from django_dblock.inspect import (
    AdvisoryLock,
    AwaitedLatch,
    BlockingSession,
    FencedLease,
    UnfinishedRequest,
)
from tests.docs.blocks import RUN, blocks
from tests.docs.follow import Project, follow
from tests.docs.page import SETTINGS, Page

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"

DEMO = (
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[demo]'"
    " && .venv/bin/python example_project/manage.py demo"
)
TESTS = "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox"

MOST_NOT_RUN = 3


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def reference(name: str) -> str:
    return (REFERENCE / name).read_text()


def projects():
    """Each page's runnable blocks, by the project that they belong to."""
    for path in PAGES:
        if path.parent.name == "tutorial":  # followed in a project of their own: see below
            continue
        found = [block for block in blocks(path) if block.language in RUN]
        for number, of_project in groupby(found, key=attrgetter("project")):
            name = f"{shown(path)}:{number}" if number else shown(path)
            yield pytest.param([block for block in of_project if not block.not_run], id=name)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("project", list(projects()))
def test_code_of_each_page_runs(project, tmp_path, settings, connect):
    with Page(tmp_path, settings, connect) as page:
        if not any(block.source.startswith("# store/models.py\n") for block in project):
            page.use_models()
        for block in project:
            try:
                page.run(block)
            except Exception as error:
                error.add_note(f"in {shown(block.path)}, line {block.line}")
                raise


def test_page_can_start_a_new_project(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(
        "```python\n1\n```\n\n<!-- a new project -->\n\n<!-- run\n2\n-->\n\n```html\n3\n```\n"
    )
    assert [block.project for block in blocks(path)] == [0, 1, 1]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(900)
@pytest.mark.django_db(transaction=True)
def test_all_tutorials_can_be_followed_in_one_project(tmp_path, rival):
    """In order, from an empty folder, doing what the pages say and nothing else."""
    project = Project(tmp_path, rival)
    index = (ROOT / "docs" / "tutorial" / "index.md").read_text()
    [tree] = re.findall(r"```\{toctree\}\n(.+?)```", index, re.DOTALL)
    try:
        for name in tree.split():
            follow(ROOT / "docs" / "tutorial" / f"{name}.md", project)
    finally:
        project.drop()


def test_few_code_blocks_are_not_run():
    left_out = [block.place for path in PAGES for block in blocks(path) if block.not_run]
    assert len(left_out) <= MOST_NOT_RUN, left_out


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_python_code_is_marked_as_python(path):
    """A directive or a spelling that the test above would pass by."""
    languages = {block.language.lower() for block in blocks(path)}
    assert not languages & {"{code-block}", "{code}", "{testcode}", "{doctest}", "py", "python3",
                            "pycon", "sql", "psql"}  # fmt: skip


def test_readmes_shell_blocks_are_demo_and_tests():
    """The demo and the tests; copied into a shell, they are all it takes."""
    assert [block.source.strip() for block in blocks(README) if block.language == "sh"] == [
        DEMO,
        TESTS,
    ]


def test_every_public_name_is_in_the_reference():
    pages = "".join(path.read_text() for path in REFERENCE.glob("*.md"))
    for name in django_dblock.__all__:
        if name != "__version__":
            entry = rf"^\.\. auto\w+:: (django_dblock\.)?{name}(\(\))?$"
            assert re.search(entry, pages, re.MULTILINE), name


def test_every_dotted_name_on_a_page_exists():
    """A module, a name in one, a model, a permission, or a logger."""
    permissions = {
        f"django_dblock.{codename}"
        for model in apps.get_app_config("django_dblock").get_models()
        for codename, _ in [*model._meta.permissions, *_default_permissions(model)]
    }
    loggers = documented_loggers()
    assert not _resolves("django_dblock.fencing.admin")
    for path in PAGES:
        for name in set(re.findall(r"(?<![\w/])django_dblock(?:\.\w+)+", path.read_text())):
            if name not in permissions and name not in loggers:
                assert _resolves(name), f"{shown(path)}: {name}"


def _default_permissions(model):
    name = model._meta.model_name
    return [(f"{action}_{name}", "") for action in model._meta.default_permissions]


def _resolves(name):
    with suppress(LookupError, ValueError):
        return apps.get_model(name)
    with suppress(ImportError, AttributeError):
        pkgutil.resolve_name(name)
        return True
    with suppress(ImportError):  # django_dblock.contrib.tasks can't be imported before Django 6.0
        return importlib.util.find_spec(name) is not None
    return False


def documented_loggers():
    rows = re.findall(r"^\| (`django_dblock\..+?) \|", reference("logging.md"), re.MULTILINE)
    return set(re.findall(r"`([\w.]+)`", "".join(rows)))


def test_reference_has_every_logger():
    sources = [path.read_text() for path in (ROOT / "django_dblock").rglob("*.py")]
    assert documented_loggers() == set(re.findall(r'getLogger\("([\w.]+)"\)', "".join(sources)))


def test_every_error_is_in_the_reference():
    page = reference("errors.md")
    for name, value in vars(exceptions).items():
        if isinstance(value, type) and issubclass(value, exceptions.DblockError):
            assert re.search(
                rf"autoexception:: (django_dblock\.)?(exceptions\.)?{name}$", page, re.MULTILINE
            ), name


def test_every_signal_is_in_the_reference():
    page = reference("signals.md")
    for name, value in vars(signals).items():
        if isinstance(value, Signal):
            assert f"autodata:: {name}\n" in page


def test_every_setting_is_in_the_reference_with_its_default(settings):
    page = reference("settings.md")
    documented = dict(
        re.findall(r"^## `(DBLOCK_\w+)`\n\n- Default: `(.+)`$", page, flags=re.MULTILINE)
    )
    assert documented.keys() == {f"DBLOCK_{name.upper()}" for name in SETTINGS}
    for name in SETTINGS:
        assert ast.literal_eval(documented[f"DBLOCK_{name.upper()}"]) == getattr(Conf(), name), name


def test_reference_has_every_system_check():
    sources = [path.read_text() for path in (ROOT / "django_dblock" / "checks").glob("*.py")]
    ids = set(re.findall(r'"(dblock\.[EW]\d{3})"', "".join(sources)))
    assert len(ids) > 10
    assert (
        set(re.findall(r"^## `(dblock\.[EW]\d{3})`", reference("checks.md"), re.MULTILINE)) == ids
    )


def test_reference_has_every_finding_of_the_doctor():
    sources = [path.read_text() for path in (ROOT / "django_dblock" / "doctor").glob("*.py")]
    ids = set(re.findall(r'Finding\(\s*"([a-z-]+)"', "".join(sources)))
    assert len(ids) > 15
    section = reference("command.md").partition("## `dblock doctor`")[2]
    rows = re.findall(r"^\| `([a-z-]+)` \| .* \| (info|warning|error) \|$", section, re.MULTILINE)
    assert {name for name, _ in rows} == ids


def options():
    """Each subcommand with the options and arguments its parser takes."""
    parser = load_command_class("django_dblock", "dblock").create_parser("manage.py", "dblock")
    [subparsers] = (action for action in parser._actions if action.dest == "subcommand")
    for name, subparser in subparsers.choices.items():
        yield (
            name,
            [
                action.option_strings[-1] if action.option_strings else str(action.metavar)
                for action in subparser._actions
                if action.dest != "help" and action.help != "==SUPPRESS=="
            ],
        )


def test_every_subcommand_and_option_is_in_the_reference():
    sections = dict(
        re.findall(
            r"^## `dblock (\w+)`\n(.+?)(?=^## |\Z)",
            reference("command.md"),
            re.MULTILINE | re.DOTALL,
        )
    )
    found = dict(options())
    assert sections.keys() == found.keys()
    for name, taken in found.items():
        missing = {option for option in taken if f"`{option}`" not in sections[name]}
        assert missing <= {"--using", "--namespace"}, name
    assert "`--using`" in reference("command.md")


def shown_commands():
    """Each ``python manage.py dblock …`` that a page shows, with its place."""
    for path in PAGES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for command in re.findall(r"python manage\.py dblock ([a-z][^`|>&;#]*)", line):
                yield pytest.param(command.strip(), id=f"{shown(path)}:{number}")


@pytest.mark.parametrize("command", list(shown_commands()))
def test_every_shown_command_has_options_that_exist(command):
    """Commands in shell, text and unit files are shown only, so nothing else would notice."""
    parser = load_command_class("django_dblock", "dblock").create_parser("manage.py", "dblock")
    parser.parse_args(shlex.split(command))


def test_every_exit_status_of_dblock_run_is_in_the_reference():
    page = reference("command.md")
    for status in (console.NOT_ACQUIRED, console.LOST, console.USAGE, console.FAILED):
        assert f"\n| {status} |" in page, status
    assert "| 128 + n |" in page


@pytest.mark.parametrize(
    ("kind", "dataclass"),
    [
        ("blockers", BlockingSession),
        ("advisory", AdvisoryLock),
        ("fenced", FencedLease),
        ("latches", AwaitedLatch),
        ("idempotency", UnfinishedRequest),
    ],
)
def test_schema_of_dblock_list_matches_its_dataclass(kind, dataclass):
    schema = json.loads((REFERENCE / "dblock-list.schema.json").read_text())
    row = schema["properties"][kind]["items"]
    hints = typing.get_type_hints(dataclass)
    if dataclass is FencedLease:  # what its name means is shown, too
        for name in ("key", "kind", "role"):
            hints[name] = typing.get_type_hints(getattr(FencedLease, name).fget)["return"]
    assert row["properties"].keys() == hints.keys()
    assert row["required"] == list(hints)
    for name, hint in hints.items():
        assert row["properties"][name]["type"] == _json_type(hint), name
        assert row["properties"][name]["description"], name
    assert schema["properties"]["schema"]["const"] == SCHEMA


def _json_type(hint):
    names: dict = {datetime: "string"}
    names |= {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    if isinstance(hint, types.UnionType):
        return [names[each] for each in typing.get_args(hint)]
    if typing.get_origin(hint) is typing.Literal:
        return "string"
    return {tuple: "array", dict: "object"}.get(typing.get_origin(hint)) or names[hint]


@pytest.mark.parametrize(
    ("kind", "dataclass"), [("fenced", FencedLease), ("idempotency", UnfinishedRequest)]
)
def test_schema_names_the_states(kind, dataclass):
    schema = json.loads((REFERENCE / "dblock-list.schema.json").read_text())
    state = schema["properties"][kind]["items"]["properties"]["state"]
    assert state["enum"] == list(typing.get_args(typing.get_type_hints(dataclass)["state"]))


@pytest.mark.django_db(transaction=True)
def test_output_of_dblock_list_matches_its_schema():
    schema = json.loads((REFERENCE / "dblock-list.schema.json").read_text())
    out = StringIO()

    def work(handle):
        with django_dblock.fenced_lock("a", ttl=60), django_dblock.advisory_lock("a"):
            call_command("dblock", "list", "--json", stdout=out)

    django_dblock.run_once("a", work=work, mode="lease")
    printed = json.loads(out.getvalue())
    assert list(printed) == list(schema["properties"])
    assert set(schema["required"]) <= printed.keys()
    for kind in ("advisory", "fenced", "idempotency"):
        [lock] = printed[kind]
        assert list(lock) == schema["properties"][kind]["items"]["required"]


def test_every_page_is_reached_from_an_index():
    listed = set()
    for index in (ROOT / "docs").rglob("*.md"):
        for tree in re.findall(r"```\{toctree\}\n(.+?)```", index.read_text(), re.DOTALL):
            for line in tree.splitlines():
                if line and not line.startswith(":"):
                    target = re.sub(r".*<(.+)>", r"\1", line)
                    listed.add((index.parent / f"{target}.md").resolve())
    pages = set(PAGES) - {README, ROOT / "docs" / "index.md"}
    assert {path.resolve() for path in pages} == listed


# What a Django developer types, and the page that should come first.
SEARCHES = {
    "cron job runs twice": "run-a-nightly-job",
    "double click creates two orders": "make-a-view-idempotent",
    "celery task duplicate": "idempotent-tasks",
    "lost update": "save-only-what-you-saw",
    "only one worker": "coordinate-workers",
    "rate limit calls to an api": "limit-concurrency",
    "leader election": "coordinate-workers",
    "idempotency key stripe": "call-a-gateway-once",
    "pgbouncer": "deploy",
    "lock timeout": "choose-keys",
    "race condition": "lock-in-a-view",
    "read replica": "use-several-databases",
    "webhook twice": "receive-webhooks-once",
    "who holds the lock": "see-what-is-locked",
}


def test_search_puts_each_how_to_first_for_its_keywords():
    """Sphinx lists main index entries (``!``) first, and other index entries last.

    An entry is found if it contains the query and is at most twice as long
    (``Search._performSearch`` in Sphinx's searchtools.js).
    """
    pages = {}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        words = re.findall(r"^```\{index\} (.+)$", path.read_text(), re.MULTILINE)
        if path.parent.name == "how-to":
            assert bool(words) == (path.name != "index.md"), shown(path)
        for word in filter(None, ", ".join(words).split(", ")):
            assert word.startswith("! "), f"{shown(path)}: {word} is no main entry"
            assert pages.setdefault(word[2:].lower(), path) == path, word
    for query, name in SEARCHES.items():
        assert pages[query].stem == name, query


def test_links_between_files_resolve():
    for path in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]:
        for target in re.findall(
            r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)", path.read_text()
        ):
            assert (path.parent / target).exists(), f"{shown(path)}: {target}"


def test_absolute_links_of_the_readme_resolve():
    """They are absolute because PyPI shows the README without the files beside it."""
    text = README.read_text()
    assert not re.search(r"\]\((?!https://|#)", text)
    pages = re.findall(r"\(https://django-dblock\.readthedocs\.io/en/latest/(.+?)\.html\)", text)
    assert pages
    for page in pages:
        assert (ROOT / "docs" / f"{page}.md").exists(), page


def test_readme_is_a_page_long():
    assert len(README.read_text().split()) <= 900


def test_no_page_names_a_machine():
    """No path and no host but the public ones."""
    files = [
        *PAGES,
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.py"),
        ROOT / ".pre-commit-config.yaml",
    ]
    for path in files:
        assert not re.search(r"/(work|home|root|tmp)/", path.read_text()), shown(path)
