"""What `trellis inspect` and `trellis compare` say about files, in words.

Facts go in as plain dictionaries, lines of text come out. Nothing here imports torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from trellis_cli import app

LABEL = 12  # columns
MOST = 8  # materials that are listed
MUCH_DARK = 0.05  # of the area
REPAIRED = ("boundary_edges", "mixed_edges", "double_shells", "degenerate_faces", "duplicate_faces")
SCALES: Mapping[str, tuple[tuple[float, str, float], ...]] = {  # unit -> (from, shown as, times)
    "m": ((0.001, "m", 1.0), (0.0, "mm", 1000.0)),
}
SECTIONS = ("structure", "shape", "texture", "latents")  # of samplers, in the order of a run


def line(label: str, text: str) -> str:
    return f"{label:<{LABEL}}{text}".rstrip()


def split(text: str) -> tuple[str, str]:
    """Label and text of a `line`."""
    return text[:LABEL].strip(), text[LABEL:]


def bytes_of(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def length(value: float, unit: str | None) -> str:
    """`0.53 m`, `12 mm`, or `3.2` where the format has no unit."""
    for least, shown, times in SCALES.get(unit or "", ((0.0, unit or "", 1.0),)):
        if abs(value) >= least or value == 0:
            return f"{value * times:.4g} {shown}".rstrip()
    return f"{value:.4g}"


def count(number: int, thing: str, several: str = "") -> str:
    return f"{number:,} {thing if number == 1 else several or thing + 's'}"


def share(value: float) -> str:
    """A share in per cent; never 0 for what is there, never 100 for what is not all."""
    if value <= 0 or value >= 1:
        return f"{value:.0%}"
    percent = 100 * value
    if percent < 0.1:
        return "< 0.1%"
    return f"{percent:.1f}%" if percent < 10 or percent > 99 else f"{percent:.0f}%"


# --- meshes --------------------------------------------------------------------------------------------


def mesh_lines(path: Path, facts: Mapping[str, Any]) -> list[str]:
    """The report of a mesh file, from `facts` as `inspect --json` prints them."""
    m, file = facts["metrics"], facts["file"]
    lines = [path.name, line("file", f"{file['format']}, {bytes_of(file['bytes'])}")]
    lines += [line("size", size_text(facts))] if m.get("finite") and "area" in m else []
    parts = f" in {facts['parts']} parts" if facts["parts"] > 1 else ""
    lines.append(line("mesh", f"{count(m['faces'], 'face')}, {m['vertices']:,} vertices{parts}"))
    if file.get("levels_of_detail"):
        counts = ", ".join(f"{faces:,}" for faces in file["levels_of_detail"])
        lines.append(line("levels", f"{counts} faces; the first is measured"))
    if "watertight" in m:
        lines += [line("surface", surface_text(m, facts)), line("pieces", pieces_text(m))]
    if "mixed_edges" in m:
        lines.append(line("winding", winding_text(m)))
    if "slivers" in m:
        lines.append(line("triangles", triangles_text(m)))
    if "uv_charts" in m:
        lines += [line("uv", text) for text in uv_texts(m, facts)]
    else:
        lines.append(line("uv", "no texture coordinates"))
    lines += [line("material", text) for text in material_texts(file)]
    lines += [line("texture", texture_text(texture)) for texture in file.get("textures", ())]
    if file.get("extensions"):
        lines.append(line("extensions", ", ".join(file["extensions"])))
    for name in ("animations", "skins", "cameras"):
        if file.get(name):
            lines.append(line("", f"has {file[name]} {name}, which are not looked at"))
    lines += [line("made by", text) for text in origin_texts(file)]
    lines += [line("missing", f"`{name}`, which the file names") for name in file.get("missing", ())]
    return [*lines, "", *verdict_lines(facts)]


def size_text(facts: Mapping[str, Any]) -> str:
    unit = facts["unit"]
    sides = " x ".join(length(side, unit) for side in facts["size"])
    said = {True: " (by custom: the format does not say)", False: ""}[
        bool(facts["file"].get("unit_is_custom"))
    ]
    if unit is None:
        said = " (the format has no unit)"
    low, high = ("(" + ", ".join(f"{v:.4g}" for v in facts["bounds"][end]) + ")" for end in ("low", "high"))
    return f"{sides}, width x depth x height{said}; from {low} to {high}, z up"


def surface_text(m: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    if m["watertight"]:
        volume = abs(m.get("volume", 0.0)) * max(facts["size"]) ** 3
        text = f"watertight, volume {volume:.4g}{' ' + facts['unit'] + '³' if facts['unit'] else ''}"
        if m.get("handles", 0) > 0:
            text += f", {count(m['handles'], 'tunnel')}"
        return text
    if m["closed"]:
        places = count(m["non_manifold_edges"], "edge")
        return f"closed, without open borders; it touches itself along {places} (four or more faces meet)"
    found = []
    if m["boundary_edges"]:
        longest = length(m["longest_border"] * max(facts["size"]), facts["unit"])
        borders = count(m["borders"], "open border")
        found.append(f"{borders} with {count(m['boundary_edges'], 'edge')}, the longest {longest} around")
    if m["non_manifold_edges"]:
        found.append(f"{count(m['non_manifold_edges'], 'edge')} with more than two faces")
    return "not watertight: " + "; ".join(found)


def pieces_text(m: Mapping[str, Any]) -> str:
    text = "one piece"
    if m["components"] > 1:
        text = f"{m['components']:,}, the largest has {share(m['largest_component_share'])} of the area"
    hidden = m.get("hidden_pieces", 0)
    if hidden:
        inside = count(hidden, "piece")
        text += f"; {inside} cannot be seen from outside ({share(m['hidden_area_share'])} of the area)"
    elif m.get("dark_area_share", 0) > MUCH_DARK:
        text += f"; about {share(m['dark_area_share'])} of the surface cannot be seen from outside"
    if m.get("double_shells"):
        text += f", {count(m['double_shells'], 'double shell')}"
    return text


def winding_text(m: Mapping[str, Any]) -> str:
    if m["mixed_edges"]:
        turned = f"{count(m['turned_faces'], 'face')} turned over"
        if not m["orientable"]:
            turned = "a strip of faces closes on itself with a twist, so that it has one side only"
        return f"mixed: {count(m['mixed_edges'], 'edge')} between opposed faces; {turned}"
    if m["watertight"]:
        return "consistent, inside out" if m["back_face_share"] > 0.5 else "consistent, outward"
    return f"consistent; {share(m['back_face_share'])} of what is seen from outside are back faces"


def triangles_text(m: Mapping[str, Any]) -> str:
    return (
        f"{m['degenerate_faces']:,} without area, {m['duplicate_faces']:,} repeated, "
        f"{count(m['slivers'], 'sliver')} ({share(m['sliver_share'])}), "
        f"{count(m['extreme_slivers'], 'needle')} ({share(m['extreme_sliver_share'])})"
    )


def uv_texts(m: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    first = f"{count(m['uv_charts'], 'chart')}"
    if "uv_coverage" in m:
        first += f", {share(m['uv_coverage'])} of the texture used, {share(m['uv_overlap'])} of it twice"
    second = f"stretch {m['uv_stretch']:.2f} (1 is none, worst 1% of the area {m['uv_stretch_p99']:.2f})"
    if "texels_per_side" in m:
        longest = length(max(facts["size"]), facts["unit"])
        deviation = 100 * (2 ** m["uv_density_deviation"] - 1)
        second += f", {m['texels_per_side']:,.0f} texels on {longest}, give or take {deviation:.0f}%"
    wrong = [
        count(m[name], text.split("|")[0], text.split("|")[1])
        for name, text in (
            ("uv_flips", "mirrored face|mirrored faces"),
            ("uv_outside", "coordinate outside [0, 1]|coordinates outside [0, 1]"),
        )
        if m.get(name)
    ]
    return [first, second, *([", ".join(wrong)] if wrong else [])]


def material_texts(file: Mapping[str, Any]) -> list[str]:
    materials = file.get("materials")
    if not materials:
        return ["vertex colors"] if file.get("vertex_colors") else ["none"]
    texts: dict[str, int] = {}
    for material in materials:
        sides = ", double-sided" if material["double_sided"] else ""
        name = f"`{material['name']}`: " if material["name"] else ""
        text = f"{name}{material['alpha_mode'].lower()}{sides}"
        texts[text] = texts.get(text, 0) + 1
    shown = [f"{text} ({times} times)" if times > 1 else text for text, times in texts.items()]
    return shown[:MOST] + ([f"and {len(shown) - MOST} more"] if len(shown) > MOST else [])


def texture_text(texture: Mapping[str, Any]) -> str:
    use = ", ".join(texture["use"]) or "unused"
    if texture["width"] is None:
        return f"{use}: {texture['kind'] or 'unreadable'}, {bytes_of(texture['bytes'])}"
    size = f"{texture['width']} x {texture['height']}"
    return f"{use}: {size} {texture['kind'].upper()}, {bytes_of(texture['bytes'])}"


def origin_texts(file: Mapping[str, Any]) -> list[str]:
    """Who wrote the file, and what a file of ours says about the run behind it."""
    extras = file.get("extras")
    texts = [str(file["generator"])] if file.get("generator") else []
    if not isinstance(extras, Mapping):
        return texts or ["unknown"]
    return [*texts[:1], *run_texts(extras)] if texts else run_texts(extras) or ["unknown"]


def run_texts(info: Mapping[str, Any]) -> list[str]:
    """Model, seed and settings of a run, as assets and bundles keep them."""
    facts = []
    model = info.get("model")
    if isinstance(model, Mapping) and model.get("name"):
        facts.append(f"model {model['name']}")
    for name, word in (("seed", "seed"), ("pipeline_type", "pipeline"), ("resolution", "voxels")):
        if info.get(name) is not None:
            facts.append(f"{word} {info[name]}")
    texts = [", ".join(facts)] if facts else []
    condition = info.get("condition")
    if isinstance(condition, Mapping):
        said = condition.get("prompt") or condition.get("kind")
        texts += (
            [f'from the prompt "{said}"' if condition.get("prompt") else f"from a {said}"] if said else []
        )
    samplers = info.get("samplers")
    if isinstance(samplers, Mapping):
        shown = [
            f"{stage} {values.get('steps')} steps, guidance {values.get('guidance_scale')}"
            for stage, values in sorted(samplers.items(), key=lambda item: order_of(item[0]))
            if isinstance(values, Mapping)
        ]
        texts += ["; ".join(shown)] if shown else []
    edit = info.get("edit")
    if edit:
        texts.append("edited")
    export = info.get("export")
    if isinstance(export, Mapping) and export.get("faces"):
        texture = f", {export.get('texture_size')} px texture" if export.get("textured", True) else ""
        texts.append(f"exported with {export['faces']:,} faces{texture}")
    quality = info.get("quality")
    if isinstance(quality, Mapping) and "passed" in quality:
        verdict = "passed" if quality["passed"] else f"failed: {' '.join(quality.get('problems', ()))}"
        texts.append(f"quality check when it was made: {verdict}")
    return texts


def order_of(stage: str) -> int:
    return SECTIONS.index(stage) if stage in SECTIONS else len(SECTIONS)


def verdict_lines(facts: Mapping[str, Any]) -> list[str]:
    if facts["passed"]:
        lines = [line("verdict", "passed the quality check")]
    else:
        lines = [line("verdict", f"failed the quality check: {count(len(facts['problems']), 'problem')}")]
        lines += [line("", f"- {problem}") for problem in facts["problems"]]
    return lines + [line("try", f"`{command}`, {why}") for command, why in facts["advice"]]


def advice_of(path: Path, m: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Commands of this program that would help, and what they do."""
    source = quoted(path)
    advice = []
    broken = any(m.get(name) for name in REPAIRED)
    if broken and has_option("convert", "--repair"):
        better = shlex.quote(f"{path.stem}-repaired.glb")
        advice.append(
            (f"trellis convert {source} --repair -o {better}", "which closes small holes and cleans up")
        )
    if m.get("boundary_edges") and has_option("convert", "--height"):
        solid = shlex.quote(f"{path.stem}.3mf")
        command = f"trellis convert {source} --preset print --height 80mm -o {solid}"
        advice.append((command, "for a watertight solid to print"))
    if m.get("faces", 0) > 1_000_000 and has_option("convert", "--faces"):
        smaller = shlex.quote(f"{path.stem}-small.glb")
        advice.append((f"trellis convert {source} --faces 100000 -o {smaller}", "which makes it lighter"))
    return advice


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def has_option(command: str, option: str) -> bool:
    """Whether this program has `trellis COMMAND OPTION`."""
    if command not in app.COMMANDS:
        return False
    import typer

    module = import_module(f"trellis_cli.commands.{app.COMMANDS[command].module}")
    parameters = typer.main.get_command(module.app).params
    return any(option in parameter.opts for parameter in parameters)


