"""What is drawn is what was measured: the artists of each picture against its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from anp_vs import recipes
from anp_vs.report import compared_figures, inside_figures, training_figures
from anp_vs.report.compared_figures import Point
from anp_vs.report.runs import read_runs
from anp_vs.report.style import svg
from report.made_runs import ATTACKED, make_run, metrics


def axes_of(figure: Figure | None) -> Axes:
    assert figure is not None
    return figure.axes[0]


def points(axes: Axes, label: str) -> list[tuple[float, float]]:
    line = next(line for line in axes.lines if line.get_label() == label)
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


def test_training_curves_are_the_lines_of_the_log() -> None:
    lines = metrics(recipes.RECIPES["mnist-cpu/anp-vs"])
    accuracies = axes_of(training_figures.accuracies(lines))
    assert points(accuracies, "robust, validation") == [(1, 40), (2, 50), (3, 60), (4, 70)]
    assert points(accuracies, "clean, training") == [(1, 81), (2, 85), (3, 89), (4, 93)]
    losses = axes_of(training_figures.losses(lines))
    assert points(losses, "clean") == [(n, 2 / n) for n in (1, 2, 3, 4)]
    (sparsity,) = axes_of(training_figures.sparsity(lines)).lines
    assert list(sparsity.get_ydata()) == [0, 20, 40, 60]  # type: ignore[arg-type]


def test_a_network_without_gates_or_a_log_has_no_such_curve() -> None:
    assert training_figures.sparsity(metrics(recipes.RECIPES["mnist-cpu/at"])) is None
    assert training_figures.losses([]) is None


def test_histograms_draw_every_unit_with_the_zeros_apart() -> None:
    layer = {"path": "gate1", "value": 0.1, "original_units": 20, "units": [], "expected_pi": None}
    layers = [
        layer | {"edges": [0.0, 0.1, 0.2, 0.3], "counts": [3, 0, 5], "zeros": 12},
        layer | {"edges": [0.0, 0.1, 0.2, 0.3], "counts": [1, 1, 1], "zeros": 0, "path": "gate2"},
    ]
    figure = inside_figures.histogram({"layers": layers})
    for axes, drawn in zip(figure.axes, layers, strict=True):
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        heights = [bar.get_height() for bar in bars if bar.get_x() >= -1e-9]
        zeros = [bar for bar in bars if bar.get_x() + bar.get_width() < 0]
        assert heights == drawn["counts"]
        assert [bar.get_x() for bar in bars if bar.get_x() >= -1e-9] == pytest.approx(drawn["edges"][:-1])
        assert [bar.get_height() for bar in zeros] == [drawn["zeros"]]
        assert zeros[0].get_hatch()


def test_vulnerability_against_gates_draws_each_unit() -> None:
    units, pi = [0.1, 0.0, 0.3], [0.9, 1e-4, 0.5]
    layer: dict[str, Any] = {"path": "gate1", "units": units, "expected_pi": pi}
    axes = axes_of(inside_figures.against_gates({"layers": [layer]}))
    assert points(axes, "gate1") == list(zip(pi, units, strict=True))
    assert inside_figures.against_gates({"layers": [layer | {"expected_pi": None}]}) is None


def test_units_left_are_bars_of_their_share() -> None:
    layers = [{"path": "a", "left": 5, "original": 20}, {"path": "b", "left": 7, "original": 7}]
    axes = axes_of(inside_figures.units_left({"kind": "units", "layers": layers}))
    assert [patch.get_width() for patch in axes.patches[2:]] == [25.0, 100.0]  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == ["5 / 20", "7 / 7"]


def test_the_surface_has_the_gradient_upwards_and_the_clean_loss_in_the_middle() -> None:
    loss = np.arange(9.0).reshape(3, 3)
    data = ATTACKED | {"along": [-2.0, 0.0, 2.0], "aside": [-2.0, 0.0, 2.0], "loss": loss.tolist()}
    axes = axes_of(inside_figures.surface(data))
    image = axes.images[0]
    assert np.array_equal(image.get_array(), loss)  # type: ignore[arg-type]
    assert image.origin == "lower"
    assert tuple(image.get_extent()) == (-3, 3, -3, 3)


def test_maps_show_the_same_channels_clean_and_attacked_on_one_scale() -> None:
    clean, attacked = np.random.rand(1, 2, 4, 4), 2 * np.random.rand(1, 2, 4, 4)
    data = {
        "channels": [3, 1], "shown": [7], "clean_predictions": [4], "adversarial_predictions": [9],
        "clean_images": np.random.rand(1, 1, 8, 8).tolist(), "adversarial_images": np.random.rand(1, 1, 8, 8).tolist(),
        "clean": clean.tolist(), "adversarial": attacked.tolist(),
    }  # fmt: skip
    axes = inside_figures.maps(data).axes
    peak = max(clean.max(), attacked.max())
    shown = [np.asarray(each.images[0].get_array()) for each in axes]
    assert np.allclose([shown[1], shown[2]], clean[0] / peak)
    assert np.allclose([shown[4], shown[5]], attacked[0] / peak)
    assert [each.get_ylabel().split()[-1] for each in (axes[0], axes[3])] == ["4", "9"]


def test_accuracy_curves_are_those_of_the_diagnosis(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path, "mnist-cpu/at", suspicious=False)])
    against_eps = axes_of(compared_figures.against(runs, "eps"))
    # The unbounded radius is left out: it would squeeze the rest.
    assert points(against_eps, "at") == [(0, 99), (0.15, 95), (0.3, 90), (0.6, 20)]
    assert points(axes_of(compared_figures.against(runs, "steps")), "at") == [(n, 95 - n / 8) for n in (1, 4, 10, 40)]


def test_the_front_is_what_no_other_run_beats() -> None:
    rng = np.random.default_rng(0)
    runs = [Point(str(n), "at", {}, float(c), float(a)) for n, (c, a) in enumerate(rng.integers(0, 12, (40, 2)))]

    def beaten(point: Point) -> bool:
        return any(
            o.cost <= point.cost
            and o.accuracy >= point.accuracy
            and (o.cost, o.accuracy) != (point.cost, point.accuracy)
            for o in runs
        )

    expected = {(point.cost, point.accuracy) for point in runs if not beaten(point)}
    found = compared_figures.front(runs)
    assert {(point.cost, point.accuracy) for point in found} == expected
    assert len(found) == len(expected)


def test_pareto_takes_autoattack_only_where_every_run_has_it(tmp_path: Path) -> None:
    full = {"autoattack_accuracy": 88.0, "autoattack_images": 1000, "white_box_accuracy_strongest": 90.0}
    first = make_run(tmp_path, "mnist-cpu/anp-vs", row=full | {"parameters": 31_000})
    second = make_run(tmp_path, "mnist-cpu/at", row=full | {"autoattack_accuracy": None})
    column, both, others = compared_figures.pareto_points(read_runs([first, second]), "parameters")
    assert (column, [p.accuracy for p in both]) == ("white_box_accuracy_strongest", [90.0, 90.0])
    assert others == []
    column, one, _ = compared_figures.pareto_points(read_runs([first]), "parameters")
    assert (column, one[0].accuracy, one[0].cost) == ("autoattack_accuracy", 88.0, 31_000)
    axes = axes_of(compared_figures.pareto(both, "parameters", "accuracy"))
    assert points(axes, "anp-vs") == [(31_000, 90.0)]
    assert points(axes, "at") == [(431_080, 90.0)]


def test_what_was_measured_on_other_images_is_on_no_front(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, f"mnist-cpu/{row}", row={"images": images, "white_box_accuracy_strongest": 90.0})
        for row, images in (("at", 1000), ("anp-vs", 1000), ("trades", 50))
    ]
    _, points_drawn, others = compared_figures.pareto_points(read_runs(runs), "macs")
    assert [point.name for point in points_drawn] == ["anp-vs", "at"] or {p.name for p in points_drawn} == {
        "at",
        "anp-vs",
    }
    assert others == ["mnist-cpu/trades seed 0"]


def test_two_recipes_of_one_method_are_told_apart(tmp_path: Path) -> None:
    names = ("mnist-cpu/anp-vs", "mnist/anp-vs", "mnist-cpu/at")
    runs = read_runs([make_run(tmp_path, name, suspicious=False) for name in names])
    drawn = dict(compared_figures.configurations(runs))
    assert drawn.keys() == {"mnist/anp-vs", "mnist-cpu/anp-vs", "at"}
    one, two = drawn["mnist/anp-vs"], drawn["mnist-cpu/anp-vs"]
    assert one["color"] == two["color"]
    assert one["linestyle"] != two["linestyle"]
    assert one["fillstyle"] != two["fillstyle"]
    labels = {line.get_label() for line in axes_of(compared_figures.against(runs, "eps")).get_lines()}
    assert drawn.keys() <= labels


def test_an_svg_takes_the_colours_of_the_page_and_nothing_from_outside() -> None:
    text = svg(training_figures.losses(metrics(recipes.RECIPES["mnist-cpu/at"])), 'say "what" <it> is', "k")  # type: ignore[arg-type]
    assert text.startswith("<svg viewBox=")
    assert "var(--ink)" in text
    assert "#0a0" not in text
    assert "http" not in text
    assert "<style" not in text
    assert 'aria-label="say &#34;what&#34; &lt;it&gt; is"' in text
