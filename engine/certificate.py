"""What allows chunk reuse: figures that show it to move answers no more than another order of the passages does.

DESIGN section 4. Reads and writes certificates; how they are earned is not known here.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine import kv_identity

if TYPE_CHECKING:
    from engine.kv_identity import KVIdentity

__all__ = [
    "Band", "Certificate", "CertificateRow", "Certificates", "Drift", "Interval", "Stage", "certificate_key",
    "shipped_certificates",
]  # fmt: skip

logger = logging.getLogger(__name__)

FORMAT: Literal["preread-certificate-2"] = "preread-certificate-2"
KEY_FORMAT = "preread-certificate-1"  # of what the key is the hash of

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


class Band(_Part):
    """The repair that passed for a range of numbers of passages.

    Attributes:
        min_passages: of a prompt.
        max_passages: its end, included; this number was measured.
        repair: tokens of each shifted passage's head to compute in context.
    """

    min_passages: int = Field(ge=2)
    max_passages: int
    repair: int = Field(ge=0)


class Certificate(_Part):
    """Leave to reuse canonical KV at other positions, with the figures that it was earned with.

    Attributes:
        key: see `certificate_key`; model, compute mode and KV dtype are told beside it for people.
        bands: the numbers of passages for which it holds, rising without a gap, and the repair of each.
        min_passage_tokens: the range of passage lengths for which it holds.
        max_passage_tokens: its end, included.
        corpus: where questions and passages came from.
        max_tokens: length of an answer at most.
        orders: random orders a set at most.
        seed: of questions, orders and intervals.
        rows: every figure of the chosen repairs and of those that were tried before.
        command: that made it.
        machine: that it was made on.
        created: when, in ISO 8601.
    """

    format: Literal["preread-certificate-2"] = FORMAT
    key: str
    model: str
    compute_mode: str
    kv_dtype: str
    bands: tuple[Band, ...] = Field(min_length=1)
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
        if any(after.min_passages != before.max_passages + 1 for before, after in pairwise(self.bands)):
            raise ValueError("its numbers of passages have a gap, or overlap")
        passed = {(row.passages, row.repair) for row in self.confirmed}
        for band in self.bands:
            if (band.max_passages, band.repair) not in passed:
                raise ValueError(f"it has no confirmed figures that pass for {band.max_passages} passages")
        return self

    @property
    def confirmed(self) -> tuple[CertificateRow, ...]:
        """The figures that passed on sets that had no part in choosing the repair."""
        return tuple(row for row in self.rows if row.stage == "confirmation" and row.passes)

    @property
    def min_passages(self) -> int:
        """The least passages a prompt for which it holds."""
        return self.bands[0].min_passages

    @property
    def max_passages(self) -> int:
        """The most of them."""
        return self.bands[-1].max_passages

    @property
    def repairs(self) -> tuple[int, ...]:
        """Every repair that it asks for, by rising number of passages."""
        return tuple(band.repair for band in self.bands)

    def repair_for(self, num_passages: int) -> int | None:
        """Return the repair for a number of passages, or None where nothing of the kind was measured."""
        if num_passages <= 1:
            return 0
        bands = (band for band in self.bands if band.min_passages <= num_passages <= band.max_passages)
        return next((band.repair for band in bands), None)

    def covers(self, num_passages: int, lengths: Iterable[int]) -> bool:
        """Tell whether a prompt is in the range that was measured.

        One passage is in every range, since nothing of it is shifted; so are passages that the repair computes whole.

        Args:
            num_passages: of the prompt.
            lengths: tokens of each of its passages.
        """
        repair = self.repair_for(num_passages)
        if repair is None or num_passages <= 1:
            return repair is not None
        shifted = (length for length in lengths if length > repair)
        return all(self.min_passage_tokens <= length <= self.max_passage_tokens for length in shifted)

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

        Those of one folder that overlap in the lengths of passages count as one, which asks for the longer repair of
        each number of passages; of others the most careful counts. Repairs that are not whole blocks cannot be used.
        """
        if self._read is None:
            self._read = [certificate for folder in self.folders for certificate in _read_folder(folder)]
        key = certificate_key(identity, template_tokens)
        whole = identity.block_size
        usable = (one for one in self._read if one.key == key and not any(n % whole for n in one.repairs))
        return next(usable, None)


def certificate_key(identity: "KVIdentity", template_tokens: Sequence[int]) -> str:
    """Return what a certificate depends on: weights, compute mode, KV dtype, numerics and template, as one hash.

    How KV is laid out in memory and on disk has no part in it.
    """
    facts = (
        KEY_FORMAT, str(kv_identity.NUMERICS_REVISION), identity.weights, identity.model, identity.compute_mode,
        identity.kv_dtype, ",".join(map(str, template_tokens)),
    )  # fmt: skip
    return blake3("\0".join(facts).encode()).hexdigest()


def shipped_certificates() -> Path:
    """Return the folder of the certificates that come with the package."""
    return Path(__file__).parent / "certificates"


def _read_folder(folder: Path) -> list[Certificate]:
    """Read every certificate; joined where they can be, the most careful come first."""
    read = [one for path in sorted(folder.glob("*.json")) if (one := _read(path)) is not None]
    found: list[Certificate] = []
    for one in sorted(read, key=attrgetter("key", "min_passage_tokens")):
        if found and _can_join(found[-1], one):
            found[-1] = _joined(found[-1], one)
        else:
            found.append(one)
    return sorted(found, key=lambda one: -max(one.repairs))


def _can_join(one: Certificate, other: Certificate) -> bool:
    """Tell whether two hold for the same KV, for lengths without a gap; `one` begins with the shorter passages."""
    return (
        one.key == other.key
        and other.min_passage_tokens <= one.max_passage_tokens + 1
        and other.min_passages <= one.max_passages
        and one.min_passages <= other.max_passages
    )


def _joined(one: Certificate, other: Certificate) -> Certificate:
    """Return what both allow: the numbers of passages of both, and the longer repair of each."""
    ends = {band.max_passages for band in (*one.bands, *other.bands)}
    bands, start = [], max(one.min_passages, other.min_passages)
    for end in sorted(end for end in ends if start <= end <= min(one.max_passages, other.max_passages)):
        repair = max(found for each in (one, other) if (found := each.repair_for(end)) is not None)
        bands.append(Band(min_passages=start, max_passages=end, repair=repair))
        start = end + 1
    return one.model_copy(
        update={
            "bands": tuple(bands),
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