# --- what is no mesh -----------------------------------------------------------------------------------


def bundle_lines(path: Path, facts: Mapping[str, Any]) -> list[str]:
    """A saved run."""
    info = facts["info"]
    lines = [path.name, line("file", f"a saved run, {bytes_of(facts['bytes'])}")]
    lines += [line("made by", text) for text in run_texts(info)]
    if info.get("num_samples", 1) > 1:
        lines.append(line("samples", str(info["num_samples"])))
    for name, tensor in facts["tensors"].items():
        lines.append(line("tensor", f"{name}: {tensor['dtype']} {tensor['shape']}"))
    return [*lines, "", *[line("try", f"`{command}`, {why}") for command, why in facts["advice"]]]


def cloud_lines(path: Path, facts: Mapping[str, Any]) -> list[str]:
    """Gaussians, a radiance field or voxels."""
    lines = [path.name, line("file", f"{facts['kind']}, {bytes_of(facts['bytes'])}")]
    lines.append(line("count", f"{facts['count']:,}{facts['what']}"))
    low, high = ("(" + ", ".join(f"{v:.4g}" for v in facts["bounds"][end]) + ")" for end in ("low", "high"))
    size = " x ".join(f"{side:.4g}" for side in facts["size"])
    lines.append(line("size", f"{size}; from {low} to {high}, z up"))
    lines += [line(label, text) for label, text in facts["details"].items()]
    return [*lines, "", *[line("try", f"`{command}`, {why}") for command, why in facts["advice"]]]


