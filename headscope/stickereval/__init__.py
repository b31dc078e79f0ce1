"""StickerEval: scenes of stickers, graded by a bundled detector."""
