"""From a model folder to what runs it, and to what the KV that it computes depends on."""

from pathlib import Path

from engine.backends import load_backend
from engine.config import EngineConfig
from engine.cuda_graphs import CudaGraphs
from engine.errors import ModelFileError
from engine.kv_cache import allocate_kv_cache, check_device, resolve_dtype
from engine.kv_identity import KVIdentity
from engine.model_runner import ModelRunner
from engine.models.loader import load_models

__all__ = ["identify", "load_runner"]


def load_runner(folder: Path, config: EngineConfig) -> ModelRunner:
    """Load a model and allocate its KV cache.

    Raises:
        ModelFileError: a folder that misses files or holds damaged ones.
        UnsupportedModelError: an architecture or rope type that this engine does not run.
        ConfigError: settings that cannot work with the model or the machine.
    """
    check_device(config.device)
    backend = load_backend(config.backend, config.device)
    dtype = resolve_dtype(config, folder, backend)
    models = load_models(folder, config, dtype, backend)
    model = models.full
    kv_cache = allocate_kv_cache(config, model.config, dtype)
    limit = model.config.max_position_embeddings
    graphs = CudaGraphs.for_model(model, kv_cache, max_rows=config.max_num_seqs, max_model_len=limit)
    return ModelRunner(model, kv_cache, lean=models.lean, graphs=graphs)


def identify(folder: Path | None, config: EngineConfig, runner: ModelRunner) -> KVIdentity:
    """Tell what a runner's KV depends on; reads the weights where their hash is not remembered.

    Raises:
        ModelFileError: the runner was not made from a folder, or its weights cannot be read.
    """
    if folder is None:
        raise ModelFileError("an engine that was not made from a model folder has no identity; use from_pretrained")
    dtype, model = config.dtype, runner.model
    if dtype == "auto":
        dtype = str(resolve_dtype(config, folder, model.backend)).removeprefix("torch.")
    kv_dtype = str(runner.kv_cache.dtype).removeprefix("torch.")
    return KVIdentity.of(folder, model.config, dtype=dtype, kv_dtype=kv_dtype, block_size=config.block_size)
