"""How the bundled models were made: images, image tokenizer, transformer, detector.

Nothing in headscope imports this package, and the wheel leaves it out. It runs as `python -m headscope.recipe`;
`docs/recipe.md` says how.
"""
