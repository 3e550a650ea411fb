"""What a person does with the form: types, clicks, waits until it is rendered, takes files."""

import yaml


def settled(page):
    """Waits until what was typed last is rendered."""
    page.locator("#status:not([data-state=busy])").wait_for()
    return page


def field(page, label):
    return page.get_by_label(label, exact=True)


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def shown(page, name):
    """The text of a tab."""
    settled(page)
    tab(page, name)
    return page.locator("#shown").inner_text()


def values(page):
    return yaml.safe_load(shown(page, "values.yaml"))


def objects(page):
    """The rendered objects by kind and name."""
    found = [each for each in yaml.safe_load_all(shown(page, "Rendered")) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def download(page, what):
    settled(page)
    tab(page, "Files")
    with page.expect_download() as given:
        page.locator(f"#download-{what}").click()
    return given.value.path().read_bytes().decode(), given.value.suggested_filename


def problem_at(page, path):
    """The message at one field."""
    settled(page)
    return page.locator(f'[id="f-{path}-problems"]').inner_text()
