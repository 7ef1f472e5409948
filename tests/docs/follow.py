"""Follow a tutorial literally: in an empty folder, in a project that ``startproject`` made.

===============================  ================================================================
``# store/views.py``             the whole file
``# in store/views.py``          imports at the top, each function in place of its namesake
``# at the end of …``            appended
```` ```shell ````               each line is run; what the next ``text`` block shows is compared
``<!-- prints: REGEX -->``       before a ``text`` block: compare with this instead
``>>>``                          typed into ``manage.py shell``, neighbours into the same one
``<!-- by hand`` … ``-->``       what the text tells the reader to do with a browser or Ctrl-Z
===============================  ================================================================
"""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql

from tests.docs.blocks import Block, blocks
from tests.helpers import observe

_FILE = re.compile(r"# (?P<how>in |at the end of )?(?P<name>[\w/]+\.py)\n")
_TEMPLATE = re.compile(r"\{# (?P<name>[\w/]+\.html) #\}\n")
# What a reader types once for the machine, not for the lesson.
_MACHINE = ("python3 -m venv", ". .venv", "pip install")


_HELD = """
import runpy, sys, time
plain_sleep = time.sleep
time.sleep = lambda seconds: sys.stdin.read() if seconds == 1 else plain_sleep(seconds)
sys.argv[0] = "manage.py"
runpy.run_path("manage.py", run_name="__main__")
"""


class Process:
    """A command that the reader started in a second terminal."""

    def __init__(self, popen: "subprocess.Popen[str]") -> None:
        self._popen = popen
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.communicate()

    def wait_for(self, text: str) -> None:
        for line in self._popen.stdout:
            self._said += line
            if text in line:
                return
        raise AssertionError(f"never said {text!r}: {self._said}")

    def pause(self) -> None:
        self._popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def end(self) -> str:
        """Wait for its end; return all that it printed."""
        said, _ = self._popen.communicate(timeout=120)
        return self._said + said


