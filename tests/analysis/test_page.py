"""The page of a study, opened in a browser without network access."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import write_run
from tiny_networks import samples, tiny

from detector.analysis.charts import short
from detector.analysis.layers import record_layers
from detector.analysis.study import explorer as exploring
from detector.analysis.study.content import study_content
from detector.analysis.study.page import page
from detector.analysis.study.runs import read_runs
from detector.data.dataset import DetectionDataset

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SIZE = 96, 128  # (height, width) of an image


class Record:
    """What is known of an image of a data set."""

    def __init__(self, image_id: int) -> None:
        self.image_id, (self.height, self.width) = image_id, SIZE
        self.path = Path(f"<{image_id}>.png")  # a name that HTML would take for its own


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Write a page with two images; return its path and the data that the explorer shows."""
    folder = tmp_path_factory.mktemp("sweep")
    for number in range(4):
        arm, seed = ("none", "c5_v2")[number // 2], number % 2
        write_run(folder / str(number), f"deform={arm}", f"seed={seed}")
    runs = read_runs([folder])
    content = study_content(runs, baseline=None, num_resamples=20, seed=0)
    data, device = samples(), torch.device("cpu")

    class Images:
        records = [Record(0), Record(1)]
        __getitem__ = staticmethod(data.__getitem__)

    dataset: DetectionDataset = Images()  # type: ignore[assignment]
    models = {"none": tiny("none"), "c5_v2": tiny("c5")}
    maps = {
        arm: exploring.maps_of(model, dataset, [0, 1], device=device, most_cells=10)
        for arm, model in models.items()
    }
    given = {
        "baseline": "none",
        "arms": ["none", "c5_v2"],
        "mapped": ["none", "c5_v2"],
        "stages": ["c2", "c3", "c4", "c5"],
        "images": exploring.images_of(runs, dict.fromkeys(runs.arms, 0), dataset, [0, 1]),
        "maps": maps,
    }
    path = folder / "study.html"
    path.write_text(page(content, given), encoding="utf-8")
    return path, {"models": models, "image": data[0]["image"], "study": content, "page": given}


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="the page is not opened: playwright is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("the page is not opened: there is no chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser, path: Path, width: int):
    """Open a page; return it and a list that collects its console messages, its errors and the URLs
    that it requests.
    """
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    view, said = context.new_page(), []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    of_page = (path.as_uri(), "data:")
    view.on("request", lambda one: None if one.url.startswith(of_page) else said.append(one.url))
    view.goto(path.as_uri())
    return view, said


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stands_alone_and_fits(shown: tuple[Path, dict], browser, width: int) -> None:
    view, said = opened(browser, shown[0], width)
    assert said == []
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.locator("#pair figure").count() == 3
    image = shown[1]["page"]["images"][0]
    boxes = len(image["truth"]) + sum(map(len, image["found"].values()))
    assert boxes and view.locator("#pair rect").count() == 2 * boxes  # each is white and black
    assert view.locator("#image option").first.text_content() == "<0>.png"
    assert view.locator(".charts svg").count() >= 3


def places_on(view, name: str) -> np.ndarray:
    """Return the centres (y, x) of the dots or squares in the explorer, shape (N, 2)."""
    circles = name == "sampled"
    script = (
        "all => all.map(e => [+e.getAttribute('cy'), +e.getAttribute('cx')])"
        if circles
        else "all => all.map(e => [+e.getAttribute('y') + e.getAttribute('height') / 2,"
        " +e.getAttribute('x') + e.getAttribute('width') / 2])"
    )
    return np.array(view.eval_on_selector_all(f"#explorer .{name}", script))


def test_dots_stand_where_the_offsets_say(shown: tuple[Path, dict], browser) -> None:
    view, said = opened(browser, shown[0], 1280)
    model, image = shown[1]["models"]["c5_v2"], shown[1]["image"].float() / 255
    with torch.no_grad(), record_layers(model) as layers:
        images, _ = model.transform([image])
        model.backbone(images.tensors)
    assert images.image_sizes[0] == SIZE  # the network sees the image as it is
    layer = layers["layer4.0.conv2"]
    assert view.locator("#arm").input_value() == "1" and view.locator("#stage").input_value() == "3"
    view.locator("#explorer").scroll_into_view_if_needed()
    box = view.locator("#explorer").bounding_box()
    height, width = layer.output_size
    assert (height, width) == (3, 4)
    # most_cells=10 keeps every second row and column of the 12 cells: 0 and 2.
    for cell in ((0, 0), (2, 2)):
        scale = box["width"] / (SIZE[1] + 2 * 0.3 * SIZE[1])  # the image has a margin
        y, x = ((32 * place + 0.3 * SIZE[1]) * scale for place in cell)
        view.mouse.move(box["x"] + x + 1, box["y"] + y + 1)
        expected = 32 * layer.places()[0, :, :, cell[0], cell[1]] + 0.5
        # Offsets are kept in 32nds of a pixel of a map of stride 32.
        assert np.abs(places_on(view, "sampled") - expected).max() <= 0.51
        grid = 32 * layer.grid()[:, :, cell[0], cell[1]] + 0.5  # the centre of pixel 0
        assert np.abs(places_on(view, "plain")[::2] - grid).max() < 1e-6  # white below black
        masks = view.eval_on_selector_all(
            "#explorer .sampled", "all => all.map(e => +e.dataset.mask)"
        )
        assert np.abs(masks - layer.masks[0, :, cell[0], cell[1]]).max() <= 0.5 / 128 + 1e-6
        shown_dilation = float(
            view.locator("#readout").text_content().split("dilation ")[1].split(",")[0]
        )
        assert shown_dilation == pytest.approx(layer.effective_dilation()[cell], abs=0.02)
    assert said == []


