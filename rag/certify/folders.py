"""Where certificates are kept: beside the model, and in the package."""

from pathlib import Path

from engine.certificate import Certificates, shipped_certificates
from rag.model_hub import ModelHub

__all__ = ["certificates_of", "own_certificates"]

FOLDER = "certificates"


def own_certificates(hub: ModelHub, model: str) -> Path:
    """Return the folder of the certificates that `rag certify` makes for a model.

    Args:
        hub: with the model.
        model: a pulled or registered name, or a folder.

    Raises:
        UnknownModelError: there is no such model.
        ModelFolderError: it is damaged.
    """
    folder = hub.resolve(model)
    registered = hub.models_dir / model  # of a model that lies elsewhere, which may not be ours to write to
    return (registered if registered.is_dir() else folder) / FOLDER


def certificates_of(hub: ModelHub, model: str) -> Certificates:
    """Return a model's certificates; the user's own count before those that come with Preread.

    Raises what `own_certificates` raises.
    """
    return Certificates([own_certificates(hub, model), shipped_certificates()])
