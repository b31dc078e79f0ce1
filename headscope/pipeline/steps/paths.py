"""Where a search keeps its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headscope.policy import parse_share
from headscope.run_folder import RunFolder


@dataclass(frozen=True)
class SearchPaths:
    """Where a search keeps its files.

    Attributes:
        search: folder of the study.
        policy: the policy's file.
        tables: folder of methods.csv and kl_by_row.parquet.
    """

    search: Path
    policy: Path
    tables: Path

    @classmethod
    def of(cls, folder: RunFolder) -> SearchPaths:
        """Of the only search of a run: search/, policy.safetensors."""
        return cls(folder.search, folder.policy, folder.path)

    @classmethod
    def named(cls, folder: RunFolder, name: str) -> SearchPaths:
        """Of one of several: search/NAME/, policies/NAME.safetensors."""
        return cls(folder.search / name, folder.path / "policies" / f"{name}.safetensors", folder.search / name)

    @classmethod
    def at_share(cls, folder: RunFolder, keep: str) -> SearchPaths:
        """Of one share of several: search/keep-20/ and so on."""
        return cls.named(folder, f"keep-{100 * parse_share(keep):g}")  # 20% and 0.2 are the same share

    @property
    def alone(self) -> bool:
        """Whether it is the run's only search."""
        return self.tables != self.search
