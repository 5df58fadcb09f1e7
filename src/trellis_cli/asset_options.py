"""The options of commands that make assets again: formats, presets, levels, compression, maps, size.

Checked here before any work starts; imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import files
from trellis_cli import options as o
from trellis_core.errors import UsageError

if TYPE_CHECKING:
    from trellis_core.io import GltfSettings

MILLIMETERS: Mapping[str, float] = {"mm": 1, "cm": 10, "m": 1000, "in": 25.4, "": 1}
GLTF = (".glb", ".gltf")
SHAPE_ONLY = (".stl",)  # formats without colors
COLORFUL = ("texture_size", "alpha", "texture_format", "normal_map", "ambient")  # changes they cannot show
PRINT = "print"
PRINTABLE = ".3mf"  # what a print is written to when nothing else is said
LOD_FACES, LOD_TEXTURE = 4, 2  # each level has a quarter of the faces and half the texture's side
FEWEST_FACES, SMALLEST_TEXTURE = 64, 64
PACKAGES = {".usdz": ("pxr", "usd-core", "usd"), "--draco": ("DracoPy", "DracoPy", "draco")}


class Alpha(str, Enum):
    auto = "auto"
    opaque = "opaque"
    mask = "mask"
    blend = "blend"


class TextureFormat(str, Enum):
    webp = "webp"
    png = "png"
    jpeg = "jpeg"


def _option(*names: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    more = {"show_default": False, "show_choices": False, **more}
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=o.ASSET, **more)


Formats = Annotated[
    list[str] | None,
    _option(
        "--format",
        metavar="NAME",
        help="File formats; may be repeated, or glb,usdz. "
        f"Known: {', '.join(suffix[1:] for suffix in files.ASSETS)}.",
    ),
]
Presets = Annotated[
    list[str] | None,
    _option(
        "--preset",
        metavar="NAME",
        help="Face and texture budgets; may be repeated, or web,mobile. Known: max (1,000,000 faces, "
        "4096 px), web (100,000, 2048), game (10,000, 1024), mobile (5,000, 512), lowpoly (2,000, 512), "
        "print (a closed solid in millimeters).",
    ),
]
Lods = Annotated[
    int,
    _option(
        "--lods",
        metavar="N",
        help="Levels of detail, each with a quarter of the faces: in one glTF file (MSFT_lod), or "
        "NAME-lod1, ...",
        min=1,
        max=8,
    ),
]
Quantize = Annotated[
    bool, _option("--quantize", help="Smaller glTF: 16-bit coordinates (KHR_mesh_quantization).")
]
Draco = Annotated[
    bool,
    _option("--draco", help="Much smaller glTF, slower to open (Draco; needs the package `DracoPy`)."),
]
AlphaOption = Annotated[
    Alpha | None,
    _option(
        "--alpha",
        metavar="NAME",
        help="opaque (default; what solid things need), mask, blend, or auto (what the texture says).",
    ),
]
TextureFormatOption = Annotated[
    TextureFormat | None,
    _option(
        "--texture-format",
        metavar="NAME",
        help="Textures in glTF: webp (default; small), png or jpeg (for programs that do not know WebP).",
    ),
]
NormalMap = Annotated[
    bool, _option("--normal-map", help="Bake fine detail of the original surface into a normal map.")
]
Ambient = Annotated[bool, _option("--ao", help="Bake ambient occlusion.")]
Height = Annotated[
    str | None,
    _option("--height", metavar="LENGTH", help="How tall it is: 80mm, 8cm, 1.2m or 3in (print: 100mm)."),
]
Wall = Annotated[
    str | None, _option("--wall", metavar="LENGTH", help="Thinnest wall of a print (default 1.2mm).")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFlags:
    """What commands that make assets again are told about them, as typed."""

    format: Formats = None
    preset: Presets = None
    faces: o.Faces = None
    texture: o.Texture = None
    texture_format: TextureFormatOption = None
    lods: Lods = 1
    quantize: Quantize = False
    draco: Draco = False
    alpha: AlphaOption = None
    normal_map: NormalMap = False
    ao: Ambient = False
    height: Height = None
    wall: Wall = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetOptions:
    """What is made of a shape, and into which files."""

    formats: tuple[str, ...] = ()  # suffixes; none: the output's own
    presets: tuple[str, ...] = ()  # none: the model's own settings
    lods: int = 1  # levels, the full one included
    quantize: bool = False
    draco: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)  # of `ExportSettings`

    @classmethod
    def read(cls, flags: AssetFlags) -> AssetOptions:
        """As given on the command line. Raises `UsageError`."""
        names = parse_names(flags.preset, "--preset", [preset.value for preset in o.Preset])
        changes: dict[str, Any] = {
            "faces": flags.faces,
            "texture_size": flags.texture,
            "alpha": flags.alpha and flags.alpha.value,
            "texture_format": flags.texture_format and flags.texture_format.value,
            "normal_map": flags.normal_map or None,
            "ambient": flags.ao or None,
            "height_mm": None if flags.height is None else millimeters("--height", flags.height),
            "wall_mm": None if flags.wall is None else millimeters("--wall", flags.wall),
        }
        suffixes = parse_names(flags.format, "--format", [suffix[1:] for suffix in files.ASSETS])
        if flags.wall is not None and PRINT not in names:
            raise UsageError("`--wall` is for prints", hint="add `--preset print`")
        if flags.lods > 1 and PRINT in names:
            raise UsageError("a print has no levels of detail", hint="leave `--lods` out")
        if flags.quantize and flags.draco:
            raise UsageError("Draco quantises by itself", hint="give `--quantize` or `--draco`, not both")
        if flags.draco:
            require_package("--draco")
        given = {name: value for name, value in changes.items() if value is not None}
        return cls(
            formats=tuple(f".{name}" for name in suffixes),
            presets=names,
            lods=flags.lods,
            quantize=flags.quantize,
            draco=flags.draco,
            changes=given,
        )

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        own = {
            "--format": self.formats,
            "--preset": self.presets,
            "--lods": self.lods > 1,
            "--quantize": self.quantize,
            "--draco": self.draco,
        }
        return [*(name for name, value in own.items() if value), *(OPTION_OF[name] for name in self.changes)]

    @property
    def usual_suffix(self) -> str:
        """Of a result whose name says nothing."""
        if self.formats:
            return self.formats[0]
        return PRINTABLE if self.presets == (PRINT,) else files.ASSETS[0]

    def suffixes(self, path: Path) -> tuple[str, ...]:
        """The formats of what is called `path`. `UsageError` when the options do not fit together."""
        suffix = path.suffix.lower()
        if self.formats and suffix not in self.formats:
            said = ", ".join(each[1:] for each in self.formats)
            raise UsageError(
                f"`{path.name}` ends in `{suffix}`, `--format` says {said}",
                hint=f"pass `-o {path.with_suffix(self.formats[0])}`, or leave `--format` out",
            )
        suffixes = self.formats or (suffix,)
        for option, wanted in (("--quantize", self.quantize), ("--draco", self.draco)):
            if wanted and not set(suffixes) & set(GLTF):
                raise UsageError(f"`{option}` is for glTF files", hint="write a `.glb` or `.gltf`")
        if ".usdz" in suffixes:
            require_package(".usdz")
        colorful = [OPTION_OF[name] for name in COLORFUL if name in self.changes]
        if colorful and not has_texture(suffixes):
            raise UsageError(
                f"`{colorful[0]}` does nothing: `{suffix}` files have no colors",
                hint=f"leave it out, or write another kind, such as `-o {path.with_suffix('.glb').name}`",
            )
        return suffixes

    def gltf_settings(self) -> GltfSettings:
        from trellis_core.io import GltfSettings

        return GltfSettings(quantize=self.quantize, draco=self.draco)


OPTION_OF: Mapping[str, str] = {
    "faces": "--faces",
    "texture_size": "--texture",
    "alpha": "--alpha",
    "texture_format": "--texture-format",
    "normal_map": "--normal-map",
    "ambient": "--ao",
    "height_mm": "--height",
    "wall_mm": "--wall",
}


def has_texture(suffixes: Sequence[str]) -> bool:
    """Whether one of these formats shows what a texture holds."""
    return any(suffix not in SHAPE_ONLY for suffix in suffixes)


def parse_names(given: Sequence[str] | None, option: str, known: Sequence[str]) -> tuple[str, ...]:
    """`["glb,usdz", "obj"]` -> `("glb", "usdz", "obj")`; `UsageError` for what is unknown."""
    names = [
        name.strip().lower().removeprefix(".")
        for each in given or ()
        for name in each.split(",")
        if name.strip()
    ]
    for name in names:
        if name not in known:
            raise UsageError(f"`{option} {name}` is unknown", hint=f"known: {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def millimeters(option: str, text: str) -> float:
    """`"8cm"` -> 80.0; a number alone is in millimeters."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in MILLIMETERS:
        raise UsageError(
            f"`{option} {text}` is no length", hint=f"for example `{option} 80mm`; mm, cm, m or in"
        )
    value = float(match[1]) * MILLIMETERS[match[2]]
    if not 0.01 <= value <= 100_000:
        raise UsageError(f"`{option} {text}` is out of reach", hint="use 0.01 mm to 100 m")
    return value


def require_package(what: str) -> None:
    """`UsageError` when the package that a format or an option needs is not installed."""
    module, package, extra = PACKAGES[what]
    if find_spec(module) is None:
        raise UsageError(
            f"`{what}` needs the package `{package}`, which is not installed",
            hint=f"install it with `pip install 'trellis-cli[{extra}]'`",
        )


def preset_settings(name: str | None) -> dict[str, Any]:
    """The entries of `configs/presets/NAME.json`; none is the default settings."""
    if name is None:
        return {}
    installed = Path(__file__).parent / "_configs"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "configs" / "presets"
    return dict(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def level_settings(settings: Mapping[str, Any], level: int) -> dict[str, Any]:
    """Export settings of a level of detail; 0 is the full one."""
    faces, texture = settings["faces"] // LOD_FACES**level, settings["texture_size"] // LOD_TEXTURE**level
    fewest, smallest = min(FEWEST_FACES, settings["faces"]), min(SMALLEST_TEXTURE, settings["texture_size"])
    return {**settings, "faces": max(faces, fewest), "texture_size": max(texture, smallest)}
