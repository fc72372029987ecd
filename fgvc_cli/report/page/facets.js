// The filters: each shows how many rows its choices would leave, and so is a histogram too.

const MOST_CLASSES = 200; // in the list at once

class Facets {
  /** ``change()`` is called when a filter was set. */
  constructor(rows, selection, change) {
    Object.assign(this, { rows, selection, change });
    this.statusTicks = this.ticks($("statuses"), this.statusOrder(), selection.statuses, (i) =>
      statusText(rows.statuses[i]),
    );
    this.classCounts = new Uint32Array(rows.classes.length);
    for (let row = 0; row < rows.count; row++) rows.toldOf(row).forEach((i) => this.classCounts[i]++);
    this.classOrder = [...rows.classes.keys()]
      .filter((i) => this.classCounts[i])
      .sort(
        (a, b) =>
          this.classCounts[b] - this.classCounts[a] || collator.compare(rows.classes[a], rows.classes[b]),
      );
    this.listClasses();
    this.listReviews();
    $("facet-wrong").hidden = !rows.labelled;
    if (rows.several) $("class-legend").textContent = "Label told";
    this.listen();
    this.bars = Array.from({ length: BINS }, (_, bin) =>
      ["all", "left"].map((kind) => svg("rect", { x: bin * 10 + 0.5, width: 9, class: kind })),
    );
    this.chart = svg(
      "svg",
      { viewBox: "0 0 200 60", preserveAspectRatio: "none", role: "img" },
      ...this.bars.flat(),
    );
    $("histogram").append(this.chart);
  }

  /** What is fine first, then failures by how many there are. */
  statusOrder() {
    const counts = new Uint32Array(this.rows.statuses.length);
    this.rows.status.forEach((status) => counts[status]++);
    const rank = (i) => ["ok", "unsure", "unknown"].indexOf(this.rows.statuses[i]);
    return [...counts.keys()].sort(
      (a, b) => (rank(b) >= 0) - (rank(a) >= 0) || rank(a) - rank(b) || counts[b] - counts[a],
    );
  }

  ticks(list, numbers, chosen, name) {
    const ticks = new Map();
    list.replaceChildren(
      ...numbers.map((i) => {
        const box = el("input", { type: "checkbox" });
        box.checked = chosen.has(i);
        box.addEventListener("change", () => {
          if (box.checked) chosen.add(i);
          else chosen.delete(i);
          this.change();
        });
        const count = el("span", { class: "count" });
        const label = el(
          "label",
          { class: "tick" },
          box,
          el("span", { class: "name", title: name(i) }, name(i)),
          count,
        );
        ticks.set(i, { label, count, box });
        return el("li", {}, label);
      }),
    );
    return ticks;
  }

  listReviews() {
    $("facet-review").hidden = !this.rows.review;
    if (!this.rows.review) return;
    const { reviews } = this.selection;
    this.reviewTicks = this.ticks($("reviews"), Object.keys(STATES), reviews, (state) => STATES[state]);
  }

  listClasses() {
    const wanted = $("class-text").value.trim().toLowerCase();
    const { classes } = this.rows;
    const fitting = this.classOrder.filter(
      (i) => classes[i].toLowerCase().includes(wanted) || this.selection.classes.has(i),
    );
    const shown = fitting.slice(0, MOST_CLASSES);
    this.classTicks = this.ticks($("classes"), shown, this.selection.classes, (i) => classes[i]);
    const more = fitting.length - shown.length;
    $("more-classes").textContent = more
      ? `and ${plural(more, "more class", "more classes")}; type to find them`
      : shown.length
        ? ""
        : "no such class";
  }

  listen() {
    const { selection } = this;
    // Typing on is not to wait for a hundred thousand rows.
    const soon = (act) => {
      let timer;
      return () => {
        clearTimeout(timer);
        timer = setTimeout(act, 120);
      };
    };
    $("text").addEventListener(
      "input",
      soon(() => {
        selection.text = $("text").value;
        this.change();
      }),
    );
    $("class-text").addEventListener(
      "input",
      soon(() => {
        this.listClasses();
        this.update();
      }),
    );
    for (const [name, other] of [
      ["least", "most"],
      ["most", "least"],
    ]) {
      const slider = $(name);
      slider.addEventListener(
        "input",
        soon(() => {
          selection[name] = slider.value / 100;
          // One handle pushes the other.
          if (selection.least > selection.most) selection[other] = selection[name];
          this.change();
        }),
      );
    }
    $("wrong").addEventListener("change", () => {
      selection.wrongOnly = $("wrong").checked;
      this.change();
    });
    $("form").addEventListener("submit", (event) => event.preventDefault());
    $("form").addEventListener("reset", (event) => {
      event.preventDefault();
      this.clear();
      this.change();
    });
  }

