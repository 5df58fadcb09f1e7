"""Kinds of objects, by theme: each file draws a few, `CATEGORIES` names them all."""

from __future__ import annotations

from collections.abc import Mapping

from trellis_core.training.synthetic.categories.buildings import BUILDINGS
from trellis_core.training.synthetic.categories.craft import CRAFT
from trellis_core.training.synthetic.categories.figures import FIGURES
from trellis_core.training.synthetic.categories.furniture import FURNITURE
from trellis_core.training.synthetic.categories.kitchen import KITCHEN
from trellis_core.training.synthetic.categories.plants import PLANTS
from trellis_core.training.synthetic.categories.sketch import Category
from trellis_core.training.synthetic.categories.things import THINGS
from trellis_core.training.synthetic.categories.vehicles import VEHICLES

CATEGORIES: Mapping[str, Category] = {
    category.name: category
    for category in (*FURNITURE, *KITCHEN, *PLANTS, *BUILDINGS, *VEHICLES, *CRAFT, *FIGURES, *THINGS)
}
ROLES: tuple[str, ...] = (  # the order is part of every dataset on disk: only append
    "body", "seat", "legs", "back", "armrests", "footrest", "top", "foot", "shelf", "shade", "stand",
    "cushions", "blanket", "frame", "mattress", "pillows", "books", "inside", "handle", "stripe", "cap",
    "label", "handles", "lid", "spout", "icing", "wrapper", "cherry", "sprinkles", "leaves", "trunk",
    "fruits", "spots", "stem", "pot", "earth", "flower", "petals", "center", "leaf", "bite", "walls",
    "roof", "door", "windows", "chimney", "roofs", "gate", "flag", "tower", "blades", "wheels", "lights",
    "cab", "container", "tank", "load", "cabin", "wings", "tail", "cockpit", "engines", "rotor", "skids",
    "tip", "fins", "nozzle", "window", "hull", "deck", "sail", "mast", "funnel", "head", "arms", "eyes",
    "antenna", "nose", "hat", "scarf", "buttons", "stripes", "beak", "feet", "ears", "collar", "blade",
    "guard", "grip", "neck", "hole", "box", "ribbon", "band", "jewels",
)  # fmt: skip
