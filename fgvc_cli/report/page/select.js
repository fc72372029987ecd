// Which rows are shown, and in which order.

const FACETS = { text: 1, status: 2, prob: 4, class: 8, truth: 16, wrong: 32, review: 64 };
const BINS = 20;

class Selection {
  constructor(rows) {
    this.rows = rows;
    this.orders = new Map();
    this.failing = new Uint8Array(rows.count);
    this.clear();
    this.order = "unsure";
  }

  clear() {
    this.text = "";
    this.statuses = new Set();
    this.classes = new Set();
    this.truths = new Set();
    this.least = 0;
    this.most = 1;
    this.wrongOnly = false;
    this.reviews = new Set();
  }

  /** How many filters are set. */
  get active() {
    const range = this.least > 0 || this.most < 1;
    return [
      this.text.trim(),
      this.statuses.size,
      this.classes.size,
      this.truths.size,
      range,
      this.wrongOnly,
      this.reviews.size,
    ].filter(Boolean).length;
  }

  /** Numbers of the rows that pass all filters, in order. */
  apply() {
    const { rows, failing } = this;
    const words = this.text.toLowerCase().split(/\s+/).filter(Boolean);
    const range = this.least > 0 || this.most < 1;
    for (let row = 0; row < rows.count; row++) {
      let bits = 0;
      if (words.length && !words.every((word) => rows.lowered[row].includes(word))) bits |= FACETS.text;
      if (this.statuses.size && !this.statuses.has(rows.status[row])) bits |= FACETS.status;
      // NaN, of a row without a prediction, is in no range.
      const sure = rows.sure(row);
      if (range && !(sure >= this.least && sure <= this.most)) bits |= FACETS.prob;
      if (this.classes.size && !rows.toldOf(row).some((i) => this.classes.has(i))) bits |= FACETS.class;
      if (this.truths.size && !rows.truthOf(row)?.some((i) => this.truths.has(i))) bits |= FACETS.truth;
      if (this.wrongOnly && !rows.wrong(row)) bits |= FACETS.wrong;
      if (this.reviews.size && !this.reviews.has(this.stateOf(row))) bits |= FACETS.review;
      failing[row] = bits;
    }
    return this.ordered(this.order).filter((row) => failing[row] === 0);
  }

  /** For a facet, what its choices would leave: calls ``each`` with every row that passes all others. */
  passingOthers(facet, each) {
    const others = ~FACETS[facet];
    for (let row = 0; row < this.rows.count; row++) {
      if ((this.failing[row] & others) === 0) each(row);
    }
  }

  /** All rows in one of ``ORDERS``; sorted once. */
  ordered(name) {
    if (!this.orders.has(name)) {
      const all = Uint32Array.from({ length: this.rows.count }, (_, row) => row);
      const compare = ORDERS[name].compare(this.rows);
      this.orders.set(name, compare ? all.sort((a, b) => compare(a, b) || a - b) : all);
    }
    return this.orders.get(name);
  }
}

const byText = (texts) => (a, b) => (texts[a] < texts[b] ? -1 : texts[a] > texts[b] ? 1 : 0);

/** Compares by a number, rows without a prediction last. */
const byNumber = (rows, number) => {
  const keys = Float64Array.from({ length: rows.count }, (_, row) =>
    rows.answered(row) ? number(row) : Infinity,
  );
  return (a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0);
};

const ORDERS = {
  unsure: {
    name: "unsure first",
    compare: (rows) => byNumber(rows, (row) => rows.sure(row) - (rows.statusOf(row) === "unknown")),
  },
  sure: { name: "sure first", compare: (rows) => byNumber(rows, (row) => -rows.sure(row)) },
  close: {
    name: "two best classes close first",
    reviewed: true,
    compare: (rows) => byNumber(rows, (row) => rows.sure(row) - rows.prob[row * rows.k + 1]),
  },
  mistakes: {
    name: "mistakes first, the surest on top",
    labelled: true,
    compare: (rows) => byNumber(rows, (row) => (rows.wrong(row) ? -rows.sure(row) : 1 - rows.sure(row))),
  },
  failed: {
    name: "failures first",
    compare: (rows) => (a, b) => rows.answered(a) - rows.answered(b) || byText(rows.error)(a, b),
  },
  class: {
    name: "class",
    compare: (rows) => {
      const place = new Int32Array(rows.classes.length);
      const sorted = [...rows.classes.keys()].sort((a, b) =>
        collator.compare(rows.classes[a], rows.classes[b]),
      );
      sorted.forEach((number, at) => (place[number] = at));
      return byNumber(rows, (row) => 2 * place[rows.best(row)] - rows.sure(row));
    },
  },
  path: { name: "path, A to Z", compare: (rows) => byText(rows.path) },
  backwards: { name: "path, Z to A", compare: (rows) => (a, b) => byText(rows.path)(b, a) },
  file: { name: "as predicted", compare: () => null },
};

const collator = new Intl.Collator("en", { numeric: true });
