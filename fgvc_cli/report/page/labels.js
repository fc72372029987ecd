// How the predictions fare against the labels.

const MOST_PAIRS = 12;
const MATRIX_CLASSES = 20;
const SURE = 0.9;

class Labels {
  /** ``show(truth, guess)`` filters the images by these class numbers, null for any. */
  constructor(rows, pictures, detail, show) {
    Object.assign(this, { rows, pictures, detail, show });
    this.count();
  }

  count() {
    const { rows } = this;
    this.ofClass = rows.classes.map(() => ({ labelled: 0, right: 0, guessed: 0, confused: new Map() }));
    this.pairs = new Map();
    Object.assign(this, { labelled: 0, right: 0, within: 0, sureWrong: 0, unanswered: 0 });
    for (let row = 0; row < rows.count; row++) {
      const truth = rows.truthOf(row)?.[0];
      if (truth === undefined) continue;
      if (!rows.answered(row)) {
        this.unanswered++;
        continue;
      }
      const guess = rows.best(row);
      this.labelled++;
      this.ofClass[truth].labelled++;
      this.ofClass[guess].guessed++;
      this.within += rows.index.subarray(row * rows.k, (row + 1) * rows.k).includes(truth);
      if (guess === truth) {
        this.right++;
        this.ofClass[truth].right++;
        continue;
      }
      this.sureWrong += rows.sure(row) >= SURE;
      const { confused } = this.ofClass[truth];
      confused.set(guess, (confused.get(guess) ?? 0) + 1);
      const key = truth * rows.classes.length + guess;
      if (!this.pairs.has(key)) this.pairs.set(key, { truth, guess, rows: [] });
      this.pairs.get(key).rows.push(row);
    }
  }

  draw(view) {
    const { rows } = this;
    view.append(this.facts());
    if (!this.labelled) return;
    const pairs = [...this.pairs.values()].sort((a, b) => b.rows.length - a.rows.length || a.truth - b.truth);
    view.append(el("h2", {}, "Most confused"));
    if (!pairs.length) view.append(el("p", { class: "note" }, "Not a single mistake."));
    view.append(el("div", { class: "pairs" }, ...pairs.slice(0, MOST_PAIRS).map((pair) => this.pair(pair))));
    if (pairs.length) view.append(el("h2", {}, "Confusion"), this.matrix());
    view.append(el("h2", {}, "Class by class"), this.table());
    const odd = rows.classes.length - rows.known;
    if (odd)
      view.append(
        el(
          "p",
          { class: "note" },
          `${plural(odd, "label is", "labels are")} no class of the model, and always counted as mistakes: `,
          rows.classes.slice(rows.known, rows.known + 8).join(", ") + (odd > 8 ? ", …" : "."),
        ),
      );
  }

  facts() {
    const share = (count) => (this.labelled ? `${((100 * count) / this.labelled).toFixed(1)} %` : "–");
    const fact = (value, text) => el("div", {}, el("dt", {}, text), el("dd", {}, value));
    const facts = [
      fact(share(this.right), `right, of ${plural(this.labelled, "labelled image")}`),
      this.rows.k > 1 ? fact(share(this.within), `among the ${this.rows.k} best guesses`) : null,
      fact(whole.format(this.labelled - this.right), "mistakes"),
      fact(whole.format(this.sureWrong), `of them at ${SURE * 100} % or surer`),
      this.unanswered ? fact(whole.format(this.unanswered), "labelled, but without a prediction") : null,
    ];
    return el("dl", { class: "facts", id: "accuracy" }, ...facts.filter(Boolean));
  }

  /** Rows that have a picture first, the surest of each. */
  examples(found, most) {
    const { rows } = this;
    return found
      .sort((a, b) => (rows.pictureAt[b] >= 0) - (rows.pictureAt[a] >= 0) || rows.sure(b) - rows.sure(a))
      .slice(0, most);
  }

  thumb(row) {
    const drawn = this.pictures.draw(row);
    drawn.setAttribute("preserveAspectRatio", "xMidYMid slice");
    return drawn;
  }

