"""The page in a real browser: opened from disk, without a request, by keyboard, at three widths, in both themes, on paper."""

import re
from xml.etree import ElementTree

import pytest

from rewound.report.making import make_page
from rewound.report.overlay import read_overlay


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture
def opened(chromium, make_study, overlay_file, place):
    """Return a function: how to look at it -> the page, opened from disk, with what it asked for and complained of."""
    file = place / "page.html"
    if not file.exists():
        lost = {"fine-tuning": 0.2, "weight-rewinding": 0.1, "lr-rewinding": 0.02, "<b>x</b>": 0.1}
        file.write_text(make_page(make_study(lost, ts=(5, 20)), overlays=read_overlay(overlay_file)))
    contexts = []

    def open_page(width=1200, scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_it_opens_from_disk_and_asks_for_nothing(opened):
    page = opened()
    page.wait_for_timeout(200)
    asked = [url for url in page.asked if not url.startswith("data:")]
    assert len(asked) == 1 and asked[0].startswith("file:")
    assert page.complaints == []
    assert page.locator("h1").inner_text() == "toy"


@pytest.mark.parametrize("width", [360, 820, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_its_width(opened, width, scheme):
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for panel in page.locator(".panel:visible").all():
        (drawn,) = [one for one in panel.locator("svg").all() if one.is_visible()]
        box = drawn.bounding_box()
        assert box["width"] > 300 and box["x"] + box["width"] <= width  # whole, not to be scrolled


def test_its_theme_is_the_systems_until_one_is_chosen(opened):
    def paper(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page = opened(scheme="dark")
    dark = paper(page)
    assert dark != paper(opened(scheme="light"))
    page.locator("#theme").select_option("light")
    assert paper(page) == "rgb(255, 255, 255)"
    line = page.locator("[data-series='0'] path").first
    light_line = line.evaluate("e => getComputedStyle(e).stroke")
    page.locator("#theme").select_option("dark")
    assert paper(page) == dark
    assert line.evaluate("e => getComputedStyle(e).stroke") != light_line


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_the_paper(opened, scheme):
    """WCAG AA: at least 4.5 to 1 for text, and 3 to 1 for lines of series."""
    page = opened(scheme=scheme)
    ratios = page.evaluate(
        """() => {
        const style = getComputedStyle(document.documentElement);
        const light = (name) => {
          let hex = style.getPropertyValue(name).trim().slice(1);
          if (hex.length === 3) hex = [...hex].map((c) => c + c).join("");
          const [r, g, b] = [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const found = {};
        for (const name of ["ink", "faint", "link", "original", ...Array(10).keys()].map(String)) {
          const key = /\\d/.test(name) ? "--s" + name : "--" + name;
          const [a, b] = [light(key), light("--paper")].sort((x, y) => y - x);
          found[key] = (a + 0.05) / (b + 0.05);
        }
        return found;
      }"""
    )
    assert len(ratios) == 14
    for name, ratio in ratios.items():
        assert ratio >= (4.5 if name in ("--ink", "--faint", "--link") else 3), (name, ratio)


def stops(page):
    """Go through the page by the Tab key; what was reached."""
    reached = []
    for _ in range(200):
        page.keyboard.press("Tab")
        told = page.evaluate(
            "(e => e.tagName + ' ' + (e.type || e.getAttribute('role') || ''))(document.activeElement)"
        )
        if told == "BODY ":
            break
        reached.append("A" if told.startswith("A ") else told)
    return reached


def test_the_keyboard_reaches_everything(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert {"INPUT radio", "BUTTON button", "SUMMARY ", "A", "PRE "} <= set(stops(page))


def test_what_scrolls_is_a_stop_and_what_fits_is_none(opened):
    assert "DIV region" not in stops(opened(1400))
    assert "DIV region" in stops(opened(360))


def test_a_section_jumped_to_begins_below_the_controls(opened):
    page = opened()
    page.get_by_role("link", name="Accuracy against search cost").click()
    page.wait_for_timeout(100)
    heading, controls = page.locator("#cost h2").bounding_box(), page.locator("form.controls").bounding_box()
    assert controls["y"] + controls["height"] <= heading["y"] < 900


def test_series_are_hidden_and_shown_by_the_space_key(opened):
    page = opened()
    lines = page.locator("#density .panel:not([hidden]) [data-series='0']")
    assert lines.count() >= 2 and lines.first.is_visible()
    page.locator("[data-shows='0']").focus()
    page.keyboard.press("Space")
    assert not any(lines.nth(i).is_visible() for i in range(lines.count()))
    assert page.locator("#density .panel:not([hidden]) [data-series='1']").first.is_visible()
    page.keyboard.press("Space")
    assert lines.first.is_visible()
    page.get_by_role("button", name="None").press("Enter")
    assert not any(part.is_visible() for part in page.locator("[data-series]").all())
    page.get_by_role("button", name="All series").press("Enter")
    assert lines.first.is_visible()


def test_seeds_are_hidden_and_shown(opened):
    page = opened()
    seeds = page.locator("#density .panel:not([hidden]) [data-part='seeds']").first
    assert seeds.is_visible()
    page.locator("#seeds").press("Space")
    assert not seeds.is_visible()


def test_the_axis_of_cost_is_switched_by_arrow_keys(opened):
    page = opened()
    shown = page.locator("#cost .panel:visible")
    assert shown.count() == 1 and "epochs trained" in shown.locator("svg").first.text_content()
    page.locator("#cost input[type=radio]").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert shown.count() == 1 and "zeros counted" in shown.locator("svg").first.text_content()
    page.reload()  # what was chosen is kept
    assert "zeros counted" in shown.locator("svg").first.text_content()


def test_published_points_are_switched(opened):
    page = opened()
    first, second = (page.locator(f"#density .panel:visible [data-overlay='{k}']").first for k in (0, 1))
    assert first.is_visible() and not second.is_visible()
    page.locator("#published").select_option("1")
    assert second.is_visible() and not first.is_visible()
    page.locator("#published").select_option("")
    assert not second.is_visible()


def test_a_figure_is_saved_as_svg_that_stands_alone(opened):
    page = opened(scheme="dark")
    page.locator("[data-shows='0']").uncheck()
    with page.expect_download() as download:
        page.locator("#density .panel:visible button.save").press("Enter")
    assert download.value.suggested_filename.endswith(".svg")
    text = download.value.path().read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and root.get("width") == "700"
    assert "var(" not in text and 'data-series="0"' not in text and 'data-series="1"' in text
    assert "#d55e00" in text  # the light theme's, on white


def test_tables_are_saved_as_csv_and_latex(opened):
    page = opened()
    for kind, begins in (("CSV", "series,"), ("LaTeX", "% \\usepackage{booktabs}")):
        with page.expect_download() as download:
            page.locator("#verdict").get_by_role("link", name=re.compile(kind)).click()
        assert download.value.path().read_text(encoding="utf-8").startswith(begins)


def test_on_paper_there_are_figures_and_no_controls(opened):
    page = opened(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for gone in (".controls", "nav", ".save >> nth=0", ".files >> nth=0"):
        assert not page.locator(gone).is_visible()
    assert page.locator("#density svg").first.is_visible()
    assert page.pdf().startswith(b"%PDF")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 718


def test_a_screen_reader_finds_names_and_structure(opened):
    page = opened()
    assert page.locator("h1").count() == 1 and page.locator("main").count() == 1
    for drawn in page.locator("svg[role=img]").all():
        assert len(drawn.get_attribute("aria-label")) > 20
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, summary, a")]
        .filter((e) => !(e.innerText || e.textContent || e.labels?.[0]?.textContent || "").trim()).length"""
    )
    assert unnamed == 0
    assert page.locator("table").evaluate_all(
        "tables => tables.every(t => t.caption && t.querySelector('th[scope=row]'))"
    )


def test_without_javascript_all_is_readable(chromium, opened, place):
    opened()
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((place / "page.html").as_uri())
    for useless in ("form.controls", "fieldset.choice >> nth=0", "button.save >> nth=0"):
        assert not page.locator(useless).is_visible()
    assert page.locator("#cost .panel >> visible=true").count() == page.locator("#cost .panel").count() > 1
    context.close()


@pytest.mark.slow
def test_a_thousand_runs_do_not_stutter(chromium, make_study, tmp_path):
    lost = dict.fromkeys(
        ("fine-tuning", "weight-rewinding", "lr-rewinding", "lottery-ticket", "cyclic-restart"), 0.1
    )
    (tmp_path / "page.html").write_text(make_page(make_study(lost, ts=(5, 10, 15, 20), seeds=50, rounds=8)))
    page = chromium.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    spent = page.evaluate(
        """async () => {
        const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        const times = [];
        for (const box of [...document.querySelectorAll("[data-shows]")].slice(0, 8)) {
          await frame();
          const began = performance.now();
          box.click();
          document.body.offsetHeight;
          await frame();
          times.push(performance.now() - began);
        }
        return times.sort((a, b) => a - b)[4];
      }"""
    )
    page.close()
    assert spent < 250  # milliseconds to the next picture, on a busy machine without a graphics card
