"""What allows chunk reuse: figures that show it to move answers no more than another order of the passages does.

DESIGN section 4. Reads and writes certificates; how they are earned is not known here.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine import kv_identity

if TYPE_CHECKING:
    from engine.kv_identity import KVIdentity

__all__ = [
    "Certificate", "CertificateRow", "Certificates", "Drift", "Interval", "Stage", "certificate_key",
    "shipped_certificates",
]  # fmt: skip

logger = logging.getLogger(__name__)

FORMAT: Literal["preread-certificate-1"] = "preread-certificate-1"

Stage = Literal["screening", "confirmation"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(_Part):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


class Drift(_Part):
    """How far a way to compute the same passages is from full prefill, teacher-forced along its greedy answers.

    Attributes:
        kl: KL(full || this) of the next-token distributions, in nats an answer token; sets weigh the same.
        agreement: share of answer tokens with the same most likely token.
        first_kl: the KL of the answers' first tokens alone.
    """

    kl: Interval
    agreement: Interval
    first_kl: Interval


class CertificateRow(_Part):
    """One repair at one number of passages, judged.

    Attributes:
        stage: `screening`, where the repair is chosen, or `confirmation`, on sets that had no part in the choice.
        passages: retrieved passages a question (k).
        repair: tokens of each shifted passage's head that are computed in context.
        sets: questions with their passages.
        answer_tokens: of all sets together.
        chunk: with reused KV.
        reordered: full prefill under random orders of the same passages.
        no_passages: the question alone.
        difference: of the KL of `chunk` and that of `reordered`, paired by set.
        upper_bound: one-sided 95 % bootstrap bound of that difference's mean.
        failures: the conditions that do not hold, in words; empty where the row passes.
    """

    stage: Stage
    passages: int
    repair: int
    sets: int
    answer_tokens: int
    chunk: Drift
    reordered: Drift
    no_passages: Drift
    difference: Interval
    upper_bound: float
    failures: tuple[str, ...]

    @property
    def passes(self) -> bool:
        """Whether every condition holds."""
        return not self.failures


class Certificate(_Part):
    """Leave to reuse canonical KV at other positions, with the figures that it was earned with.

    Attributes:
        key: see `certificate_key`; model, compute mode and KV dtype are told beside it for people.
        repair: tokens of each shifted passage's head to compute in context.
        min_passages: the range of passages a prompt for which it holds.
        max_passages: its end, included.
        min_passage_tokens: the range of passage lengths for which it holds.
        max_passage_tokens: its end, included.
        corpus: where questions and passages came from.
        max_tokens: length of an answer at most.
        orders: random orders a set at most.
        seed: of questions, orders and intervals.
        rows: every figure of the chosen repair and of those before it.
        command: that made it.
        machine: that it was made on.
        created: when, in ISO 8601.
    """

    format: Literal["preread-certificate-1"] = FORMAT
    key: str
    model: str
    compute_mode: str
    kv_dtype: str
    repair: int = Field(ge=0)
    min_passages: int = Field(ge=2)
    max_passages: int
    min_passage_tokens: int = Field(ge=1)
    max_passage_tokens: int
    corpus: str
    max_tokens: int
    orders: int
    seed: int
    rows: tuple[CertificateRow, ...]
    command: str
    machine: str
    created: str

    @model_validator(mode="after")
    def _is_earned(self) -> Self:
        if not self.confirmed or not all(row.passes for row in self.confirmed):
            raise ValueError("it has no confirmed figures of its repair that pass")
        return self

    @property
    def confirmed(self) -> tuple[CertificateRow, ...]:
        """The figures of its repair on sets that had no part in choosing it."""
        return tuple(row for row in self.rows if row.stage == "confirmation" and row.repair == self.repair)

    def covers(self, num_passages: int, lengths: Iterable[int]) -> bool:
        """Tell whether a prompt is in the range that was measured.

        One passage is in every range, since nothing of it is shifted; so are passages that the repair computes whole.

        Args:
            num_passages: of the prompt.
            lengths: tokens of each of its passages.
        """
        if num_passages <= 1:
            return True
        shifted = (length for length in lengths if length > self.repair)
        return self.min_passages <= num_passages <= self.max_passages and all(
            self.min_passage_tokens <= length <= self.max_passage_tokens for length in shifted
        )

    def allowance(self, num_passages: int) -> float:
        """Return the mean KL an answer token that so many passages may cost: the upper end of what re-ordering costs.

        The confirmed figures of the next measured number of passages count, of several corpora the highest.
        """
        measured = {row.passages for row in self.confirmed}
        passages = min((k for k in measured if k >= num_passages), default=max(measured))
        return max(row.reordered.kl.high for row in self.confirmed if row.passages == passages)

    def write(self, folder: Path) -> Path:
        """Write it into a folder, which is made if it is missing, in one step; return the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.compute_mode}-{self.corpus}-{self.key[:12]}.json"
        partial = path.with_suffix(f".{os.getpid()}.part")
        partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
        return path


