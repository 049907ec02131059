"""Figures contain what they should, are written as what their names say, and need no display and no colour."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from fastmlp import MLP, MLPClassifier, MLPRegressor, plots
from fastmlp.engine.history import History

pytest.importorskip("matplotlib")

FIGURES = {
    "loss": [0.9, 0.5, 0.4],
    "accuracy": [0.6, 0.8, 0.85],
    "val_loss": [0.8, 0.6, 0.55],
    "val_accuracy": [0.7, 0.75, 0.8125],
    "learning_rate": [1e-3] * 3,
}


def test_curves_show_loss_and_accuracy_of_training_and_validation():
    loss, accuracy = plots.curves(History(FIGURES))
    assert [len(ax.lines) for ax in (loss, accuracy)] == [2, 2]
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 0.9], [2, 0.5], [3, 0.4]])
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [70, 75, 81.25])
    assert (loss.get_xlabel(), loss.get_ylabel(), accuracy.get_ylabel()) == ("epoch", "loss", "accuracy (%)")
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["training, last 85.00 %", "validation, last 81.25 %"]


def test_lines_differ_in_more_than_colour():
    for ax in plots.curves(FIGURES):
        for look in ("get_linestyle", "get_marker"):
            assert len({getattr(line, look)() for line in ax.lines}) == 2


def test_curves_of_a_regression_without_validation_are_one_line():
    axes = plots.curves({"loss": [3.0, 2.0], "learning_rate": [1.0, 1.0]})
    assert len(axes) == 1 and len(axes[0].lines) == 1
    assert len(axes[0].get_figure().axes) == 1


def test_curves_of_a_long_run_have_few_markers():
    (ax,) = plots.curves({"loss": list(np.linspace(1, 0, 1000))})
    assert len(ax.lines[0].get_xdata()) == 1000
    assert 1000 / ax.lines[0].get_markevery() <= plots.MAX_MARKERS


def test_curves_are_drawn_where_asked():
    from matplotlib.figure import Figure

    given = Figure().subplots(1, 2)
    assert plots.curves(FIGURES, axes=given) == list(given)
    with pytest.raises(ValueError, match="needs axes for loss and accuracy, got 1"):
        plots.curves(FIGURES, axes=given[:1])


def test_curves_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no epochs yet"):
        plots.curves(History())


def test_confusion_counts_true_classes_in_rows():
    ax = plots.confusion([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0], ["ant", "bee", "cow"])
    cells = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert cells == {(0, 0): "1", (0, 1): "1", (1, 1): "1", (2, 2): "2", (2, 0): "1"}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["ant", "bee", "cow"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ant", "bee", "cow"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    assert ax.get_title() == "2 of 6 wrong (33.33 %)"
    np.testing.assert_allclose(ax.images[0].get_array()[2], [1 / 3, 0, 2 / 3])


def test_numbers_of_a_confusion_stand_out_from_their_cells():
    ax = plots.confusion([0] * 10 + [1] * 10, [0] * 10 + [1] * 9 + [0], ["a", "b"])
    tones = {t.get_text(): t.get_color() for t in ax.texts}
    assert tones == {"10": "white", "9": "white", "1": "black"}


def test_confusion_of_many_classes_has_shades_in_place_of_numbers():
    classes = np.arange(60)
    ax = plots.confusion(classes, classes)
    assert not ax.texts
    assert len(ax.get_xticklabels()) <= plots.MAX_NUMBERED
    assert len(ax.get_figure().axes) == 2  # the scale of the shades


def test_confusion_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="expected two"):
        plots.confusion([0, 1], [0])
    with pytest.raises(ValueError, match="expected two"):
        plots.confusion([], [])
    with pytest.raises(ValueError, match="classes up to 2, but only 2 class_names"):
        plots.confusion([0, 2], [0, 1], ["a", "b"])


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plots.curves([1.0]), TypeError, r"curves: history must be what fit returned, .* got \[1\.0\]"),
        (lambda: plots.curves({"loss": [[1.0]]}), ValueError, r"curves: loss must be .* \(n,\), got \(1, 1\)"),
        (lambda: plots.lines([1, 2]), TypeError, "lines: series must give the lines by their labels"),
        (lambda: plots.lines({"a": []}), ValueError, "lines: 'a' needs .* n at least 1"),
        (lambda: plots.lines({"a": 3}), ValueError, r"lines: 'a' needs .* got \(\)"),
        (lambda: plots.lines({"a": ["x"]}), TypeError, "lines: 'a' must be real numbers, got <U1"),
        (lambda: plots.lines({"a": [1]}, ax=3), TypeError, "lines: ax must be matplotlib axes, got int"),
        (lambda: plots.confusion(["a"], ["b"]), TypeError, "y_true must hold the numbers of classes.* class_names"),
        (lambda: plots.confusion([0.5], [1]), ValueError, r"y_true must hold whole numbers, got 0\.5"),
        (lambda: plots.confusion([0], [-1]), ValueError, "y_predicted must hold classes counted from 0, got -1"),
        (lambda: plots.mistakes(images(1), [[0, 1]], np.eye(2)[:1]), ValueError, r"classes \(n,\) .* got .*\(1, 2\)"),
        (lambda: plots.mistakes(images(1), [0], [[np.nan, 1]]), ValueError, "probabilities must be finite, got nan"),
        (lambda: plots.mistakes(images(1), [0], np.eye(2)[:1], count=0), ValueError, "count must be at least 1, got 0"),
        (lambda: plots.samples(images(1), [0], np.eye(2)[:1], image_shape=6), TypeError, r"must be \(height, width\)"),
        (lambda: plots.samples(images(1), [0], np.eye(2)[:1], columns=0), ValueError, "columns must be at least 1"),
        (lambda: plots.first_layer(np.full((6, 1), np.inf), (2, 3)), ValueError, "weights must be finite, got inf"),
        (lambda: plots.regions(MLP((2, 2), seed=0), SQUARE * np.nan, [0] * 4), ValueError, "x must be finite, got nan"),
        (lambda: plots.regions(MLP((2, 2), seed=0), SQUARE, [-1] * 4), ValueError, "y must hold .* from 0, got -1"),
        (
            lambda: plots.regions(lambda p: 7 * p[:, 0], SQUARE, [0] * 4),
            ValueError,
            "from 0 to 1; the model gave",
        ),
        (lambda: plots.regions(lambda p: p[:, 0] / 0, SQUARE, [0] * 4), ValueError, "probabilities"),
        (lambda: plots.approximation(np.sin, np.sin, (1, 0)), ValueError, r"low below high, got \(1, 0\)"),
        (lambda: plots.approximation(np.sin, np.sin, (0, 1), resolution=1), ValueError, "at least 2, got 1"),
        (lambda: plots.approximation(np.sin, np.sin, (0, 1), ([0, 1], [0])), ValueError, r"got \[\(2,\), \(1,\)\]"),
        (
            lambda: plots.approximation(np.sin, lambda t: t / 0, (0, 1)),
            ValueError,
            "values of the model must be finite",
        ),
        (lambda: plots.panels(0), ValueError, "rows must be at least 1, got 0"),
        (lambda: plots.save([], "a.png"), TypeError, r"save: expected a figure, or axes in one, got \[\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_what_cannot_be_drawn_is_named(draw, error, message):
    with pytest.raises(error, match=message):
        draw()


def test_axes_may_be_one_by_one_or_in_an_array():
    from matplotlib.figure import Figure

    (ax,) = plots.curves({"loss": np.array([1.0, 2.0])}, axes=Figure().subplots())
    assert len(ax.lines) == 1
    grid = Figure().subplots(2, 2)
    assert plots.mistakes(images(4), [0] * 4, [[0, 1]] * 4, image_shape=(2, 3), axes=grid) == list(grid.flat)
    assert len(plots.first_layer(MLP((6, 2, 2), seed=0).get_weights(), (2, 3), axes=grid)) == 2


def test_one_probability_is_of_the_second_of_two_classes():
    axes = plots.samples(images(2), [0, 1], [[0.1], [0.2]], ["cat", "dog"], (2, 3))
    assert [ax.get_title() for ax in axes] == ["cat  90 %", "not cat: dog"]


def images(count):
    return np.arange(count * 6, dtype=np.float64).reshape(count, 6)


def test_mistakes_are_the_surest_first():
    chances = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95]]
    axes = plots.mistakes(images(4), [0, 0, 0, 0], chances, ["cat", "dog"], (2, 3), 2)
    assert [ax.get_title() for ax in axes] == ["true cat, predicted\ndog (95.0 %)", "true cat, predicted\ndog (80.0 %)"]
    np.testing.assert_array_equal(axes[0].images[0].get_array(), images(4)[3].reshape(2, 3))
    assert axes[0].get_figure().get_suptitle() == "the 2 surest of 3 wrong predictions among 4"
    assert axes[0].images[0].get_cmap().name == "gray_r"


def test_mistakes_leave_no_empty_frames():
    chances = np.tile([0.1, 0.9], (5, 1))
    axes = plots.mistakes(images(5), np.zeros(5, int), chances, image_shape=(2, 3))
    assert len(axes) == 5 == len(axes[0].get_figure().axes)


def test_the_title_of_few_images_fits_into_the_figure():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for axes in (
        plots.mistakes(images(3), [0] * 3, [[0, 1]] * 3, image_shape=(2, 3)),
        plots.samples(images(1), [0], [[0, 1]], image_shape=(2, 3)),
        plots.first_layer(np.ones((6, 3)), (2, 3), count=2),
    ):
        figure = axes[0].get_figure()
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        title = figure._suptitle.get_window_extent(canvas.get_renderer())
        assert title.x0 >= 0 and title.x1 <= figure.bbox.x1


def test_mistakes_say_so_where_there_are_none():
    (ax,) = plots.mistakes(images(2), [0, 1], np.eye(2), image_shape=(2, 3))
    assert ax.texts[0].get_text() == "all 2 predictions are right"


def test_mistakes_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="images of 2x2 have 4 values, these have 6"):
        plots.mistakes(images(2), [0, 1], np.eye(2), image_shape=(2, 2))
    with pytest.raises(ValueError, match="expected as many"):
        plots.mistakes(images(3), [0, 1], np.eye(2), image_shape=(2, 3))
    with pytest.raises(ValueError, match="only 2 class_names"):
        plots.mistakes(images(2), [0, 2], np.eye(2), ["a", "b"], (2, 3))


def test_samples_mark_the_wrong_ones():
    axes = plots.samples(images(3), [0, 1, 0], [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], ["cat", "dog"], (2, 3))
    assert [ax.get_title() for ax in axes] == ["cat  90 %", "dog  80 %", "not dog: cat"]
    assert [ax.images[0].get_cmap().name for ax in axes] == ["gray_r", "gray_r", "gray"]
    assert axes[0].get_figure().get_suptitle().startswith("2 of 3 right")
    with pytest.raises(ValueError, match="samples: images of 2x2 have 4 values, these have 6"):
        plots.samples(images(2), [0, 1], np.eye(2), image_shape=(2, 2))


def test_first_layer_shows_the_weights_into_units_around_grey():
    w = np.array([[1.0, 0.0, -2.0], [0.5, 0.0, 3.0], [0.0, 0.0, 1.0], [-1.0, 0.1, 0.0], [0, 0, 0], [0, 0, 0]])
    axes = plots.first_layer(w, (2, 3), count=2)
    assert len(axes) == 2 == len(axes[0].get_figure().axes)
    np.testing.assert_array_equal(axes[0].images[0].get_array(), w[:, 0].reshape(2, 3))
    np.testing.assert_array_equal(axes[1].images[0].get_array(), w[:, 2].reshape(2, 3))
    assert [ax.images[0].get_clim() for ax in axes] == [(-1, 1), (-3, 3)]
    assert "2 of 3 units" in axes[0].get_figure().get_suptitle()
    assert len(plots.first_layer(MLP((6, 4, 2), seed=0), (2, 3))) == 4
    with pytest.raises(ValueError, match=r"28x28 expected weights \(784, units\), got \(6, 3\)"):
        plots.first_layer(w)


def test_first_layer_takes_estimators():
    x, y = np.eye(4), [0, 1, 0, 1]
    estimator = MLPClassifier(3, epochs=1, backend="numpy")
    with pytest.raises(AttributeError, match="MLPClassifier has no weights before fit"):
        plots.first_layer(estimator, (2, 2))
    drawn = plots.first_layer(estimator.fit(x, y), (2, 2))
    for ax, same in zip(drawn, plots.first_layer(estimator.coefs_[0], (2, 2)), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), same.images[0].get_array())


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("kind", ["estimator", "network"])
def test_pictures_of_what_was_fitted_on_a_frame(kind, library):
    made = pytest.importorskip(library, reason=f"{library} is not installed; it is no dependency of fastmlp")
    x = np.random.default_rng(0).normal(size=(60, 2))
    y, frame = (x[:, 0] > 0).astype(int), made.DataFrame({"a": x[:, 0], "b": x[:, 1]})
    if kind == "network":
        model = MLP((2, 4, 2), backend="numpy", seed=0)
        model.fit(frame, y, epochs=2, verbose=0)
        turned = plots.regions(model, frame[["b", "a"]], y, resolution=20).images[0].get_array()
        straight = plots.regions(model, frame, y, resolution=20).images[0].get_array()
        np.testing.assert_allclose(turned, straight.T, atol=1e-6)
        return
    quick = {"epochs": 2, "random_state": 0, "backend": "numpy", "hidden_layer_sizes": 3}
    estimator, same = MLPClassifier(**quick).fit(frame, y), MLPClassifier(**quick).fit(x, y)
    expected = plots.regions(same, x, y, resolution=20).images[0].get_array()
    for points in (frame, x):
        found = plots.regions(estimator, points, y, resolution=20).images[0].get_array()
        np.testing.assert_array_equal(found, expected)
    plots.approximation(np.sin, MLPRegressor(**quick).fit(frame[["a"]], x[:, 0]), (0, 1))


def test_images_are_drawn_where_asked():
    given = plots.panels(1, 3)
    drawn = plots.samples(images(2), [0, 1], np.eye(2), image_shape=(2, 3), axes=given)
    assert drawn == given[:2] and [len(ax.images) for ax in given] == [1, 1, 0] and not given[2].axison
    assert given[0].get_figure().get_suptitle() == ""
    assert plots.mistakes(images(2), [1, 1], np.eye(2), image_shape=(2, 3), axes=plots.panels())[0].images
    assert plots.mistakes(images(2), [0, 1], np.eye(2), image_shape=(2, 3), axes=given[2:]) == given[2:]
    with pytest.raises(ValueError, match="axes: 4 images need as many axes, got 3"):
        plots.first_layer(np.ones((6, 4)), (2, 3), axes=plots.panels(1, 3))


def test_lines_are_told_apart_without_colour():
    ax = plots.lines({"a": [3.0, 2.0], "b": ([10, 100], [1.0, 0.1])}, ylabel="error", yscale="log")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 3], [2, 2]])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [10, 100])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("epoch", "error", "log")
    looks = {(line.get_linestyle(), line.get_marker()) for line in plots.lines({c: [1, 2] for c in "abcdef"}).lines}
    assert len(looks) == 6
    with pytest.raises(
        ValueError, match=r"'a' needs \(n,\) values, n at least 1, and as many positions; got \(2,\) and \(3,\)"
    ):
        plots.lines({"a": ([1, 2, 3], [1, 2])})
    with pytest.raises(ValueError, match="series is empty"):
        plots.lines({})


SQUARE = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])


def test_regions_are_cut_where_the_classifier_changes_its_mind():
    ax = plots.regions(lambda p: p[:, 0] > 0.25, SQUARE, [0, 0, 1, 1], ["left", "right"], legend=True, title="t")
    (border,) = (c for c in ax.collections if type(c).__name__ == "QuadContourSet")
    vertices = np.concatenate([path.vertices for path in border.get_paths()])
    np.testing.assert_allclose(vertices[:, 0], 0.25, atol=2.16 / 200)
    shades = ax.images[0].get_array()
    assert shades[0, 0] != shades[0, -1] and len(np.unique(shades)) == 2
    upper = plots.regions(lambda p: p[:, 1] > 0.25, SQUARE, [0, 1, 0, 1]).images[0]
    assert upper.origin == "lower" and upper.get_array()[0, 0] > upper.get_array()[-1, 0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["left", "right"]
    markers = [c for c in ax.collections if type(c).__name__ == "PathCollection"]
    np.testing.assert_array_equal([m.get_offsets() for m in markers], [SQUARE[:2], SQUARE[2:]])
    assert len({tuple(m.get_facecolor()[0]) for m in markers}) == 2
    assert ax.get_title() == "t"


def test_regions_fade_where_the_classifier_is_unsure():
    ax = plots.regions(lambda p: (p[:, 0] + 2) / 4, SQUARE, [0, 0, 1, 1], resolution=50)
    assert (np.diff(ax.images[0].get_array()[7]) < 0).all()


@pytest.mark.parametrize("units", [(2, 1), (2, 2), (2, 4)])
def test_regions_take_networks_of_any_number_of_classes(units):
    loss = "sigmoid_cross_entropy" if units[1] == 1 else "softmax_cross_entropy"
    given = panels = plots.panels(1, 2)
    ax = plots.regions(MLP(units, loss=loss, seed=0), SQUARE, [0, 1, 1, 0], ax=panels[1], resolution=20)
    assert ax is given[1] and len(ax.images) == 1 and not given[0].images


def test_regions_refuse_what_does_not_fit():
    with pytest.raises(
        ValueError, match=r"expected points \(n, 2\) and classes \(n,\), n at least 1; got \(4, 2\), \(3,\)"
    ):
        plots.regions(MLP((2, 2), seed=0), SQUARE, [0, 1, 1])
    with pytest.raises(TypeError, match="must have predict_proba or be callable, got 3"):
        plots.regions(3, SQUARE, [0, 1, 1, 0])
    with pytest.raises(ValueError, match=r"expected probabilities \(100,\) or \(100, K\); got \(1, 2\)"):
        plots.regions(lambda p: p[:1], SQUARE, [0, 1, 1, 0], resolution=10)


def test_approximation_shows_both_and_tells_the_largest_difference():
    ax = plots.approximation(np.sin, lambda t: t, (0.0, 1.0), ([0.0, 0.5], [0.0, 0.5]), resolution=11)
    true, found, samples = ax.lines
    np.testing.assert_allclose(true.get_ydata(), np.sin(np.linspace(0, 1, 11)))
    np.testing.assert_allclose(found.get_ydata(), np.linspace(0, 1, 11))
    np.testing.assert_array_equal(samples.get_xydata(), [[0, 0], [0.5, 0.5]])
    assert ax.get_title() == f"largest difference {1 - np.sin(1):.3g}"
    assert true.get_linewidth() > 2 * found.get_linewidth()
    with pytest.raises(ValueError, match=r"for \(11,\) places .* model \(2,\)"):
        plots.approximation(np.sin, lambda t: t[:2, 0], (0.0, 1.0), resolution=11)


def test_a_picture_is_saved_twice_and_shows_itself_in_a_notebook(tmp_path):
    picture = plots.save_both(plots.lines({"a": [1.0, 2.0]}), tmp_path / "new" / "a.b")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.b.png", "a.b.svg"]
    assert picture._repr_png_() == (tmp_path / "new" / "a.b.png").read_bytes()
    again = plots.save_both(plots.lines({"a": [1.0, 2.0]}), tmp_path / "again.png")
    assert again.png == tmp_path / "again.png"
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in picture]


def test_pictures_keep_their_colours_where_they_have_any(tmp_path):
    from PIL import Image

    ax = plots.lines({"a": [1.0, 2.0]})
    plots.save(ax, tmp_path / "grey.png")
    ax.lines[0].set_color("red")
    plots.save(ax, tmp_path / "red.png")
    with Image.open(tmp_path / "grey.png") as grey, Image.open(tmp_path / "red.png") as red:
        assert (grey.mode, red.mode) == ("L", "RGB")
        assert np.asarray(red).reshape(-1, 3).tolist().count([255, 0, 0]) > 100


def test_png_and_svg_are_written_by_name(tmp_path):
    axes = plots.curves(FIGURES)
    for drawn in (axes, axes[0], axes[0].get_figure()):
        plots.save(drawn, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        plots.save(drawn, tmp_path / "a.SVG")
        root = ET.fromstring((tmp_path / "a.SVG").read_text("utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.SVG", "a.png"]


def test_pictures_are_readable_and_not_empty(tmp_path):
    from matplotlib.image import imread

    plots.save(plots.confusion([0, 1, 1], [0, 1, 0]), tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")
    assert picture.shape[0] > 200 and picture.min() == 0 and picture.max() == 1


def test_other_names_are_refused_and_a_failure_leaves_the_old_file(tmp_path):
    axes = plots.curves(FIGURES)
    with pytest.raises(ValueError, match=r"ends in \.png or \.svg, got 'a\.jpg'"):
        plots.save(axes, "a.jpg")
    with pytest.raises(FileNotFoundError):
        plots.save(axes, tmp_path / "nowhere" / "a.png")
    (tmp_path / "a.png").write_bytes(b"old")
    axes[0].set_title(r"$\nosuchcommand$")
    with pytest.raises(ValueError):
        plots.save(axes, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(plots.MissingMatplotlibError) as error:
        plots.curves(FIGURES)
    assert isinstance(error.value, ImportError)
    assert 'pip install "fastmlp[plot]"' in str(error.value) and "\n" not in str(error.value)


def test_a_broken_matplotlib_is_not_called_missing(monkeypatch):
    # something that matplotlib itself needs is not there
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "matplotlib.figure":
                raise ModuleNotFoundError("No module named 'kiwisolver'", name="kiwisolver")

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="kiwisolver") as error:
        plots.curves(FIGURES)
    assert not isinstance(error.value, plots.MissingMatplotlibError)


def test_pyplot_is_never_imported(tmp_path):
    code = (
        "import sys; from fastmlp import plots; assert 'matplotlib' not in sys.modules; "
        "plots.save(plots.curves({'loss': [1.0]}), sys.argv[1]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path / "a.png")], check=True)


def test_a_dollar_in_a_name_begins_no_formula(tmp_path):
    names = ["$x_{$", "$a$", "cost $5 to $6"]
    classes, chances = np.arange(3), np.eye(3)[[1, 2, 0]]
    matrix = plots.confusion(classes, [1, 2, 0], names)
    assert [text.get_text() for text in matrix.get_xticklabels()] == names
    images = np.arange(12.0).reshape(3, 4)
    for i, drawn in enumerate([
        matrix,
        plots.mistakes(images, classes, chances, names, (2, 2)),
        plots.samples(images, classes, chances, names, (2, 2)),
        plots.lines({name: [1, 2] for name in names}),
        plots.regions(lambda p: p[:, 0] > 0.25, SQUARE, [0, 0, 1, 1], names[:2], legend=True),
    ]):  # fmt: skip
        plots.save(drawn, tmp_path / f"{i}.svg")


def test_characters_that_the_fonts_lack_are_named_in_one_warning(tmp_path):
    drawn = plots.confusion([0, 1, 1], [0, 1, 0], ["\u82b1\u9ce5", "\u6708"])
    with pytest.warns(plots.MissingGlyphsWarning, match="have no '\u6708\u82b1\u9ce5', which are drawn") as caught:
        plots.save(drawn, tmp_path / "a.png")
    assert len(caught) == 1 and caught[0].filename == __file__
