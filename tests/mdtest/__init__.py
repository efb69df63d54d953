"""Markdown documents as tests.

How to write a document that is one:

* A heading starts a section, and a section with code is one test on each database: its
  own project folder, its own empty database (`DATABASE_URL` in the environment), its own
  process. `.agents/skills/async-sqlmodel` in the folder is this repository.
* A line that is only a path in backticks and a colon (`` `app/models.py`: ``) names the
  file that the next block becomes. Blocks run in the order in which they stand.
* Unnamed `python` blocks of a section are one program. `await` may stand at top level,
  as in `python -m asyncio`.
* Named files and `bash` blocks that stand before the first sub-heading hold for every
  section below.
* `#> ` lines under a `print` are its output, and every `print` has them.
* A wrong example says what it raises, on its line or on the line above:
  `# raises: IntegrityError`, `# raises: StatementError: part of the message`,
  `# raises[postgresql, mysql]: DataError` where databases differ. The block must raise
  just that, there. Later lines of that block do not run.
* Every statement of a Python block must run, on each database.
* `bash` runs in the folder. A `text` block after it is its output. `sql` runs on the
  database. `toml`, `ini`, `yaml`, `json`, `mako` and `dotenv` blocks are named files and
  are parsed by the library that reads them.
* `Databases: PostgreSQL, SQLite.` in a paragraph of its own restricts a section and those
  below it. Without it the section runs on all of them.
* Python is linted and formatted: 100 columns, double quotes, sorted imports.

`document` reads, `runner` runs one section in a forked process of `zygote`, `style`
lints, `plugin` is the pytest side.
"""
