"""The bundled model `stickers`: its weights and the recipe that made them.

Nothing in headscope imports this package; `headscope.models.registry` only asks for the folder `stickers/` beside this
file. The recipe runs from one command: `python -m headscope.reference --help`.
"""
