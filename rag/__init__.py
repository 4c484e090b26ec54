"""HTTP API, CLI, pipelines, prompt layout and benchmarks."""
