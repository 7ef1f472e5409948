"""Sphinx: ``sphinx-build -W -n -b html docs docs/_build/html``."""

import sys
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# The package is imported for its docstrings; nothing here connects to a database.
settings.configure(
    INSTALLED_APPS=["django_dblock"],
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "docs"}},
)
django.setup()

import django_dblock  # noqa: E402 - after the settings
from django_dblock.keys import KeyPart  # noqa: E402

project = "django_dblock"
author = "The django_dblock maintainers"
copyright = f"2026, {author}"
version = release = django_dblock.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "dblock_reference",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"django_dblock {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
python_display_short_literal_types = True

nitpicky = True
# No inventory of another project is loaded: the build needs no network. So what other projects
# define has no target here.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections\.abc|contextlib|datetime|decimal|enum)\..*"),  # Python's
    (r"py:.*", r"(typing|types|uuid)\..*"),  # likewise
    (r"py:class", r"(Any|Callable|Iterable|EllipsisType|NoReturn|Self|UUID|Decimal|date|Enum)"),
    (r"py:.*", r"(django|asgiref)\..*"),  # Django's
    (
        r"py:exc",
        r"TransactionManagementError|ConnectionDoesNotExist|ValidationError|ImproperlyConfigured",
    ),  # Django's, in our Raises
    (r"py:exc", r"RequestDataTooBig|UnreadablePostError"),  # Django's, in our Raises
    (r"py:exc", r"IntegrityError|NotSupportedError|OperationalError"),  # Django's, in our Raises
    (r"py:exc", r"TypeError|ValueError|RuntimeError"),  # Python's
    (r"py:class", r"(django_dblock\.(\w+\.)*)?(P|R|M|View|HeldT|ResponseT)"),  # type variables
    (r"py:class", r"GuardedSave"),  # what of VersionedModel is not for users
    (r"py:class", r"django_dblock\.versioning\.web\.diff_display\.Row"),  # likewise, of forms
    (r"py:class", r"django_dblock\.idempotency\.(identity\.Identity|claim\.Lease)"),  # likewise
    # Blocks that are entered at once, and a union that is told in words.
    (r"py:class", r"django_dblock\.coordination\.(rwlock\._\w+|leadership\.StopEvent)"),
    (r"py:data", r"Kind"),  # told in words beside it
    (r"py:class", r"'\w+'"),  # a value of a Literal
    (r"py:mod", r"fnmatch|django_dblock\.(versioning|fencing|sql)\.\w+"),  # not shown
    (r"py:class", r"(django_dblock\.keys\.)?(SavedInstance|KeyPart)"),  # told in words, api.md
]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", name_the_aliases)


def name_the_aliases(*event: Any) -> tuple[str | None, str | None]:
    """Write ``KeyPart`` where autodoc writes out all that it stands for, and ``...`` as it is."""
    *_, signature, returned = event
    if signature is not None:
        name = "~django_dblock.keys.KeyPart"
        written_out = stringify_annotation(KeyPart, "smart")
        signature = signature.replace(written_out, name)
        signature = signature.replace(written_out.replace("KeyPart", name), name)
        signature = signature.replace(" = Ellipsis", " = ...")
    return signature, returned
