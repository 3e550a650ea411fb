"""The form on a phone, by keyboard alone, for screen readers, in light and dark."""

import pytest

from .acting import field, settled, tab, values
from .served import PHONE

pytestmark = pytest.mark.thorough

WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# What a finger or a pointer is meant to hit: inside the width, and at least 24 px each way (WCAG 2.2, 2.5.8).
MISSED = """() => [...document.querySelectorAll('button, input, select, textarea, summary, a')].filter(each => {
  if (!each.checkVisibility() || each.closest('.tabs') || each.tabIndex < 0 || each.matches('.skip')) return false;
  const box = each.closest('label.option')?.getBoundingClientRect() ?? each.getBoundingClientRect();
  return box.left < -1 || box.right > innerWidth + 1 || box.width < 24 || box.height < 24;
}).map(each => each.outerHTML.slice(0, 120))"""
UNNAMED = """() => [...document.querySelectorAll('button, input, select, textarea, [role=group], fieldset')].filter(each => {
  const by = each.getAttribute('aria-labelledby')?.split(' ').map(id => document.getElementById(id)?.textContent).join('');
  const labels = [...(each.labels ?? [])].map(label => label.textContent).join('');
  const legend = each.querySelector(':scope > legend')?.textContent;
  return !(each.ariaHidden === 'true' || each.getAttribute('aria-label') || by || labels || legend || (each.tagName === 'BUTTON' && each.textContent.trim()));
}).map(each => each.outerHTML.slice(0, 120))"""
TWICE = """() => { const ids = [...document.querySelectorAll('[id]')].map(each => each.id);
  return ids.filter((id, place) => ids.indexOf(id) !== place); }"""
# Text against what is behind it (WCAG 2.2, 1.4.3): 4.5, and 3 for large text.
FAINT = """() => {
  const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return {r, g, b, a}; };
  const over = (top, under) => ({ a: 1, ...Object.fromEntries(['r', 'g', 'b'].map(c => [c, top[c] * top.a + under[c] * (1 - top.a)])) });
  const light = ({r, g, b}) => { const [x, y, z] = [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * x + .7152 * y + .0722 * z; };
  const behind = each => { for (const layers = []; ; each = each.parentElement) {
    if (!each) return layers.reduceRight((under, top) => over(top, under), {r: 255, g: 255, b: 255, a: 1});
    const colour = parse(getComputedStyle(each).backgroundColor); layers.push(colour);
    if (colour.a === 1) return layers.reduceRight((under, top) => over(top, under)); } };
  const found = new Set();
  for (const each of document.querySelectorAll('body *')) {
    const own = [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!(own || each.matches('input:not([type=checkbox], [type=radio], [type=range]), select, textarea')) || !each.checkVisibility() || each.closest('.hidden, :disabled, .skip, option')) continue;
    const style = getComputedStyle(each), under = behind(each);
    const ink = over({...parse(style.color), a: parse(style.color).a * Number(style.opacity)}, under);
    const [one, two] = [light(ink), light(under)].sort((a, b) => b - a);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    if ((one + .05) / (two + .05) < (large ? 3 : 4.5)) found.add(`${each.tagName}.${each.className} ${((one + .05) / (two + .05)).toFixed(2)}`);
  }
  return [...found]; }"""


def every_view(page):
    """Goes through all that the page can show, with problems, rows and free-form values in it."""
    page.get_by_role("button", name="Container of your own").click()
    page.locator('[id="f-tokenLimit.limits-add"]').click()
    page.get_by_text("Storage access, image").click()
    yield "essentials", settled(page)
    page.get_by_role("button", name="All values").click()
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    yield "all values", page
    result = page.get_by_role("button", name="Result", exact=False)
    if page.viewport_size["width"] < 800:
        result.click()
    for name in ("values.yaml", "Objects", "Rendered", "Files"):
        tab(page, name)
        page.evaluate("document.querySelectorAll('.object').forEach(each => each.open = true)")
        yield name, page


def test_a_phone_shows_all_of_it_without_scrolling_sideways(blank, opened):
    page = opened(blank, PHONE)
    for name, view in every_view(page):
        assert view.evaluate(WIDE) <= 0, name
        missed = view.evaluate(MISSED)
        assert missed == [], f"{name}: {missed}"


def test_a_phone_gets_from_the_problem_to_its_field(blank, opened):
    page = opened(blank, PHONE)
    page.get_by_role("button", name="LLM on a GPU").click()
    field(page, "Pods, at least").fill("0")
    settled(page)
    page.get_by_role("button", name="Result").click()
    assert not field(page, "Pods, at least").is_visible()
    page.locator("#problems").get_by_role("button", name="replicaCount").click()
    assert page.evaluate("document.activeElement.id") == "f-replicaCount"
    box = field(page, "Pods, at least").bounding_box()
    assert 0 < box["y"] < PHONE["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_contrast(blank, opened, scheme):
    page = opened(blank, scheme=scheme)
    for name, view in every_view(page):
        faint = view.evaluate(FAINT)
        assert faint == [], f"{name}: {faint}"
        assert view.evaluate(UNNAMED) == [], name
        assert view.evaluate(TWICE) == [], name


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def reach(page, wanted, key="Tab"):
    """Presses a key until the focus is on what is wanted, and can be seen to be."""
    for _ in range(60):
        page.keyboard.press(key)
        found = page.evaluate("[document.activeElement.id, document.activeElement.textContent]")
        if wanted in found:
            style = "(each => { const s = getComputedStyle(each.matches('[role=switch]') ? each.nextSibling : each); return s.outlineStyle; })"
            assert page.evaluate(f"{style}(document.activeElement)") != "none", wanted
            return
    raise AssertionError(f"the keyboard does not get to {wanted}")


def test_the_keyboard_alone_is_enough(blank, opened):
    page = opened(blank)
    reach(page, "f-$release")
    press(page, "ControlOrMeta+a")
    page.keyboard.type("qwen")
    reach(page, "f-replicaCount")
    press(page, "ControlOrMeta+a")
    page.keyboard.type("2")
    reach(page, "f-exposeModel.enabled")
    press(page, "Space")
    reach(page, "f-tokenLimit.limits-add")
    press(page, "Enter")
    page.keyboard.type("client")  # the first cell of the new row has the focus
    press(page, "Tab", "Tab", "Tab")
    page.keyboard.type("500")
    press(page, "Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove row 1"
    reach(page, "tab-values")
    press(page, "ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "tab-files"
    reach(page, "download-values")
    with page.expect_download():
        press(page, "Enter")
    found = values(page)
    assert found["replicaCount"] == 2
    assert found["exposeModel"] == {"enabled": True}
    assert found["tokenLimit"]["limits"][0] == {
        "scope": "client_ip",
        "unit": "tokens",
        "window": "minute",
        "amount": 500,
    }


def test_the_search_finds_values_by_name_and_by_what_they_are_for(blank, opened):
    page = opened(blank)
    press(page, "/")
    page.keyboard.type("gpu")
    seen = page.locator(".field:visible")
    assert seen.count() > 4
    assert page.locator('[data-path="inferenceservice.predictor.tolerations"]').is_visible()
    assert f"{seen.count()} values found" == page.locator("#said").inner_text()
    page.get_by_label("Search the values").fill("no such thing")
    assert seen.count() == 0
    assert page.get_by_text("No value has this").is_visible()
