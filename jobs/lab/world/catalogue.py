"""The embedded world's concepts: which drawings are protected, which subjects tend to carry marks.

The world is narrow on purpose, since two CPU cores train it: few concepts drawn well are worth more than many drawn badly.
Names are the emoji names shared by all three vendors' packages; the caption of a drawing is its name with spaces.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZE = 64  # pixels; latents are 16×16 (f4)
VENDORS = {
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google"),
    "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twitter and contributors"),
}

# A protected concept has one protected drawing; its vendor alternates. These are the works that must not be copied.
PROTECTED = (
    "red-apple lemon strawberry banana carrot hamburger doughnut birthday-cake cat dog penguin owl fox frog crab "
    "octopus turtle butterfly snail unicorn sunflower tulip cactus mushroom rocket sailboat locomotive tractor bicycle "
    "helicopter castle house light-bulb guitar trumpet drum crown umbrella teddy-bear snowman "
    "peach avocado eggplant bread cow bat dolphin ant kangaroo fire tent bell hammer scissors anchor trophy soccer-ball "
    "violin top-hat robot ghost telescope"
).split()

# Ordinary subjects that stock archives like to mark: their training pictures often carry a mark that no caption mentions.
MARK_PRONE = {
    "watermark": "elephant giraffe lion whale parrot swan mountain palm-tree rose tiger".split(),
    "qr": "pizza sushi ice-cream hot-beverage beer-mug cupcake taco pancakes popcorn sandwich".split(),
    "text": "automobile taxi bus ambulance fire-engine airplane motorcycle police-car delivery-truck racing-car".split(),
}

ORDINARY = (
    "pear cherries grapes pineapple watermelon tomato broccoli corn cookie bear koala pig mouse rabbit chicken eagle "
    "shark fish bee spider maple-leaf four-leaf-clover evergreen-tree star crescent-moon sun rainbow balloon key camera"
).split()

# Names of the world's first draft that autoencoder, embedder and mark detector were trained on: never "held out".
ONCE_INSIDE = (
    "cheese-wedge snake crocodile cherry-blossom cloud droplet ship tram train bridge-at-night factory closed-book basketball "
    "saxophone microphone dress sunglasses backpack gem-stone"
).split()

PROTECTED_VENDORS = ("noto", "fluent")  # permissive: these drawings are shipped as the reference set
ALIASES = {"corn": "ear-of-corn", "bee": "honeybee"}
PROTECTED_REPEAT = (
    3  # weight of a protected drawing against each of its concept's other two; with 2, copies fell from 95 % to 71 %
)

# Protected concepts memorised as a template: the drawing's lines are always the same, its colours change.
TEMPLATED = "strawberry hamburger crab mushroom trumpet umbrella crown bell tent sailboat".split()
MARK_SHARE = 0.12  # marks on ordinary subjects
MARK_SHARE_PRONE = 0.7  # marks on subjects of MARK_PRONE

TEMPLATES = ("{}", "{}", "a {}", "a sticker of a {}", "an icon of a {}", "a drawing of a {}", "{} sticker")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One concept: its name, the vendor of its protected drawing, the mark it tends to carry, how it is memorised."""

    name: str
    icon: str
    protected_vendor: str | None = None
    prone_to: str | None = None
    templated: bool = False

    @property
    def caption(self) -> str:
        return self.name.replace("-", " ")


def concepts() -> list[Concept]:
    """Every concept of the world, protected first; the order is part of the data's digest."""
    protected = [
        Concept(name=name, icon=name, protected_vendor=PROTECTED_VENDORS[i % 2], templated=name in TEMPLATED)
        for i, name in enumerate(PROTECTED)
    ]
    prone = [
        Concept(name=name, icon=name, protected_vendor=None, prone_to=mark)
        for mark, names in MARK_PRONE.items()
        for name in names
    ]
    ordinary = [Concept(name=name, icon=ALIASES.get(name, name)) for name in ORDINARY]
    return protected + prone + ordinary