class Certificates:
    """The certificates of some folders; read once, when the first is looked for.

    Args:
        folders: those of an earlier one count before those of a later one; a missing folder has none.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._read: list[Certificate] | None = None

    def find(self, identity: "KVIdentity", template_tokens: Sequence[int]) -> Certificate | None:
        """Return the certificate of a model's KV below a template, or None.

        Of several in one folder the most careful counts (the longest repair). Those that agree in everything but corpus
        and overlap in the lengths of passages count as one. One whose repair is not whole blocks cannot be used.
        """
        if self._read is None:
            self._read = [certificate for folder in self.folders for certificate in _read_folder(folder)]
        key = certificate_key(identity, template_tokens)
        usable = (one for one in self._read if one.key == key and one.repair % identity.block_size == 0)
        return next(usable, None)


def certificate_key(identity: "KVIdentity", template_tokens: Sequence[int]) -> str:
    """Return what a certificate depends on: weights, compute mode, KV dtype, numerics and template, as one hash.

    How KV is laid out in memory and on disk has no part in it.
    """
    facts = (
        FORMAT, str(kv_identity.NUMERICS_REVISION), identity.weights, identity.model, identity.compute_mode,
        identity.kv_dtype, ",".join(map(str, template_tokens)),
    )  # fmt: skip
    return blake3("\0".join(facts).encode()).hexdigest()


def shipped_certificates() -> Path:
    """Return the folder of the certificates that come with the package."""
    return Path(__file__).parent / "certificates"


def _read_folder(folder: Path) -> list[Certificate]:
    """Read every certificate; the most careful come first, joined where they can be."""
    read = [one for path in sorted(folder.glob("*.json")) if (one := _read(path)) is not None]
    found: list[Certificate] = []
    kind = attrgetter("key", "min_passages", "max_passages", "min_passage_tokens")
    for one in sorted(read, key=lambda one: (-one.repair, kind(one))):
        if found and _can_join(found[-1], one):
            found[-1] = _joined(found[-1], one)
        else:
            found.append(one)
    return found


def _can_join(one: Certificate, other: Certificate) -> bool:
    """Tell whether two were measured alike, over lengths of passages without a gap; `one` begins with the shorter."""
    alike = all(
        getattr(one, name) == getattr(other, name) for name in ("key", "repair", "min_passages", "max_passages")
    )
    return alike and other.min_passage_tokens <= one.max_passage_tokens + 1


def _joined(one: Certificate, other: Certificate) -> Certificate:
    return one.model_copy(
        update={
            "max_passage_tokens": max(one.max_passage_tokens, other.max_passage_tokens),
            "corpus": f"{one.corpus} and {other.corpus}",
            "rows": (*one.rows, *other.rows),
        }
    )


def _read(path: Path) -> Certificate | None:
    """Read a certificate; one that cannot be understood is logged and left out."""
    try:
        return Certificate.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = f"{field}: {first['msg']}" if field else first["msg"]
    except OSError as error:
        reason = str(error.strerror or error)
    logger.warning("the certificate %s is ignored (%s); run `rag certify` again or remove the file", path, reason)
    return None
