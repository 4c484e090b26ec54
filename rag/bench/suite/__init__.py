"""The prefix-hit benchmark: suites of experiments over several engines, and the file that a run leaves behind."""
