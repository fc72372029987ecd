"""Someone who reads a page: what they press, and what they see."""

from __future__ import annotations

import time

from selenium.webdriver.common.action_chains import ActionChains

WAIT_S = 10.0


class Reader:
    def __init__(self, browser):
        self.browser = browser
        browser.set_window_size(1280, 1000)

    def open(self, path):
        started = time.monotonic()
        self.browser.get(path.as_uri())
        self.wait("document.body.dataset.ready === ''")
        return time.monotonic() - started

    def js(self, script, *arguments):
        return self.browser.execute_script(f"return {script}", *arguments)

    def wait(self, condition):
        end = time.monotonic() + WAIT_S
        while not self.js(condition):
            assert time.monotonic() < end, f"never came: {condition}"
            time.sleep(0.02)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def keys(self, *keys):
        ActionChains(self.browser).send_keys(*keys).perform()

    def counts(self, expected):
        self.wait(f"document.getElementById('count').textContent === {expected!r}")

    def cards(self):
        """(class, path) of each card in the list, in order."""
        texts = "['.name', '.path'].map((part) => card.querySelector(part).textContent)"
        cards = self.js(f"[...document.querySelectorAll('#photos li')].map((card) => {texts})")
        return [tuple(card) for card in cards]

    def paths(self):
        return [path for _, path in self.cards()]

    def tick(self, text):
        self.find(f"label.tick:has([title='{text}']) input").click()

    @property
    def position(self):
        """Of the card with the focus, from 1; None where there is none."""
        place = self.js("document.activeElement.closest('li')?.getAttribute('aria-posinset')")
        return place and int(place)


def contrast(one: str, other: str) -> float:
    """Of two colours ``#rrggbb``, by WCAG 2."""

    def luminance(colour: str) -> float:
        shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
