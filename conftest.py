"""Pytest entry: Markdown documents are tests, see tests/mdtest."""

pytest_plugins = ["tests.mdtest.plugin"]
