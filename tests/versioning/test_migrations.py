"""Adding a version to a big table that is in use: no rewrite, no long lock, old code goes on."""

import pytest
from django.db import OperationalError, connection, migrations, models, transaction
from django.db.migrations.state import ProjectState

from django_dblock import VersionField

pytestmark = pytest.mark.django_db(transaction=True)

TABLE = "app_big"
CREATE = migrations.CreateModel(
    "Big", [("id", models.BigAutoField(primary_key=True)), ("name", models.TextField())]
)
RECIPE = [
    migrations.RunSQL("SET LOCAL lock_timeout = '200ms'", migrations.RunSQL.noop),
    migrations.AddField("big", "version", VersionField()),
]


class Before(migrations.Migration):
    operations = [CREATE]  # noqa: RUF012


class Recipe(migrations.Migration):
    """The migration that the documentation tells users to write."""

    operations = RECIPE


@pytest.fixture
def before(connect):
    """A table with rows, as it was before the project had versions."""
    state = ProjectState()
    with connection.schema_editor() as editor:
        state = Before("0001", "app").apply(state, editor)
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {TABLE} (name) SELECT 'old' FROM generate_series(1, 1000)")
    yield state
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {TABLE}")


def migrate(state):
    with connection.schema_editor(atomic=True) as editor:
        return Recipe("0002", "app").apply(state.clone(), editor)


def file_of(observer):
    """The table's file on disk; a rewrite makes a new one."""
    return observer.execute("SELECT pg_relation_filenode(%s)", [TABLE]).fetchone()


def test_table_is_not_rewritten(before, observer):
    file = file_of(observer)
    migrate(before)
    assert file_of(observer) == file
    assert observer.execute(f"SELECT version, count(*) FROM {TABLE} GROUP BY 1").fetchall() == [
        (1, 1000)
    ]


def test_negative_twin_volatile_default_rewrites_the_table(before, observer):
    file = file_of(observer)
    observer.execute(f"ALTER TABLE {TABLE} ADD version bigint DEFAULT (random() * 9)::int NOT NULL")
    assert file_of(observer) != file


def test_one_statement_adds_the_column(before):
    with connection.schema_editor(collect_sql=True) as editor:
        Recipe("0002", "app").apply(before.clone(), editor, collect_sql=True)
    sql = [line for line in editor.collected_sql if not line.startswith("--")]
    assert sql == [
        "SET LOCAL lock_timeout = '200ms';",
        f'ALTER TABLE "{TABLE}" ADD COLUMN "version" bigint DEFAULT 1 NOT NULL;',
    ]


def test_database_default_lets_old_code_insert(before, observer):
    migrate(before)
    observer.execute(f"INSERT INTO {TABLE} (name) VALUES ('by the old code')")
    assert observer.execute(
        f"SELECT version FROM {TABLE} WHERE name = 'by the old code'"
    ).fetchone() == (1,)


def test_busy_table_times_out(before, rival, observer):
    """Waiting for it, it would hold up every query that comes after it."""
    with rival.transaction():
        rival.execute(f"SELECT FROM {TABLE} LIMIT 1")
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate(before)
    assert not observer.execute(
        "SELECT FROM information_schema.columns WHERE table_name = %s AND column_name = 'version'",
        [TABLE],
    ).fetchone()
    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("0",), "only the migration was hurried"
    migrate(before)


def test_going_back_drops_the_column(before, observer):
    migrate(before)
    with connection.schema_editor(atomic=True) as editor:
        Recipe("0002", "app").unapply(before.clone(), editor)
    assert observer.execute(f"SELECT * FROM {TABLE} LIMIT 1").fetchone() == (1, "old")


def test_migration_has_only_changeable_options():
    _, path, _, options = VersionField(verbose_name="revision").deconstruct()
    assert path == "django_dblock.VersionField"
    assert options == {"verbose_name": "revision"}
