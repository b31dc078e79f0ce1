"""Prompts: from a file, from the model's own folder, or the plain ones below."""

from __future__ import annotations

from pathlib import Path

from headscope.errors import DataError
from headscope.models import (
    bundled_folder,
    is_llamagen_folder,
    is_raster_folder,
    llamagen_prompts,
    raster_prompts,
    split_name,
    writes_text,
)
from headscope.prompt_files import read_asked

# For models that bring no prompts of their own; every other one calibrates, the rest judges.
PLAIN = (
    "a red apple on a wooden table",
    "a photo of a golden retriever in the snow",
    "a lighthouse on a cliff at sunset",
    "a bowl of ramen with an egg",
    "an astronaut riding a horse",
    "a blue vintage car parked in front of a brick house",
    "a watercolour of a mountain lake",
    "two cats sleeping on a sofa",
    "a steam train crossing a stone bridge",
    "a close-up of a sunflower with a bee",
    "a chess board seen from above",
    "a portrait of an old fisherman",
    "a glass of orange juice beside a newspaper",
    "a city street at night in the rain",
    "a red bicycle leaning against a yellow wall",
    "a wooden cabin in an autumn forest",
    "three balloons in a clear sky",
    "a slice of chocolate cake on a white plate",
    "a robot watering flowers",
    "a sailing boat on a calm sea",
    "a bookshelf with a small globe",
    "a penguin wearing a scarf",
    "a market stall with fruit and vegetables",
    "a green dragon made of origami paper",
    "a desert with cacti under a starry sky",
    "a cup of coffee with latte art",
    "a child flying a kite on the beach",
    "a medieval castle in the fog",
    "a parrot on a branch in the jungle",
    "a pair of brown leather boots",
    "a field of lavender with a farmhouse",
    "an owl in a tree by moonlight",
)

# For text models: stories and essays that flow on, and, one in four, a list of facts and
# a question that looks back at them; both halves of a split get such.
PLAIN_TEXT = (
    "The old lighthouse keeper climbed the stairs one last time. At the top",
    "Photosynthesis is the process by which plants",
    "Anna keeps 7 hens, Bela 12 geese, Carla 3 goats and Dora 25 sheep. Repeat the list, then say who keeps the goats:",
    'def read_table(path):\n    """Read a table from a file of comma-separated values."""\n',
    "In the spring of 1848 the river rose so high that",
    "The code of the red door is 4417, of the green door 9023, of the blue door 5561. Write down every door and its code:",
    "There are three reasons why bread needs time. First,",
    "The first law of thermodynamics says that",
    "Dear Professor Lindgren,\nthank you for your letter of",
    "Mountains are formed when",
    "Capitals: Peru Lima, Kenya Nairobi, Norway Oslo, Laos Vientiane, Cuba Havana. The same list, sorted by capital:",
    "Here is a simple recipe for tomato soup. You need",
    "Once there was a fox who could not tell a lie.",
    "Ivo was born in 1931, Mara in 1908, Leo in 1954 and Nina in 1926. From the oldest to the youngest, with years:",
    "To sort a list of numbers, one can",
    "The history of the bicycle begins with",
    "On the night train to Lisbon nobody slept, because",
    "A good map leaves things out. For example,",
    "Room 12: Weber, room 14: Okafor, room 17: Tanaka, room 21: Silva. Read the names aloud with their rooms, last one first:",
    "import math\n\nclass Circle:\n    def __init__(self, radius):\n",
    "The committee met on Tuesday to discuss the new bridge.",
    "Prices: pears 2.40, plums 3.10, figs 6.80, dates 5.50. Write a sentence about each fruit with its price:",
    "Whales sleep in a way that",
    "Learning to play the violin takes patience.",
    "When the snow melted, the children found",
    "Computers store numbers in binary. This means that",
    "Flight 208 leaves at 6:15, flight 377 at 9:40, flight 512 at 13:05. Tell each passenger when the flight leaves:",
    "The difference between weather and climate is",
    "She opened the box. Inside lay",
    "Keys: alpha = 31, beta = 86, gamma = 19, delta = 74, epsilon = 52. List the keys again with their values:",
    "The Roman road ran straight across",
    "Chess was played in India long before",
)


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a text file, of JSON lines or of a folder of text files, as `headscope.prompt_files` reads them.

    Raises:
        DataError: missing, unreadable or empty file, or a line without a prompt.
    """
    return [one.prompt for one in read_asked(path)]


def default_prompts(source: str) -> list[str]:
    """The prompts that a model folder brings (`prompts.txt`, those that headscope.toml names, or classes), else plain ones:
    captions, or for a text model beginnings."""
    source, settings = split_name(source)
    folder = bundled_folder(source) or Path(source)
    own = folder / "prompts.txt"
    if own.is_file():
        return read_prompts(own)
    if is_raster_folder(folder):
        return raster_prompts(folder) or [f"image {number}" for number in range(1, len(PLAIN) + 1)]
    if is_llamagen_folder(folder):
        return llamagen_prompts(folder, settings.get("features", "")) or list(PLAIN)
    return list(PLAIN_TEXT if writes_text(source) else PLAIN)


def numbered(prompts: list[str]) -> list[str]:
    """Prompts that only name images, told apart: the second `x` becomes `x (2)`."""
    found: list[str] = []
    for prompt in prompts:
        again = (f"{prompt} ({number})" for number in range(2, len(prompts) + 1))
        found.append(prompt if prompt not in found else next(name for name in again if name not in found))
    return found


def split(prompts: list[str], calibration: int, unseen: int) -> tuple[list[str], list[str]]:
    """Prompts to trace and search on, and prompts to judge by; none stands in both.

    Takes them alternately, so that a file sorted by subject gives both parts every subject.

    Args:
        prompts: texts; one that stands there twice counts once.
        calibration: most prompts to search on.
        unseen: most prompts to judge by.

    Raises:
        DataError: fewer than two different prompts.
    """
    different = list(dict.fromkeys(prompts))
    if len(different) < 2:
        raise DataError("Found one prompt, expected at least two: one to search on and one to judge by.")
    return different[0::2][:calibration], different[1::2][:unseen]
