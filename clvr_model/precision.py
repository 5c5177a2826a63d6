"""The precision of features: its check against fp32, and how the fingerprint shows it. It needs no torch.

'fp32' is the reference and has the checkpoint's fingerprint. 'bf16' has it too after a passed precision
check, which shows that its features are comparable to fp32 ones; otherwise it has another fingerprint, and
the two cannot be mixed. The same holds for 'tf32', for which a passed check of 'bf16' counts as well, because
bfloat16 rounds more.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clvr_model.card import FINGERPRINT_LENGTH

Precision = Literal["fp32", "tf32", "bf16"]
"""tf32: float32, whose products a GPU may round to 10 bits of mantissa; elsewhere it is fp32."""
PrecisionOption = Literal["fp32", "tf32", "bf16", "auto"]

REDUCED: tuple[Precision, ...] = ("tf32", "bf16")

MIN_COSINE = 0.999
MIN_AGREEMENT = 0.98
MIN_IMAGES = 64


@dataclass(frozen=True, slots=True)
class PrecisionCheck:
    """Comparison of a precision with fp32 on sample images. Field names are keys of card.json.

    cosine_min: the lowest cosine between an image's two features. neighbour_agreement: share of images whose
    nearest other image (L2 among fp32 features) is the same for their feature at that precision.
    """

    cosine_min: float
    neighbour_agreement: float
    pictures: int
    precision: Precision = "bf16"

    def covers(self, precision: Precision) -> bool:
        """Whether the check shows that features at a precision are comparable to fp32 ones."""
        return precision == "fp32" or (self.passed and self.precision in (precision, "bf16"))

    @property
    def passed(self) -> bool:
        """Whether the check reaches MIN_COSINE, MIN_AGREEMENT and MIN_IMAGES."""
        return (
            self.cosine_min >= MIN_COSINE
            and self.neighbour_agreement >= MIN_AGREEMENT
            and self.pictures >= MIN_IMAGES
        )

    @classmethod
    def of_card(cls, guard: Mapping[str, Any] | None) -> "PrecisionCheck | None":
        """Read the check of a model card, if it has one (a dict made by `dataclasses.asdict`)."""
        return cls(**guard) if guard else None


def fingerprints_of(fingerprint: str) -> tuple[str, ...]:
    """Return the fingerprints that features by a checkpoint may have: at full precision, and reduced."""
    return fingerprint, *(reduced_fingerprint(fingerprint, precision) for precision in REDUCED)


def reduced_fingerprint(fingerprint: str, precision: Precision) -> str:
    """Return the fingerprint of features at a reduced precision without a passed check."""
    return hashlib.sha256(f"{fingerprint}:{precision}".encode()).hexdigest()[:FINGERPRINT_LENGTH]
