"""For developers: write the next migration, the difference between `tables.py` and the migrations so far.

`python -m service.jobs.migrations "jobs have a color"`; read what it wrote (SQLite
changes a column or a constraint only by `op.batch_alter_table`). `--fresh` instead of a message writes the
first migration anew, which is right as long as no release has been made with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from alembic import command

from service.jobs.schema import MIGRATIONS, alembic_config


def write_migration(message: str) -> Path:
    """Write the next migration into the package; its file."""
    versions = MIGRATIONS / "versions"
    number = 1 + len(list(versions.glob("[0-9]*.py")))
    config = alembic_config()
    with tempfile.TemporaryDirectory() as folder:
        engine = sa.create_engine(f"sqlite:///{Path(folder) / 'empty.sqlite3'}")
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            if number > 1:
                command.upgrade(config, "head")
            command.revision(config, message, autogenerate=True, rev_id=f"{number:04d}")
        engine.dispose()
    (written,) = versions.glob(f"{number:04d}_*.py")
    lines = written.read_text().splitlines(keepends=True)
    written.write_text("".join(line for line in lines if "###" not in line))  # alembic's own remarks
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(written)], check=True)  # noqa: S603
    return written


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--fresh"]:
            for old in (MIGRATIONS / "versions").glob("[0-9]*.py"):
                old.unlink()
            print(write_migration("All tables"))
        case [message]:
            print(write_migration(message))
        case _:
            sys.exit(__doc__)
