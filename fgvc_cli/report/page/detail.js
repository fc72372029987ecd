// One image, large, with all that is known of it.

class Detail {
  /** ``closed(position)`` is told where the reader ended. */
  constructor(rows, pictures, closed) {
    Object.assign(this, { rows, pictures, closed, dialog: $("detail"), order: [], position: 0 });
    this.dialog.addEventListener("close", () => this.closed(this.position));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    this.dialog.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        this.move(step);
      }
    });
  }

  open(order, position) {
    this.order = order;
    this.position = position;
    this.fill();
    this.dialog.showModal();
  }

  move(step) {
    const position = this.position + step;
    if (position < 0 || position >= this.order.length) return;
    this.position = position;
    const focused = document.activeElement?.dataset.step;
    this.fill();
    const button = this.dialog.querySelector(`[data-step="${focused ?? "close"}"]`);
    (button.disabled ? this.dialog.querySelector("[data-step=close]") : button).focus();
  }

  fill() {
    const row = this.order[this.position];
    const { rows, pictures } = this;
    const step = (text, name, by) =>
      el(
        "button",
        {
          "aria-label": name,
          "data-step": by,
          disabled: !this.order.length || this.position + by < 0 || this.position + by >= this.order.length,
          onclick: () => this.move(by),
        },
        text,
      );
    const bar = el(
      "div",
      { class: "bar" },
      step("←", "Previous image", -1),
      step("→", "Next image", 1),
      el(
        "span",
        { class: "place", role: "status" },
        `${whole.format(this.position + 1)} of ${whole.format(this.order.length)}`,
      ),
      el(
        "button",
        { "data-step": "close", "aria-label": "Close", autofocus: true, onclick: () => this.dialog.close() },
        "✕",
      ),
    );
    const name = rows.answered(row) ? rows.nameOf(row) : statusText(rows.statusOf(row));
    const figures = el("div", { class: "figures" }, this.figure(row, false));
    if (pictures.hasHeat(row)) figures.append(this.figure(row, true));
    this.dialog.replaceChildren(
      bar,
      el("h2", { id: "detail-name" }, name),
      figures,
      this.guesses(row),
      this.facts(row),
    );
    this.extend?.(row);
  }

  figure(row, heat) {
    const drawn = this.pictures.draw(row, { heat });
    const { rows } = this;
    let text = "No picture is stored of this row.";
    if (!rows.answered(row)) text = rows.error[row] || "no prediction";
    else if (heat) text = "Attention, palest where the model looked most";
    else if (rows.pictureAt[row] >= 0) {
      const parts = rows.partsOf(row).length;
      text = rows.picture_cropped[rows.pictureAt[row]] ? "The object, as it was stored" : "The image";
      if (rows.givenOf(row)) text += " round the given box,";
      if (rows.boxAt(rows.box, row))
        text += parts ? " with the boxes of the object and its parts" : " with the object's box";
    }
    return el("figure", {}, drawn, el("figcaption", {}, text, heat ? this.legend() : null));
  }

  legend() {
    const canvas = el("canvas", { width: 256, height: 1, class: "legend", "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(256, 1);
    for (let i = 0; i < 256; i++)
      pixels.data.set([...this.rows.colors.subarray(i * 3, i * 3 + 3), 255], i * 4);
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  guesses(row) {
    const { rows } = this;
    if (!rows.answered(row)) return el("p", { class: "note" }, rows.error[row] || "no prediction");
    const list = el("ol", { class: "guesses", "aria-label": "Most probable classes" });
    for (let rank = 0; rank < rows.k; rank++) {
      const index = rows.index[row * rows.k + rank];
      if (index < 0) continue;
      const prob = rows.prob[row * rows.k + rank];
      const right = rows.truthOf(row)?.includes(index);
      const item = el(
        "li",
        { class: right ? "right" : "" },
        el("span", { class: "name" }, rows.classes[index], right ? " ✓" : ""),
        el("span", { class: "prob" }, percent(prob)),
        el("span", { class: "meter", "aria-hidden": "true" }),
      );
      item.style.setProperty("--share", prob);
      list.append(item);
    }
    return list;
  }

  facts(row) {
    const { rows } = this;
    const box = rows.boxAt(rows.box, row);
    const facts = [
      ["File", rows.sourceOf(row)],
      ["Status", statusText(rows.statusOf(row))],
    ];
    if (rows.labelled) {
      const names = rows.truthOf(row)?.map((i) => rows.classes[i]);
      facts.push([rows.several ? "Labels" : "Label", names ? names.join(" + ") || "none" : "not known"]);
    }
    if (rows.answered(row)) facts.push(["Size", `${rows.size[row * 2]} × ${rows.size[row * 2 + 1]} px`]);
    const edges = (of) => `${of.map((edge) => edge.toFixed(1)).join(", ")} px (left, top, right, bottom)`;
    if (rows.givenOf(row)) facts.push(["Given box", edges(rows.givenOf(row))]);
    if (box) facts.push(["Object's box", edges(box)]);
    return el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  }
}
