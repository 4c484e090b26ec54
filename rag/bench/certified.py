"""The repair of chunk reuse that benchmarks measure where nothing else is asked for."""

from collections.abc import Sequence

from engine.certificate import Certificate
from rag.config import RagConfig
from rag.model_hub import ModelHub

__all__ = ["UNCERTIFIED_REPAIR", "certified_repair", "repair_due"]

UNCERTIFIED_REPAIR = 32  # tokens, for a model without certificate: what the shipped one needs for 3 to 5 passages


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
    return max(certificate.repairs) if certificate else _whole_blocks(UNCERTIFIED_REPAIR, settings.block_size)


def repair_due(certificate: Certificate | None, passages: int, block_size: int) -> int:
    """Return the repair for prompts that a certificate does not cover, in tokens.

    Args:
        certificate: of the model, its compute mode and the template; None where there is none.
        passages: of the prompt; more than were ever certified are repaired as the most of them.
        block_size: tokens of a block, of which a repair is a multiple.
    """
    if certificate is None:
        return _whole_blocks(UNCERTIFIED_REPAIR, block_size)
    repair = certificate.repair_for(passages)
    return certificate.bands[-1].repair if repair is None else repair


def _whole_blocks(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size) * block_size
