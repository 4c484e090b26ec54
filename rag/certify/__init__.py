"""The test that chunk reuse must pass: it may move answers no more than another order of the passages does."""
