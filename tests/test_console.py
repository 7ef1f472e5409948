"""The console: outputs that fail, errors in one line."""

import io
import sys
from io import StringIO

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper
from django.db import OperationalError, ProgrammingError

from django_dblock.cli import console, key
from tests.helpers.commands import Terminal


def error(cause, text="no", kind=ProgrammingError):
    found = kind(text)
    found.__cause__ = cause
    return found


class TestReason:
    @pytest.mark.parametrize(
        ("cause", "advice"),
        [
            (psycopg.errors.UndefinedTable(), "run 'manage.py migrate'"),
            (psycopg.errors.UndefinedColumn(), "run 'manage.py migrate'"),
            (psycopg.errors.InsufficientPrivilege(), "GRANT that right"),
            (psycopg.errors.ReadOnlySqlTransaction(), "is a standby"),
        ],
        ids=["table", "column", "right", "standby"],
    )
    def test_reason_says_what_to_do(self, cause, advice):
        assert advice in console.reason(error(cause))

    def test_reason_is_one_line_without_full_stop(self):
        said = console.reason(error(None, "it failed.\nDETAIL: long", OperationalError))
        assert said == "it failed"
        assert console.reason(OperationalError()) == "OperationalError"


class TestUnreadable:
    def test_missing_right_is_noted(self):
        options = {"kind": None, "notes": []}
        with console.note_unreadable("fenced", options):
            raise error(psycopg.errors.InsufficientPrivilege(), "permission denied")
        [note] = options["notes"]
        assert note.startswith("fenced is not shown: permission denied: GRANT")

    def test_kind_given_by_name_is_an_error(self):
        options = {"kind": "fenced", "notes": []}
        with pytest.raises(CommandError, match="can't be shown"):
            with console.note_unreadable("fenced", options):
                raise error(psycopg.errors.InsufficientPrivilege())

    def test_each_error_of_the_database_is_noted(self):
        options = {"kind": None, "notes": []}
        with console.note_unreadable("fenced", options):
            raise OperationalError("connection failed: refused")
        assert options["notes"] == ["fenced is not shown: connection failed: refused."]

    def test_lost_connection_is_no_error_of_the_kind(self):
        """``watch --kind`` tries again."""
        options = {"kind": "fenced", "notes": []}
        with pytest.raises(OperationalError), console.note_unreadable("fenced", options):
            raise OperationalError


class TestConfirm:
    def test_end_of_the_input_declines(self, monkeypatch):
        """Ctrl-D."""
        monkeypatch.setattr(sys, "stdin", Terminal(""))
        with pytest.raises(CommandError, match="Not done"):
            console.confirm("End it?")

    def test_closed_input_is_no_terminal(self, monkeypatch):
        """Python found its descriptor closed, as after ``<&-``."""
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(CommandError, match="Pass --yes"):
            console.confirm("End it?")


class TestOutput:
    def test_closed_output_is_replaced(self):
        output = OutputWrapper(StringIO())
        output._out = None
        replaced = console.tolerant(output)
        replaced.write("goes nowhere")
        replaced._out.close()

    def test_text_that_cannot_be_encoded_is_escaped(self):
        raw = io.BytesIO()
        output = console.tolerant(OutputWrapper(io.TextIOWrapper(raw, encoding="ascii")))
        output.write("nächtlich")
        output.flush()
        assert raw.getvalue() == b"n\\xe4chtlich\n"

    def test_other_files_are_left_alone(self):
        output = OutputWrapper(StringIO())
        assert console.tolerant(output) is output

    def test_broken_pipe_is_status_141(self, monkeypatch):
        def run(stdout, options):
            raise BrokenPipeError

        monkeypatch.setattr(key, "run", run)
        with pytest.raises(SystemExit) as end:
            call_command("dblock", "key", "a", stdout=StringIO())
        assert end.value.code == 141

    def test_discarded_output_goes_nowhere(self, monkeypatch, tmp_path):
        with (tmp_path / "out").open("w") as file:
            monkeypatch.setattr(sys, "stdout", file)
            file.write("buffered")
            console.discard(OutputWrapper(file))
            file.flush()
        assert (tmp_path / "out").read_text() == ""