def test_keys_touch_and_choices(shown: tuple[Path, dict], browser) -> None:
    view, said = opened(browser, shown[0], 390)
    readout = view.locator("#readout")
    view.locator("#explorer").focus()
    view.keyboard.press("ArrowLeft")
    assert "cell 0,0 of 4x3" in readout.text_content()
    view.keyboard.press("ArrowRight")
    assert "cell 2,0 of 4x3" in readout.text_content()
    view.locator("#arm").select_option("0")
    assert "a plain convolution, dilation 1" in readout.text_content()
    assert view.locator("#explorer .sampled").count() == 0
    assert view.locator("#explorer .plain").count() == 18  # each is white and black
    view.locator("#stage").select_option("0")
    assert "c2, layer1.0.conv2" in readout.text_content()
    view.locator("#image").select_option("1")
    finger = {"clientX": 1, "clientY": 1, "pointerType": "touch"}
    view.dispatch_event("#explorer", "pointerdown", finger)
    assert "cell 0,0 of 32x24" in readout.text_content()
    assert said == []


def test_nothing_detected_is_said(shown: tuple[Path, dict], browser, tmp_path: Path) -> None:
    """Instead of pictures without boxes and charts of zeros. The explorer works all the same."""
    content, given = copy.deepcopy(shown[1]["study"]), copy.deepcopy(shown[1]["page"])
    for arm in content["arms"]:
        arm["numbers"]["AP"]["mean"] = 0.0
    for image in given["images"]:
        image["found"] = {arm: [] for arm in given["arms"]}
    path = tmp_path / "study.html"
    path.write_text(page(content, given), encoding="utf-8")
    view, said = opened(browser, path, 1280)
    assert said == []
    assert view.locator("#pair").count() == 0
    assert "No arm has a detection with a score of at least 0.5" in view.content()
    assert "Differences and cost are not drawn" in view.content()
    assert view.locator(".charts svg").count() == 2  # training curves, which may be rising
    assert view.locator("#explorer .plain").count() == 18


def test_runs_that_were_evaluated_once_have_no_curves(shown: tuple[Path, dict]) -> None:
    content = copy.deepcopy(shown[1]["study"])
    assert "Training curves are not drawn" not in page(content, None)
    before = page(content, None).count("<figure>")
    for arm in content["arms"]:
        arm["curves"] = {seed: curve[:1] for seed, curve in arm["curves"].items()}
    text = page(content, None)
    assert "Training curves are not drawn, since no run was evaluated twice." in text
    assert text.count("<figure>") == before - 2


def test_offset_groups_that_are_not_shown_are_named(
    shown: tuple[Path, dict], browser, tmp_path: Path
) -> None:
    view, _ = opened(browser, shown[0], 1280)
    assert "offset groups" not in view.locator("#readout").text_content()
    given, image = copy.deepcopy(shown[1]["page"]), shown[1]["image"]
    dataset: DetectionDataset = OneImage(image)  # type: ignore[assignment]
    (maps,) = exploring.maps_of(
        tiny("c5", offset_groups=2), dataset, [0], device=torch.device("cpu"), most_cells=10
    )
    given["maps"]["c5_v2"] = [maps, maps]
    path = tmp_path / "study.html"
    path.write_text(page(shown[1]["study"], given), encoding="utf-8")
    view, said = opened(browser, path, 1280)
    assert (
        view.locator("#readout")
        .text_content()
        .endswith("; only the first of 2 offset groups is shown.")
    )
    assert view.locator("#explorer .sampled").count() == 9 and said == []


class OneImage:
    """A data set of one image."""

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image
        self.records = [Record(0)]

    def __getitem__(self, index: int) -> dict:
        return {"image": self.image}


def test_ten_large_images_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of ten 1333x800 images, for two arms with all stages deformable, fit as text."""
    cells = exploring.most_cells(2 * 4 * 10)
    size = 0
    for side in (200, 100, 50, 25):
        height, width = side, side * 1333 // 800
        step = 1
        while -(-height // step) * -(-width // step) > cells:
            step += 1
        kept = -(-height // step) * -(-width // step)
        size += 2 * 10 * 4 / 3 * kept * 9 * exploring.BYTES_A_TAP
    assert size < 13e6  # the page may have 15 MB; ten pictures of 640 pixels take about one


def test_labels_are_escaped_and_shortened() -> None:
    assert short("a $x$ b\nc") == r"a \$x\$ b c" and short("x" * 30) == "x" * 19 + "…"