  pair({ truth, guess, rows: mistakes }) {
    const { rows } = this;
    const names = [rows.classes[truth], rows.classes[guess]];
    const right = [];
    for (let row = 0; row < rows.count && right.length < 50; row++) {
      if (rows.best(row) === guess && rows.truthOf(row)?.[0] === guess) right.push(row);
    }
    const strip = (label, found, most) => {
      const shown = this.examples(found, most);
      return el(
        "div",
        { class: "strip" },
        el("p", { class: "small" }, label),
        el(
          "div",
          {},
          ...shown.map((row, i) =>
            el(
              "button",
              {
                type: "button",
                class: "thumb",
                "aria-haspopup": "dialog",
                "aria-label": `${label}: ${rows.sourceOf(row)}, ${percent(rows.sure(row))}`,
                onclick: () => this.detail.open(shown, i),
              },
              this.thumb(row),
            ),
          ),
        ),
      );
    };
    return el(
      "article",
      { class: "pair" },
      el("h3", {}, names[0], el("span", { class: "taken" }, " taken for "), names[1]),
      el(
        "p",
        { class: "small" },
        `${whole.format(mistakes.length)} of ${plural(this.ofClass[truth].labelled, "image")}. `,
        el(
          "button",
          { type: "button", class: "link", onclick: () => this.show(truth, guess) },
          `Show ${mistakes.length === 1 ? "it" : "them"}`,
        ),
      ),
      el(
        "div",
        { class: "strips" },
        strip("the mistakes", [...mistakes], 4),
        right.length ? strip(`${names[1]}, rightly`, right, 2) : null,
      ),
    );
  }

  /** Rows are labels, columns guesses; of many classes, those with the most mistakes. */
  matrix() {
    const { rows } = this;
    const mistakes = rows.classes.map(() => 0);
    for (const { truth, guess, rows: found } of this.pairs.values()) {
      mistakes[truth] += found.length;
      mistakes[guess] += found.length;
    }
    const worst = [...rows.classes.keys()]
      .filter((i) => mistakes[i])
      .sort((a, b) => mistakes[b] - mistakes[a])
      .slice(0, MATRIX_CLASSES);
    const shown = worst.sort((a, b) => collator.compare(rows.classes[a], rows.classes[b]));
    const cell = (truth, guess) => {
      const { labelled, right, confused } = this.ofClass[truth];
      const count = truth === guess ? right : (confused.get(guess) ?? 0);
      const said = `${rows.classes[truth]}, taken for ${rows.classes[guess]}: ${count}`;
      const data = el(
        "td",
        { class: truth === guess ? "right" : count ? "wrong" : "" },
        count
          ? el(
              "button",
              { type: "button", "aria-label": said, title: said, onclick: () => this.show(truth, guess) },
              whole.format(count),
            )
          : null,
      );
      data.style.setProperty("--share", labelled ? count / labelled : 0);
      return data;
    };
    const head = el(
      "tr",
      {},
      el("th", { scope: "col" }, "label ↓ guess →"),
      ...shown.map((i) => el("th", { scope: "col", class: "turned" }, el("span", {}, rows.classes[i]))),
    );
    const body = shown.map((truth) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, rows.classes[truth]),
        ...shown.map((guess) => cell(truth, guess)),
      ),
    );
    const some =
      mistakes.filter(Boolean).length > shown.length
        ? `The ${shown.length} classes with the most mistakes.`
        : "All classes with a mistake.";
    return el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Confusion matrix" },
      el(
        "table",
        { class: "matrix" },
        el(
          "caption",
          {},
          `${some} A colour is the share of its row's label; a number shows its images.`,
        ),
        el("thead", {}, head),
        el("tbody", {}, ...body),
      ),
    );
  }

  table() {
    const { rows } = this;
    const share = (part, of) => (of ? `${((100 * part) / of).toFixed(0)} %` : "–");
    const seen = [...rows.classes.keys()].filter((i) => this.ofClass[i].labelled || this.ofClass[i].guessed);
    const score = (i) => (this.ofClass[i].labelled ? this.ofClass[i].right / this.ofClass[i].labelled : 2);
    const shown = seen
      .sort((a, b) => score(a) - score(b) || this.ofClass[b].labelled - this.ofClass[a].labelled)
      .slice(0, 500);
    const body = shown.map((i) => {
      const { labelled, right, guessed, confused } = this.ofClass[i];
      const [worst] = [...confused].sort((a, b) => b[1] - a[1]);
      return el(
        "tr",
        {},
        el(
          "th",
          { scope: "row" },
          el("button", { type: "button", class: "link", onclick: () => this.show(i, null) }, rows.classes[i]),
        ),
        el("td", {}, whole.format(labelled)),
        el("td", {}, share(right, labelled)),
        el("td", {}, share(right, guessed)),
        el("td", { class: "text" }, worst ? `${rows.classes[worst[0]]} (${worst[1]})` : ""),
      );
    });
    const names = ["Class", "labelled", "found", "of its guesses right", "most often taken for"];
    const cut =
      seen.length > shown.length
        ? `The ${shown.length} worst of ${seen.length} classes.`
        : "The worst first.";
    return el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Classes" },
      el(
        "table",
        { class: "classes" },
        el("caption", {}, cut),
        el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...body),
      ),
    );
  }
}
