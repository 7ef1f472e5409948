# ruff: noqa: INP001 - Sphinx imports it by its name alone
"""Directives that write reference pages from the code itself."""

import os
from typing import Any
from unittest import mock

from django.core.management import load_command_class
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandHelp(SphinxDirective):
    """``{dblock-help} [subcommand]``: what ``manage.py dblock [subcommand] --help`` prints."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the help as a block of text."""
        with mock.patch.dict(os.environ, COLUMNS="88"):
            parser: Any = load_command_class("django_dblock", "dblock").create_parser(
                "manage.py", "dblock"
            )
            if self.arguments:
                [subparsers] = (each for each in parser._actions if each.dest == "subcommand")  # noqa: SLF001
                parser = subparsers.choices[self.arguments[0]]
            text = parser.format_help()
        if not self.arguments:  # Django's own options are the same for every command
            text = text.partition("\noptions:")[0]
            text = f"usage: manage.py dblock <subcommand> …\n\n{text.partition(chr(10) * 2)[2]}"
        literal = nodes.literal_block(text, text)
        literal["language"] = "text"
        return [literal]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("dblock-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
