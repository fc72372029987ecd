// A list of cards of which only those on screen exist, so that a million rows scroll like ten.

const GAP_REM = 0.9;
const TEXT_REM = 5.2;
const SHAPE = 0.8; // height of a card's picture per width
const MAX_SCROLL_PX = 8e6; // browsers lose exactness beyond, and cut off at twice to four times that

class Grid {
  /** ``build(row)`` makes the button of a card; ``open(position)`` is called when it is pressed. */
  constructor(list, { build, open }) {
    Object.assign(this, { list, build, open, rows: new Uint32Array(), cards: new Map(), current: 0 });
    addEventListener("scroll", () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.measure()).observe(list.parentElement);
    list.addEventListener("keydown", (event) => this.onKey(event));
    list.addEventListener("focusin", (event) => {
      const card = event.target.closest("li");
      if (card) this.setCurrent(Number(card.dataset.position));
    });
  }

  show(rows) {
    this.rows = rows;
    this.current = 0;
    this.reset();
    const above = this.listTop - this.offset;
    if (scrollY > above) scrollTo(0, above);
    this.measure();
  }

  /** Build all cards anew, where they are. */
  reset() {
    for (const card of this.cards.values()) card.remove();
    this.cards.clear();
  }

  /** Build the card of a row anew, where it is. */
  rebuild(row) {
    for (const [position, card] of this.cards) {
      if (this.rows[position] !== row) continue;
      const focused = card.contains(document.activeElement);
      card.replaceChildren(this.button(position));
      if (focused) card.firstChild.focus({ preventScroll: true });
    }
  }

  get listTop() {
    return this.list.getBoundingClientRect().top + scrollY;
  }

  /** What covers the top of the list while it scrolls. */
  get offset() {
    const bar = document.querySelector(".toolbar");
    return getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;
  }

  measure() {
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const least = parseFloat(getComputedStyle(this.list).getPropertyValue("--card")) * rem;
    const width = this.list.clientWidth;
    if (!width) return;
    this.gap = GAP_REM * rem;
    this.columns = Math.max(1, Math.floor((width + this.gap) / (least + this.gap)));
    this.cardWidth = (width - this.gap * (this.columns - 1)) / this.columns;
    const pictureHeight = Math.round(this.cardWidth * SHAPE);
    this.rowHeight = pictureHeight + TEXT_REM * rem + this.gap;
    this.total = Math.ceil(this.rows.length / this.columns) * this.rowHeight;
    const height = Math.min(this.total, MAX_SCROLL_PX);
    this.ratio = this.total > height ? (this.total - innerHeight) / (height - innerHeight) : 1;
    this.list.style.height = `${height}px`;
    this.list.style.setProperty("--picture", `${pictureHeight}px`);
    this.render();
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.render();
    });
  }

  render() {
    if (!this.columns) return;
    const scrolled = Math.max(0, scrollY - this.listTop);
    const virtual = scrolled * this.ratio;
    const first = Math.max(0, Math.floor(virtual / this.rowHeight) - 1) * this.columns;
    const last = Math.min(
      this.rows.length,
      Math.ceil((virtual + innerHeight) / this.rowHeight + 1) * this.columns,
    );
    const holdsFocus = this.list.contains(document.activeElement);
    for (const [position, card] of this.cards) {
      // The card with the focus stays, or the focus would be lost with it.
      if ((position < first || position >= last) && !(holdsFocus && position === this.current)) {
        card.remove();
        this.cards.delete(position);
      }
    }
    for (let position = first; position < last; position++) this.card(position);
    // The way in for the Tab key is on screen.
    if (!this.cards.has(this.current) && first < last)
      this.setCurrent(Math.min(first + this.columns, last - 1));
    for (const [position, card] of this.cards) {
      const x = (position % this.columns) * (this.cardWidth + this.gap);
      const y = Math.floor(position / this.columns) * this.rowHeight - virtual + scrolled;
      card.style.transform = `translate(${x}px, ${y}px)`;
      card.style.width = `${this.cardWidth}px`;
    }
  }

  card(position) {
    if (this.cards.has(position)) return this.cards.get(position);
    const place = { "aria-setsize": this.rows.length, "aria-posinset": position + 1 };
    const card = el("li", place, this.button(position));
    card.dataset.position = position;
    // In the order of the positions, which is that of reading.
    const next = [...this.list.children].find((other) => Number(other.dataset.position) > position);
    this.list.insertBefore(card, next ?? null);
    this.cards.set(position, card);
    return card;
  }

  button(position) {
    const button = this.build(this.rows[position]);
    button.tabIndex = position === this.current ? 0 : -1;
    button.addEventListener("click", () => this.open(position));
    return button;
  }

  setCurrent(position) {
    this.cards.get(this.current)?.firstChild.setAttribute("tabindex", "-1");
    this.current = position;
    this.cards.get(position)?.firstChild.setAttribute("tabindex", "0");
  }

  focus(position) {
    if (!this.rows.length) return;
    position = Math.max(0, Math.min(position, this.rows.length - 1));
    const top = Math.floor(position / this.columns) * this.rowHeight;
    const virtual = (scrollY - this.listTop) * this.ratio;
    let wanted = virtual;
    if (top < virtual + this.offset + this.gap) wanted = top - this.offset - this.gap;
    else if (top + this.rowHeight > virtual + innerHeight) wanted = top + this.rowHeight - innerHeight;
    if (wanted !== virtual) scrollTo(0, this.listTop + wanted / this.ratio);
    this.render();
    const card = this.card(position);
    this.render();
    card.firstChild.focus({ preventScroll: true });
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const screen = Math.max(1, Math.floor(innerHeight / this.rowHeight)) * this.columns;
    const moves = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: this.columns,
      ArrowUp: -this.columns,
      PageDown: screen,
      PageUp: -screen,
      Home: -Infinity,
      End: Infinity,
    };
    const move = moves[event.key];
    if (move === undefined) return;
    event.preventDefault();
    const target = this.current + move;
    // Up and down keep to their column.
    if (Math.abs(move) === this.columns && (target < 0 || target >= this.rows.length)) return;
    this.focus(target);
  }
}
