"""What a format is to headscope: what it can, in which units it speaks, and what is handed over in either direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.policy.shape import ModelShape


@dataclass(frozen=True)
class Content:
    """What a format makes of a policy.

    Attributes:
        files: JSON values, or texts as they stand, by name in the folder; a format of one file has one, named "".
        nbytes: the most that the other tool allocates for one image with all its streams.
        lost: a sentence for each number of the policy that the format does not carry.
    """

    files: Mapping[str, Any]
    nbytes: int
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What the policy that is read is for; see `import_policy`.

    Attributes:
        shape: the model, or None.
        prefix: longest prompt in tokens, or None.
        limit: what has to hold the policy, or None.
    """

    shape: ModelShape | None
    prefix: int | None
    limit: Limit | None


@dataclass(frozen=True)
class Format:
    """A format of another tool.

    Attributes:
        name: by which it is chosen.
        title: what it is, for a list.
        units: whose heads it speaks of, and what its numbers count.
        folder: it is a folder of files, not one file.
        notes_inside: its readers leave a field of ours alone; else what it loses is written beside it.
        write: a policy and where it goes, for messages -> its content; None: only read.
        read: a path -> a policy; None: only written.
    """

    name: str
    title: str
    units: str
    folder: bool = False
    notes_inside: bool = False
    write: Callable[[Policy, Path], Content] | None = None
    read: Callable[[Path, Wanted], Policy] | None = None


@dataclass(frozen=True)
class Exported:
    """What `export_policy` wrote.

    Attributes:
        path: of the file or folder.
        notes_path: of the file that holds `notes`; the same as `path` where they are a field of it.
        notes: what a reader must know of it, as JSON values: units, the length that ratios are for, bytes, what is lost.
    """

    path: Path
    notes_path: Path
    notes: Mapping[str, Any] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """The notes as lines for a terminal."""
        counted, length = self.notes["bytes"], self.notes["length"]
        return [
            f"format   {self.notes['format']}",
            f"units    {self.notes['units']}",
            f"length   {length['tokens']} tokens a stream: {length['prefix']} of the prompt, {length['image']} of the image",
            f"bytes    at most {counted['at_most']:,} there, {counted['here']:,} here, {counted['plain']:,} with everything "
            f"kept; one image, {counted['streams']} streams, {counted['dtype']}",
            *(f"lost     {sentence}" for sentence in self.notes["lost"] or ["nothing"]),
        ]
