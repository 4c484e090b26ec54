"""The repair that chunk reuse is allowed with: what benchmarks measure where nothing else is asked for."""

from collections.abc import Sequence

from rag.config import RagConfig
from rag.model_hub import ModelHub

__all__ = ["UNCERTIFIED_REPAIR", "certified_repair"]

UNCERTIFIED_REPAIR = 16  # for a model without certificate: the least that brings reuse near to re-ordering


def certified_repair(config: RagConfig, template: Sequence[int]) -> int:
    """Return the largest repair that the certificate of a model, in its compute mode, asks for below a template.

    Args:
        config: names the model and its compute mode.
        template: token ids.

    Raises:
        UnknownModelError: the model is not here.
    """
    from engine.backends import load_backend
    from engine.kv_cache import resolve_dtype
    from engine.kv_identity import KVIdentity
    from engine.models.config import ModelConfig
    from rag.certify.folders import certificates_of

    hub, settings = ModelHub(config.models_dir), config.engine.build()
    folder = hub.resolve(config.model)
    computed = str(resolve_dtype(settings, folder, load_backend(settings.backend, settings.device)))
    computed = computed.removeprefix("torch.")
    identity = KVIdentity.of(
        folder,
        ModelConfig.from_folder(folder),
        dtype=computed if settings.dtype == "auto" else settings.dtype,
        kv_dtype=computed if settings.kv_dtype == "auto" else settings.kv_dtype,
        block_size=settings.block_size,
    )
    certificate = certificates_of(hub, config.model).find(identity, template)
    return max(certificate.repairs) if certificate else UNCERTIFIED_REPAIR