# --- two meshes ----------------------------------------------------------------------------------------


def comparison_lines(names: Sequence[str], facts: Mapping[str, Any]) -> list[str]:
    """The report of `trellis compare`."""
    a, b = names
    meshes, d = facts["meshes"], facts["distances"]
    how = "as they are" if facts["as_is"] else "each fitted to the unit cube"
    lines = [line("A", mesh_summary(a, meshes[0])), line("B", mesh_summary(b, meshes[1]))]
    lines.append(line("compared", f"{how}; lengths in units of A's longest side"))
    lines.append(line("chamfer", f"{d['chamfer']:.5f} (root mean square {d['rms']:.5f})"))
    lines.append(line("farthest", f"{d['hausdorff']:.4f}, 99% within {d['p99']:.4f}"))
    lines += [
        line(
            f"F @ {threshold}",
            f"{score['f']:.4f} (precision {score['precision']:.4f}, recall {score['recall']:.4f})",
        )
        for threshold, score in d["f_scores"].items()
    ]
    normals = f"{d['normal_consistency']:.4f} consistent, {share(d['opposed_normals'])} opposed"
    lines.append(line("normals", normals))
    lines.append(line("area", f"B has {d['area_ratio']:.3f} times the area of A"))
    lines += color_lines(d.get("color"))
    pictures = facts.get("pictures")
    if pictures:
        lines.append(
            line(
                "pictures",
                f"{pictures['psnr']:.1f} dB, structural similarity {pictures['ssim']:.3f}, outlines "
                f"{share(pictures['outline_iou'])} alike, normals {pictures['normal_degrees']:.1f}° apart",
            )
        )
    return lines


