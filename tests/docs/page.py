"""Run a page of the documentation: its blocks in order, in one namespace, in one small project.

The project has an app ``store``. Where the page does not write the app's models itself, they are
those of ``store_models.py``. A block whose first line is a file's name, ``# store/views.py``, is
written to that file and imported; ``# in store/views.py`` changes what is there already;
``# settings.py`` is put to the settings' own tests. Where a page writes ``store/models.py`` once
more, the app begins anew, with empty tables.
"""

import doctest
import importlib
import io
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.template import engines

from django_dblock.conf import Conf
from django_dblock.core.connection import drop_if_dead
from django_dblock.keys import encode, key_id
from tests.docs import elsewhere
from tests.docs.blocks import Block

MODELS = (Path(__file__).parent / "store_models.py").read_text()
Connect = Callable[[], psycopg.Connection[Any]]

SETTINGS = [
    name
    for name, value in vars(Conf).items()
    if isinstance(value, property | cached_property)
    and name not in ("has_namespaces", "namespace_source")  # both read DBLOCK_NAMESPACE
]
COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

_FILE = re.compile(r"# (?P<change>in )?(?P<name>[\w/]+\.py)\n")
_TEMPLATE = re.compile(r"\{# (?P<name>[\w/]+\.html) #\}\n")


