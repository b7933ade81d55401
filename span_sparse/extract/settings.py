"""What decides the features of a slide, apart from the slide and the encoder?

The store keeps all of it with every slide. A resumed run compares: the settings of the run must be those of the whole
store (else it is refused, since mixing them by accident spoils a study), the settings of one slide (the cohort table
may override how its tissue is found) those of that slide (else that slide is extracted again).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from span_sparse.errors import ConfigError
from span_sparse.grid import LatticeSpec
from span_sparse.store import SlideMetadata
from span_sparse.types import EncoderIdentity
from span_sparse.wsi import TissueSettings


@dataclass(frozen=True, slots=True)
class SlideTask:
    """A slide to extract.

    Attributes:
        slide_id: its id.
        case_id: its patient.
        path: its file.
        cohort_mpp: µm per pixel from the cohort table, None where that is silent.
        tissue: how its tissue is found.
    """

    slide_id: str
    case_id: str
    path: Path
    cohort_mpp: float | None
    tissue: TissueSettings


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many patches of a slide may be unreadable.

    Attributes:
        value: at least 1 or 0: a number of patches; else a share of the slide's patches.

    Raises:
        ConfigError: a negative value.

    >>> FailureLimit.parse("1%").allows(4, 500), FailureLimit.parse("1%").allows(6, 500)
    (True, False)
    >>> FailureLimit.parse("20").allows(20, 30)
    True
    """

    value: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.value < float("inf"):
            raise ConfigError(f"--max-failed-patches must be a number or share of at least 0, got {self.value:g}")

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """From `1%`, `0.01` (shares) or `20` (patches).

        Raises:
            ConfigError: something else.
        """
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            raise ConfigError(f"--max-failed-patches: expected a share such as 1% or a number, got {text!r}") from None
        return cls(value / 100 if text.endswith("%") else value)

    def allows(self, failed: int, num_patches: int) -> bool:
        """Whether a slide is good with so many failed patches among so many; never when all failed."""
        limit = self.value if self.value >= 1 else self.value * num_patches
        return failed <= limit and (failed == 0 or failed < num_patches)

    def __str__(self) -> str:
        return f"{self.value:g}" if self.value >= 1 or self.value == 0 else f"{self.value:.4g} of all"


@dataclass(frozen=True, slots=True)
class ExtractionSettings:
    """The same for all slides of a run.

    Attributes:
        spec: the lattice asked for.
        tissue: how tissue is found where the cohort table does not override it.
        min_tissue_fraction: least share of tissue of a patch, in (0, 1].
        batch_size: patches that a worker reads at a time; decides no number.
        failure_limit: unreadable patches that a slide may have.
        allow_upsampling: take slides that are coarser than the patches asked for.
    """

    spec: LatticeSpec
    tissue: TissueSettings = field(default_factory=TissueSettings)
    min_tissue_fraction: float = 0.5
    batch_size: int = 256
    failure_limit: FailureLimit = field(default_factory=FailureLimit)
    allow_upsampling: bool = False

    def provenance(self, tissue: TissueSettings) -> dict[str, Any]:
        """What the store keeps of them for a slide with these tissue settings."""
        ours, default = tissue.as_dict(), self.tissue.as_dict()
        return {
            "tissue": ours,
            "tissue_overrides": sorted(key for key in ours if ours[key] != default[key]),
            "min_tissue_fraction": self.min_tissue_fraction,
        }

    def differences_of_run(self, stored: SlideMetadata, encoder: EncoderIdentity) -> list[str]:
        """In what a slide of the store was made by another kind of run, as `name: ours != stored`.

        Tissue settings that the cohort table had overridden for that slide say nothing about its run.
        """
        overridden = stored.provenance.get("tissue_overrides", [])
        return self._differences(stored, encoder, self.tissue, ignored=overridden)

    def differences_of_slide(
        self, stored: SlideMetadata, encoder: EncoderIdentity, tissue: TissueSettings
    ) -> list[str]:
        """In what the stored slide differs from what this run would make of it; the file apart."""
        failed = stored.provenance.get("num_failed_patches", 0)
        allowed = self.failure_limit.allows(failed, stored.num_patches + failed)
        return self._differences(stored, encoder, tissue, ignored=()) + ([] if allowed else ["too many failed patches"])

    def _differences(
        self, stored: SlideMetadata, encoder: EncoderIdentity, tissue: TissueSettings, ignored: Any
    ) -> list[str]:
        theirs = TissueSettings().as_dict() | (stored.provenance.get("tissue") or {})  # older stores know fewer
        spec, stored_spec = self.spec, stored.lattice.spec
        pairs: list[tuple[str, Any, Any]] = [
            ("patch_size_px", spec.patch_size_px, stored_spec.patch_size_px),
            ("target_mpp", spec.target_mpp, stored_spec.target_mpp),
            ("min_tissue_fraction", self.min_tissue_fraction, stored.provenance.get("min_tissue_fraction")),
            *((f"tissue {key}", value, theirs[key]) for key, value in tissue.as_dict().items() if key not in ignored),
        ]
        return [f"encoder {text}" for text in encoder.differences(stored.encoder)] + [
            f"{name}: {ours!r} != {theirs!r}" for name, ours, theirs in pairs if ours != theirs
        ]
