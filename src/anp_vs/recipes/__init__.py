"""What a training run does, as a configuration: its type, and the recipes of every row of the tables by name."""

from anp_vs.recipes.recipe import (
    LARGEST_FILE,
    MEASURED,
    Attack,
    Recipe,
    dump,
    from_dict,
    load,
    override,
    shown,
    to_dict,
)
from anp_vs.recipes.tables import RECIPES, find, prerequisite

__all__ = [
    "LARGEST_FILE",
    "MEASURED",
    "RECIPES",
    "Attack",
    "Recipe",
    "dump",
    "find",
    "from_dict",
    "load",
    "override",
    "prerequisite",
    "shown",
    "to_dict",
]