class Project:
    """The reader's folder, and the database ``tutorial`` on the tests' server."""

    def __init__(self, folder: Path, server: psycopg.Connection) -> None:
        self.folder = folder
        self._server = server
        info = server.info
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DJANGO")},
            "PGHOST": info.host,
            "PGPORT": str(info.port),
            "PGUSER": info.user,
            "PGPASSWORD": info.password,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONWARNINGS": "ignore",
        }
        self.drop()

    def drop(self) -> None:
        self._server.execute("DROP DATABASE IF EXISTS tutorial WITH (FORCE)")

    def run(self, line: str) -> str:
        """Run one line that the reader types; return what it prints."""
        if line.startswith(_MACHINE) or line == "python manage.py shell":
            return ""
        program, *arguments = shlex.split(line)
        if program == "createdb":
            self._server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(arguments[0])))
            return ""
        if program == "django-admin":
            return self._python("-m", "django", *arguments)
        assert program == "python", line
        return self._python(*arguments)

    def manage(self, *arguments: str) -> str:
        return self._python("manage.py", *arguments)

    def python(self, source: str) -> str:
        return self.manage("shell", "-c", source)

    def start(self, *arguments: str, held: bool = False) -> Process:
        """Start ``manage.py`` in a second terminal.

        Args:
            held: each second that the program sleeps lasts until its standard input ends, so that
                it can be paused there on a slow machine as well.
        """
        program = ["-c", _HELD] if held else ["manage.py"]
        return Process(
            subprocess.Popen(
                [sys.executable, "-u", *program, *arguments],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    def lease_is_over(self, name: str, *, locked: bool = False) -> None:
        """Stand in for the reader who counts until the lease has expired."""
        with self._database() as database:
            if locked:  # an expiry can't be written over a row that the guard has locked
                observe.until(
                    lambda: (
                        database.execute(
                            "SELECT expires_at < clock_timestamp() FROM django_dblock_fencedlock"
                            " WHERE name = %s",
                            [name],
                        ).fetchone()
                        == (True,)
                    ),
                    "the lease has expired",
                )
            else:
                database.execute(
                    "UPDATE django_dblock_fencedlock SET expires_at = clock_timestamp()"
                    " WHERE name = %s",
                    [name],
                )

    def row_is_locked(self, name: str) -> None:
        """Wait until a guard has locked the lease's row."""
        with self._database() as database:
            observe.until(
                lambda: (
                    database.execute(
                        "SELECT count(*) FROM (SELECT FROM django_dblock_fencedlock WHERE name = %s"
                        " FOR UPDATE SKIP LOCKED) AS free",
                        [name],
                    ).fetchone()
                    == (0,)
                ),
                "the row is locked",
            )

    def write(self, how: str | None, name: str, source: str) -> None:
        path = self.folder / name
        if how is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        elif how == "in ":
            path.write_text(_replaced(path.read_text(), source))
        else:
            path.write_text(path.read_text() + "\n" + source)

    def _database(self) -> psycopg.Connection:
        info = self._server.info
        dsn = psycopg.conninfo.make_conninfo(info.dsn, dbname="tutorial", password=info.password)
        return psycopg.connect(dsn, autocommit=True)

    def _python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            check=False,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout


def _replaced(old: str, new: str) -> str:
    """Put the new functions in place of the old ones of the same name, new imports at the top."""
    tree = ast.parse(new)
    lines = new.splitlines()
    imports, functions = [], {}
    for node in tree.body:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        text = "\n".join(lines[first - 1 : node.end_lineno])
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(text)
        else:
            functions[node.name] = text
    out = old.splitlines()
    for node in reversed(ast.parse(old).body):
        if getattr(node, "name", None) in functions:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            out[first - 1 : node.end_lineno] = [functions.pop(node.name)]
    assert not functions, f"no function of this name to put it in place of: {list(functions)}"
    return "\n".join([*imports, *out, ""])


def follow(path: Path, project: Project) -> None:
    """Do all that the page says, from its top."""
    reader = _Reader(project)
    for block in blocks(path, by_hand=True):
        try:
            reader.do(block)
        except Exception as error:
            error.add_note(f"in {path.name}, line {block.line}")
            raise
    reader.type()


class _Reader:
    """What a reader of one page has seen printed, and has still to type."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._namespace = {"project": project}
        self._printed = ""
        self._typed: list[Block] = []

    def do(self, block: Block) -> None:
        if block.source.startswith(">>>"):
            self._typed.append(block)
            return
        self.type()
        if block.language == "shell":
            lines = filter(None, block.source.splitlines())
            self._printed = "".join(map(self._project.run, lines))
            return
        if block.language == "by hand":
            exec(compile("\n" * block.line + block.source, block.path, "exec"), self._namespace)
        elif block.language != "text":
            match = _TEMPLATE.match(block.source) or _FILE.match(block.source)
            assert match, f"{block.place}: which file is it?"
            self._project.write(match.groupdict().get("how"), match["name"], block.source)
        elif self._printed:
            _compare(block, self._printed)
        self._printed = ""

    def type(self) -> None:
        """Type what follows one another into one shell."""
        if self._typed:
            _type(self._project, self._typed)
            self._typed = []


def _compare(block: Block, printed: str) -> None:
    wanted = block.prints or re.escape(block.source.strip())
    # What migrate and the shell say beside it is not shown.
    assert re.search(rf"(?m:^){wanted}\Z", printed.strip()), f"{block.place} prints\n{printed}"


def _type(project: Project, typed: list[Block]) -> None:
    source = "\n".join(block.source for block in typed)
    said = project.python(
        "import doctest\n"
        f"test = doctest.DocTestParser().get_doctest({source!r}, {{}}, 'page', 'page', 0)\n"
        "runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)\n"
        "print('FAILED' if runner.run(test).failed else 'fine')\n"
    )
    assert said.rstrip().endswith("fine"), f"{typed[0].place}: {said}"
