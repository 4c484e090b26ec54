"""What a stored passage looks like: a header that says all about it, then its tokens, then its KV bytes.

Knows neither files nor where a record lies.
"""

import struct
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from engine.kv_identity import FORMAT_VERSION, LAYOUT_VERSION

__all__ = ["ALIGNMENT", "HEADER_BYTES", "OTHER_VERSION", "BadRecordError", "RecordHeader"]

ALIGNMENT = 4096  # records begin at multiples of it: found again behind damage, and erased by the page
MAGIC = b"preadKV\n"
OTHER_VERSION = "it is of another version of the program"

# magic, format version, layout version, num_tokens, payload bytes, element type, key, checksum of the payload
_FIELDS = struct.Struct("<8sHHIQ8s32sQ")
_CHECKSUM = struct.Struct("<Q")  # of the fields
DTYPE_BYTES = 8
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size


class BadRecordError(Exception):
    """Report bytes that are not the record they should be."""


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What a record holds.

    Attributes:
        key: 32 bytes, which stand for tokens, model and element type too, see `KVIdentity.key`.
        num_tokens: tokens of the passage.
        payload_bytes: bytes of its KV, in the pool's layout.
        dtype: element type of its KV, for instance "float16"; at most 8 letters.
        checksum: xxh3 of the KV.
    """

    key: bytes
    num_tokens: int
    payload_bytes: int
    dtype: str
    checksum: int

    @classmethod
    def describe(cls, key: bytes, tokens: bytes, payload: memoryview, dtype: str) -> "RecordHeader":
        """Make the header for packed tokens and KV bytes."""
        assert len(dtype) <= DTYPE_BYTES, f"{dtype!r} has no room in a header"
        return cls(key, len(tokens) // 4, payload.nbytes, dtype, xxh3_64_intdigest(payload))

    @property
    def payload_offset(self) -> int:
        """Where the KV begins, from the record's first byte."""
        return HEADER_BYTES + 4 * self.num_tokens

    @property
    def nbytes(self) -> int:
        """Bytes from the record's first to its last."""
        return self.payload_offset + self.payload_bytes

    @property
    def extent_bytes(self) -> int:
        """Bytes that it takes of an extent."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT

    def pack(self) -> bytes:
        """Return the header's own bytes."""
        of_payload = self.num_tokens, self.payload_bytes, self.dtype.encode("ascii")
        fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, LAYOUT_VERSION, *of_payload, self.key, self.checksum)
        return fields + _CHECKSUM.pack(xxh3_64_intdigest(fields))

    @classmethod
    def parse(cls, content: bytes) -> "RecordHeader":
        """Read a header from a record's first bytes.

        Raises:
            BadRecordError: it is none, it is damaged, or it is of another version.
        """
        if len(content) < HEADER_BYTES or not content.startswith(MAGIC):
            raise BadRecordError("no record begins here")
        _, version, layout, num_tokens, payload_bytes, dtype, key, checksum = _FIELDS.unpack_from(content)
        if (version, layout) != (FORMAT_VERSION, LAYOUT_VERSION):
            raise BadRecordError(OTHER_VERSION)
        if _CHECKSUM.unpack_from(content, _FIELDS.size) != (xxh3_64_intdigest(content[: _FIELDS.size]),):
            raise BadRecordError("the header is damaged")
        return cls(key, num_tokens, payload_bytes, dtype.rstrip(b"\0").decode("ascii"), checksum)
