// How a model that tells several labels per image fares against theirs.

class LabelSets {
  /** ``show(truth, guess)`` filters the images by these label numbers, null for any. */
  constructor(rows, show) {
    Object.assign(this, { rows, show });
    this.count();
  }

  count() {
    const { rows } = this;
    this.ofLabel = rows.classes.map(() => ({ there: 0, told: 0, right: 0 }));
    Object.assign(this, { labelled: 0, exact: 0, missed: 0, added: 0, unanswered: 0, none: 0 });
    for (let row = 0; row < rows.count; row++) {
      const truth = rows.truthOf(row);
      if (truth === null) continue;
      if (!rows.answered(row)) {
        this.unanswered++;
        continue;
      }
      const told = rows.toldOf(row);
      this.labelled++;
      this.none += truth.length === 0;
      this.exact += !rows.wrong(row);
      this.missed += truth.some((label) => !told.includes(label));
      this.added += told.some((label) => !truth.includes(label));
      for (const label of truth) this.ofLabel[label].there++;
      for (const label of told) {
        this.ofLabel[label].told++;
        this.ofLabel[label].right += truth.includes(label);
      }
    }
  }

  draw(view) {
    const { rows } = this;
    const least = `${rows.told_above * 100} %`;
    view.append(this.facts());
    const measure =
      "An image is right when the labels told are exactly its labels (exact match). " +
      `Told are those above ${least} among its ${rows.k} most probable ones; ` +
      "an image is shown with the probability of the first of these.";
    view.append(el("p", { class: "note", id: "measure" }, measure));
    if (rows.cut) {
      const cut = `In ${plural(rows.cut, "row")} all ${rows.k} are above ${least}: `;
      view.append(el("p", { class: "note" }, `${cut}more may have been, which this file does not hold.`));
    }
    if (!this.labelled) return;
    view.append(el("h2", {}, "Label by label"), this.table());
    const odd = rows.classes.slice(rows.known);
    if (odd.length) {
      const unknown = `${plural(odd.length, "label is", "labels are")} unknown to the model`;
      const named = odd.slice(0, 8).join(", ") + (odd.length > 8 ? ", …" : ".");
      view.append(el("p", { class: "note" }, `${unknown}, and always counted as missed: ${named}`));
    }
  }

  /** Of a label: twice what is rightly told, of what is told and what is there. */
  f1({ there, told, right }) {
    return there + told ? (2 * right) / (there + told) : 0;
  }

  facts() {
    const fact = (value, text) => el("div", {}, el("dt", {}, text), el("dd", {}, value));
    const share = (value) => (this.labelled ? `${(100 * value).toFixed(1)} %` : "–");
    const seen = this.ofLabel.filter(({ there }) => there);
    const macro = seen.reduce((sum, label) => sum + this.f1(label), 0) / (seen.length || 1);
    const all = { there: 0, told: 0, right: 0 };
    for (const label of this.ofLabel) for (const name of Object.keys(all)) all[name] += label[name];
    const facts = [
      fact(
        share(this.exact / this.labelled),
        `exactly right, of ${plural(this.labelled, "labelled image")}`,
      ),
      fact(share(macro), "macro F1"),
      fact(share(this.f1(all)), "micro F1"),
      fact(whole.format(this.missed), "miss a label"),
      fact(whole.format(this.added), "have a label too many"),
      this.none ? fact(whole.format(this.none), "really without a label") : null,
      this.unanswered ? fact(whole.format(this.unanswered), "labelled, but without a prediction") : null,
    ];
    return el("dl", { class: "facts", id: "accuracy" }, ...facts.filter(Boolean));
  }

  table() {
    const { rows } = this;
    const share = (part, of) => (of ? `${((100 * part) / of).toFixed(0)} %` : "–");
    const { ofLabel } = this;
    const seen = [...rows.classes.keys()].filter((i) => ofLabel[i].there || ofLabel[i].told);
    const worst = (a, b) => this.f1(a) - this.f1(b) || b.there - a.there;
    const shown = seen.sort((a, b) => worst(ofLabel[a], ofLabel[b])).slice(0, 500);
    const body = shown.map((i) => {
      const { there, told, right } = ofLabel[i];
      const attributes = { type: "button", class: "link", onclick: () => this.show(i, null) };
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, el("button", attributes, rows.classes[i])),
        el("td", {}, whole.format(there)),
        el("td", {}, share(right, there)),
        el("td", {}, whole.format(told)),
        el("td", {}, share(right, told)),
        el("td", {}, share(this.f1(ofLabel[i]), 1)),
      );
    });
    const names = ["Label", "images with it", "found", "told of", "of these right", "F1"];
    const cut =
      seen.length > shown.length
        ? `The ${shown.length} worst of ${seen.length} labels.`
        : "The worst first.";
    return el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Labels" },
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