  clear() {
    this.selection.clear();
    $("class-text").value = "";
    this.show();
  }

  /** Set the controls to what the selection says. */
  show() {
    const { selection } = this;
    $("text").value = selection.text;
    $("wrong").checked = selection.wrongOnly;
    this.statusTicks = this.ticks($("statuses"), this.statusOrder(), selection.statuses, (i) =>
      statusText(this.rows.statuses[i]),
    );
    this.listClasses();
    this.listReviews();
  }

  /** Counts, bars and ranges as the filters are now. */
  update() {
    const { rows, selection } = this;
    const statuses = new Uint32Array(rows.statuses.length);
    selection.passingOthers("status", (row) => statuses[rows.status[row]]++);
    this.setCounts(this.statusTicks, statuses);
    const classes = new Uint32Array(rows.classes.length);
    selection.passingOthers("class", (row) => rows.toldOf(row).forEach((i) => classes[i]++));
    this.setCounts(this.classTicks, classes);
    if (rows.labelled) {
      let wrong = 0;
      selection.passingOthers("wrong", (row) => (wrong += rows.wrong(row)));
      $("facet-wrong").querySelector(".count").textContent = whole.format(wrong);
    }
    if (rows.review) {
      const states = Object.fromEntries(Object.keys(STATES).map((state) => [state, 0]));
      selection.passingOthers("review", (row) => states[selection.stateOf(row)]++);
      this.setCounts(this.reviewTicks, states);
    }
    this.drawHistogram();
    for (const name of ["least", "most"]) {
      $(name).value = Math.round(selection[name] * 100);
      const text = `${Math.round(selection[name] * 100)} %`;
      document.querySelector(`output[for=${name}]`).textContent = text;
      $(name).setAttribute("aria-valuetext", text);
    }
    $("active").textContent = selection.active ? `(${selection.active} set)` : "";
    // Not disabled: that would take the focus from whoever pressed it.
    $("clear").setAttribute("aria-disabled", !selection.active);
  }

  setCounts(ticks, counts) {
    const most = Math.max(1, ...[...ticks.keys()].map((i) => counts[i]));
    for (const [i, { label, count, box }] of ticks) {
      count.textContent = whole.format(counts[i]);
      label.style.setProperty("--share", counts[i] / most);
      label.classList.toggle("zero", counts[i] === 0 && !box.checked);
    }
  }

  drawHistogram() {
    const { rows, selection } = this;
    const bins = new Uint32Array(BINS);
    const binOf = (row) => Math.min(BINS - 1, Math.floor(rows.sure(row) * BINS));
    selection.passingOthers("prob", (row) => rows.answered(row) && bins[binOf(row)]++);
    const most = Math.max(1, ...bins);
    bins.forEach((count, bin) => {
      // The square root keeps the few unsure rows in sight beside the many sure ones.
      const height = count ? Math.max(1.5, 58 * Math.sqrt(count / most)) : 0;
      const within = (bin + 1) / BINS > selection.least && bin / BINS < selection.most + 1e-9;
      const [all, left] = this.bars[bin];
      for (const bar of [all, left]) {
        bar.setAttribute("y", 60 - height);
        bar.setAttribute("height", height);
      }
      left.style.visibility = within ? "visible" : "hidden";
    });
    const total = bins.reduce((sum, count) => sum + count, 0);
    const half = bins.slice(0, BINS / 2).reduce((sum, count) => sum + count, 0);
    const last = bins[BINS - 1];
    const said = `${whole.format(half)} below 50 %, ${whole.format(last)} above 95 %`;
    const name = `Histogram of probabilities (heights as square roots): of ${plural(total, "row")}, ${said}`;
    this.chart.setAttribute("aria-label", name);
  }
}