class Page:
    """What the blocks of one page share."""

    def __init__(self, folder: Path, settings: Any, connect: Connect) -> None:
        self._folder = folder
        self._settings = settings
        self._connect = connect
        self._rival = connect()
        self._stack = ExitStack()
        self._begun = False
        self._models: list[Any] = []
        # What the blocks that readers don't see find beside the page's own names.
        self.namespace: dict[str, Any] = {
            "__name__": "page",
            "settings": settings,
            "rival": self._rival,
            "observer": connect(),
            "hold": self.hold,
            "start": self.start,
        }

    def __enter__(self) -> Self:
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file in one second
        patch.syspath_prepend(str(self._folder))
        (self._folder / "store" / "templates").mkdir(parents=True)
        (self._folder / "store" / "__init__.py").touch()
        self._stack.callback(self._uninstall)
        return self

    def __exit__(self, *error: object) -> None:
        drop_if_dead(connection)  # a page may have ended it
        self._rival.close()  # tables are dropped next: nobody may still use them
        self._stack.__exit__(*error)

    def hold(self, *key: Any) -> psycopg.Connection[Any]:
        """Lock a key in somebody else's transaction; closing the connection ends it."""
        other = self._connect()
        self._stack.callback(other.close)
        other.execute("BEGIN")
        other.execute("SELECT pg_advisory_xact_lock(%s)", [key_id(encode(key))])
        return other

    def start(self, *arguments: str) -> elsewhere.Process:
        """Start ``manage.py`` in a process of its own, which ends with the page at the latest."""
        process = elsewhere.start(self._folder, *arguments)
        self._stack.callback(_end, process)
        return process

    def run(self, block: Block) -> None:
        """Run one block; raises what it raises."""
        if block.language == "postgresql":
            self._run_sql(block.source)
        elif block.language == "console":
            self._run_console(block)
        elif block.language == "html":
            self._write_template(block)
        elif match := _FILE.match(block.source):
            if match["name"].endswith("settings.py"):
                self._try_settings(block)
            elif match["change"]:
                self._execute(block, vars(importlib.import_module(_module(match["name"]))))
                with (self._folder / match["name"]).open("a") as file:
                    file.write(block.source)  # for other processes
            else:
                self._write(match["name"], block.source)
        elif block.source.lstrip().startswith(">>>"):
            self._run_doctest(block)
        else:
            self._execute(block, self.namespace)

    def use_models(self, source: str = MODELS) -> None:
        """Install the app ``store`` with these models, and make their tables."""
        self._write("store/models.py", source)

    def _write(self, name: str, source: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.relative_to(self._folder).parents:
            if str(folder) != ".":
                (self._folder / folder / "__init__.py").touch()
        path.write_text(source)
        importlib.invalidate_caches()
        if name == "store/models.py":
            self._uninstall()
            self._install()
        else:
            sys.modules.pop(_module(name), None)  # as a page wrote it before
        found = vars(importlib.import_module(_module(name)))
        self.namespace.update({key: value for key, value in found.items() if key[:2] != "__"})

    def _execute(self, block: Block, namespace: dict[str, Any]) -> None:
        # as many empty lines before it as the page has: a traceback shows the page's line
        program = "\n" * block.line + block.source
        exec(compile(program, block.path, "exec"), namespace)

    def _write_template(self, block: Block) -> None:
        match = _TEMPLATE.match(block.source)
        assert match, f"{block.place}: the first line of a template names its file"
        path = self._folder / match["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.source)
        for backend in engines.all():
            for loader in backend.engine.template_loaders:
                loader.reset()  # what it has read, and what it has not found

    def _install(self) -> None:
        self._settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "store"]
        self._models = list(apps.get_app_config("store").get_models())
        with connection.schema_editor() as editor:
            for model in self._models:
                editor.create_model(model)

    def _uninstall(self) -> None:
        with connection.schema_editor() as editor:
            for model in reversed(self._models):
                editor.delete_model(model)
        self._models = []
        if "store" in settings.INSTALLED_APPS:
            self._settings.INSTALLED_APPS = [
                name for name in settings.INSTALLED_APPS if name != "store"
            ]
        apps.all_models.pop("store", None)
        apps.clear_cache()
        for name in [name for name in sys.modules if name.partition(".")[0] == "store"]:
            del sys.modules[name]

    def _try_settings(self, block: Block) -> None:
        found: dict[str, Any] = {
            name: getattr(settings, name) for name in ("DATABASES", "INSTALLED_APPS", "MIDDLEWARE")
        }
        self._execute(block, found)
        ours = {name: value for name, value in found.items() if name.startswith("DBLOCK_")}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**ours, "DATABASES": found["DATABASES"]}.items():
                patch.setattr(settings, name, value, raising=False)
            read = Conf()
            for name in SETTINGS:
                getattr(read, name)
        unknown = ours.keys() - {f"DBLOCK_{name.upper()}" for name in SETTINGS}
        assert not unknown, f"{block.place}: no such setting: {', '.join(unknown)}"
        self.namespace["settings_block"] = found

    def _run_sql(self, source: str) -> None:
        if not self._begun:
            self._rival.execute("BEGIN")
            self._begun = True
        self._rival.execute(source)

    def _run_console(self, block: Block) -> None:
        for part in re.split(r"^\$ ", block.source, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            program, script, *arguments = shlex.split(command)
            assert (program, script) == ("python", "manage.py"), f"{block.place}: {command}"
            out = io.StringIO()
            with suppress(SystemExit):  # the status of `dblock doctor`, after warnings
                call_command(*arguments, stdout=out)
            # Some admins of the tests are Django's own on purpose, and silenced.
            out = io.StringIO(re.sub(r"\(\d+ silenced\)", "(0 silenced)", out.getvalue()))
            texts = expected, out.getvalue()
            if arguments[:2] == ["dblock", "list"]:
                texts = _comparable(expected), _comparable(out.getvalue())
            if not doctest.OutputChecker().check_output(*texts, COMPARED):
                pytest.fail(f"{block.place}: {command}\nprints\n{out.getvalue()}")

    def _run_doctest(self, block: Block) -> None:
        test = doctest.DocTestParser().get_doctest(
            block.source, {}, block.path.name, str(block.path), block.line
        )
        test.globs = self.namespace
        report: list[str] = []
        result = doctest.DocTestRunner(optionflags=COMPARED, verbose=False).run(
            test, out=report.append, clear_globs=False
        )
        if result.failed:
            pytest.fail("".join(report))


def _comparable(printed: str) -> str:
    """Put the same in place of what differs from run to run: backends, seconds, user and host."""
    for pattern, same in (
        (r"\b\d+\.\d+\.\d+\.\d+\b|\blocal\b|\bnull,?$", "CLIENT"),
        (r"\b\d+\.\d+( s)?\b", "SECONDS"),
        (r"(?<=\s)\d{2,7}(?=[\s,])", "PID"),
        (rf"\bshop\b|\btests\b|\b{re.escape(connection.settings_dict['USER'])}\b", "USER"),
    ):
        printed = re.sub(pattern, same, printed, flags=re.MULTILINE)
    return printed


def _module(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


def _end(process: elsewhere.Process) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
