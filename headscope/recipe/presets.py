"""Sizes of the bundled model: what `--preset quick`, `scenes` and `full` build and train."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headscope.errors import DataError

STYLES = ("emojione", "firefox", "flat", "fluent", "noto", "twemoji")

# Pale enough that every sticker stands out; the word is what a prompt says ("..., blue background").
BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (222, 222, 224),
    "cream": (250, 240, 215),
    "blue": (205, 228, 250),
    "green": (210, 240, 212),
    "pink": (252, 216, 226),
    "yellow": (253, 244, 170),
    "purple": (228, 214, 246),
}

_EVERYDAY = """
red apple; green apple; pear; tangerine; lemon; banana; watermelon; grapes; strawberry; cherries; peach; pineapple;
kiwi fruit; tomato; eggplant; avocado; broccoli; carrot; ear of corn; hot pepper; mushroom; onion; bread; croissant;
pretzel; cheese wedge; egg; hamburger; french fries; pizza; hot dog; doughnut; cookie; birthday cake; cupcake; lollipop;
candy; ice cream; soft ice cream; hot beverage; beer mug; wine glass; cocktail glass; glass of milk; dog face; cat face;
mouse face; rabbit face; fox; bear; panda; koala; tiger face; lion; cow face; pig face; frog; monkey face; chicken;
penguin; baby chick; owl; unicorn; honeybee; butterfly; lady beetle; snail; spider; turtle; octopus; crab; fish;
tropical fish; spouting whale; dolphin; elephant; sunflower; tulip; rose; cherry blossom; cactus; palm tree;
evergreen tree; deciduous tree; four leaf clover; maple leaf; sun; full moon; crescent moon; star; cloud;
sun behind cloud; cloud with rain; rainbow; snowflake; snowman; fire; droplet; umbrella; high voltage; soccer ball;
basketball; baseball; tennis; volleyball; american football; trophy; bullseye; automobile; taxi; bus; fire engine;
police car; bicycle; airplane; rocket; sailboat; helicopter; tractor; house; tent; christmas tree; balloon;
wrapped gift; bell; key; locked; hammer; scissors; pencil; books; envelope; camera; television; laptop; mobile phone;
alarm clock; hourglass done; magnet; guitar; drum; crown; top hat; glasses; t shirt; jeans; dress; running shoe; socks;
ring; red heart; blue heart; yellow heart; broken heart; skull; ghost; alien; robot; pile of poo; jack o lantern;
grinning face; smiling face with sunglasses; smiling face with heart eyes; crying face; sleeping face; angry face
"""
EVERYDAY = tuple(name.strip() for name in _EVERYDAY.replace("\n", " ").split(";"))


@dataclass(frozen=True)
class Preset:
    """One size of the recipe; lengths are counted in images, so the same seed gives the same schedule anywhere."""

    name: str
    pixels: int  # side of the square image
    everyday: bool  # only the everyday concepts, or all
    codes: int  # size of the codebook
    vq_base: int  # channels of the VQ model at full resolution (GroupNorm wants multiples of 32)
    hidden: int
    layers: int
    heads: int
    intermediate: int
    vq_images: int
    vq_batch: int
    vq_rate: float
    images: int
    batch: int
    rate: float  # of Muon for matrices; AdamW for the rest runs at `adam_rate`
    adam_rate: float
    scenes: float = 0.0  # share of the images that are scenes of the 48 classes

    @property
    def grid(self) -> int:
        """Rows and columns of image tokens: the VQ model shrinks by 4."""
        return self.pixels // 4


PRESETS = {
    "quick": Preset("quick", 64, True, 512, 64, 192, 8, 8, 512, 20_000, 8, 0.02, 60_000, 24, 0.02, 2e-3),
    # The same weights as `quick` on a larger grid, to go on from there with --warm-start on a CPU.
    "scenes": Preset("scenes", 96, True, 512, 64, 192, 8, 8, 512, 20_000, 8, 0.02, 24_000, 24, 0.01, 1e-3, 0.85),
    "full": Preset("full", 96, False, 1024, 64, 256, 8, 8, 768, 400_000, 64, 0.02, 3_000_000, 256, 0.02, 2e-3, 0.6),
}

BUNDLED = {"stickers": "quick", "stickers-scenes": "scenes"}  # which sizes the bundled models have


def for_gpu(model: str, preset: str | None = None, batch: int | None = None) -> Preset:
    """Sizes of a bundled model, or of a preset for the same images, with batches and rates for a GPU and a fresh start.

    Raises:
        DataError: another model or no such preset, or images of another size or kind.
    """
    if model not in BUNDLED:
        raise DataError(f"{model}: `full` trains {' or '.join(BUNDLED)}.")
    name = preset or BUNDLED[model]
    if name not in PRESETS:
        raise DataError(f"preset {name}: unknown; known presets are {', '.join(PRESETS)}.")
    own, size = PRESETS[BUNDLED[model]], PRESETS[name]
    if (size.pixels, size.scenes > 0) != (own.pixels, own.scenes > 0):
        raise DataError(f"preset {name}: its images are not those of {model}; take {BUNDLED[model]} or none.")
    large = PRESETS["full"]
    return replace(size, vq_batch=large.vq_batch, batch=batch or large.batch, rate=large.rate, adam_rate=large.adam_rate)


def tiny(size: Preset) -> Preset:
    """The same images, and as little of a model as there can be."""
    return replace(
        size, codes=16, vq_base=32, hidden=16, layers=1, heads=2, intermediate=16, vq_batch=2, batch=4, name=f"tiny-{size.name}"
    )  # fmt: skip
