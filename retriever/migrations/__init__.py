"""Numbered SQL files that take the database from one version to the next; applied once, in order, never edited."""