def color_lines(color: Mapping[str, Any] | None) -> list[str]:
    if color is None:
        return [line("color", "not compared: not both have colors")]
    return [
        line(
            "color",
            f"error {color['error']:.4f} of 1, {color['psnr']:.1f} dB, delta E {color['delta_e']:.1f}",
        ),
        line(
            "histograms",
            f"{share(color['histogram_overlap'])} shared, shifted by {color['histogram_shift']:.4f}",
        ),
        line(
            "surface",
            f"metallic off by {color['metallic_error']:.4f}, roughness by {color['roughness_error']:.4f}",
        ),
    ]


def mesh_summary(name: str, facts: Mapping[str, Any]) -> str:
    verdict = "passed" if facts["passed"] else f"failed: {' '.join(facts['problems'])}"
    return f"{name}: {summary(facts)}; quality check {verdict}"


def summary(facts: Mapping[str, Any]) -> str:
    """A mesh in a few words."""
    m = facts["metrics"]
    sound = "watertight"
    if not m.get("watertight"):
        edges = count(m.get("boundary_edges", 0), "boundary edge")
        sound = f"{edges}, {count(m.get('non_manifold_edges', 0), 'non-manifold edge')}"
    return f"{count(m['faces'], 'face')}, {m['vertices']:,} vertices, {sound}"
