"""Markdown documents as tests.

How to write a document that is one:

* A heading starts a section, and a section with code is one test on each database: its
  own project folder, its own empty database (`DATABASE_URL` in the environment), its own
  process. `.agents/skills/async-sqlmodel` in the folder is this repository, and nothing
  else of it can be imported.
* A line that is only a path in backticks and a colon (`` `app/models.py`: ``) names the
  file that the next block becomes. Blocks run in the order in which they stand. A file may
  be replaced further down, once it was imported or run by `bash`.
* Unnamed `python` blocks of a section are one program. `await` may stand at top level,
  as in `python -m asyncio`.
* Named files and `bash` blocks that stand before the first sub-heading hold for every
  section below, which may replace the files.
* `#> ` lines right below a `print` statement are its output, all of it also in a loop,
  and every `print` has them. Comments that only look like output (`# -> 1`, `#>1`) are
  refused.
* A wrong example says what it raises, on its line or on the line above:
  `# raises: IntegrityError`, `# raises: StatementError: part of the message`,
  `# raises[postgresql, mysql]: DataError` where databases differ,
  `# raises: MissingGreenlet | StatementError` where versions do. The block must raise
  just that, there; of a `with` or `class` marked on its first line, that line. Other
  comments that begin with "raise" or "raises" are refused.
* Every statement of a Python block must run, on each database. Below a line that raises
  stands only what runs on another database. Bodies of lambdas and of `if TYPE_CHECKING`
  are not looked at.
* A DeprecationWarning, a RuntimeWarning (also SQLAlchemy's, and a coroutine that is never
  awaited) and an error in a task or thread are errors of the line that causes them; a
  wrong example may promise them.
* `bash` runs in the folder, and stops at the first command that fails. What it leaves
  running ends with the section. A `text` block after it is its output. `sql` runs on the
  database. `toml`, `ini`, `yaml`, `json`, `mako` and `dotenv` blocks are named files and
  are parsed by the library that reads them.
* `Databases: PostgreSQL, SQLite.` in a paragraph of its own restricts a section and those
  below it. Without it the section runs on all of them.
* `Servers: PgBouncer.` below `Databases: PostgreSQL.`: DATABASE_URL leads through a PgBouncer in
  transaction mode. `Servers: standby.`: it leads to a primary, as superuser, and
  DATABASE_REPLICA_URL to its streaming standby.
* `Since: SQLAlchemy 2.1, FastAPI 0.121.` in a paragraph of its own: where one of them is
  older, the section and those below it are skipped, which the run says.
* A block below a paragraph that starts with `Wrong:` must promise what it raises; one below
  `Right:` must not. `--flip` proves each pair of a section: it runs the wrong one as if it
  were right, and the right one with the promise of the wrong one, and wants both to fail.
* Python is linted and formatted: 100 columns, double quotes, sorted imports.
* Blocks may stand in lists and quotes; headings may not, nor code in HTML.

`pytest --update-examples` writes the `#>` lines, `--keep-folders` keeps the folder of a
section that fails, `--section-timeout` limits one. A full run fails when a block was
neither run nor checked, and when a document was not found.

`document` reads, `runner` runs one section in a forked process of `zygote`, `style`
lints, `plugin` is the pytest side, `summary` counts.
"""
