// An image with its boxes, and the attention over it, in pixels of the image.

class Pictures {
  constructor(rows) {
    this.rows = rows;
    this.heats = new Map();
  }

  hasHeat(row) {
    return Boolean(this.rows.map && this.rows.pictureOf(row)?.heat);
  }

  /** What of the image the picture shows: [x, y, width, height]. */
  view(row) {
    const { rows } = this;
    const [width, height] = rows.size.subarray(row * 2, row * 2 + 2);
    const number = rows.pictureAt[row];
    if (number < 0) return [0, 0, width || 4, height || 3];
    const [x1, y1, x2, y2] = rows.picture_view.subarray(number * 4, number * 4 + 4);
    return [x1, y1, x2 - x1, y2 - y1];
  }

  /** Words for those who do not see the picture. */
  describe(row) {
    const { rows } = this;
    if (!rows.answered(row)) return `No picture: ${statusText(rows.statusOf(row))}`;
    const parts = rows.partsOf(row).length;
    const what =
      rows.pictureAt[row] < 0
        ? "Empty frame for"
        : rows.picture_cropped[rows.pictureAt[row]]
          ? "Object in"
          : "Image";
    const boxes = [
      rows.givenOf(row) && "the given box",
      rows.boxAt(rows.box, row) && "the object's box",
      parts && plural(parts, "part box", "part boxes"),
    ];
    return [`${what} ${rows.sourceOf(row)}`, ...boxes.filter(Boolean)].join(", ");
  }

  draw(row, { heat = false } = {}) {
    const { rows } = this;
    if (!rows.answered(row)) return this.failure(row);
    const [x, y, width, height] = this.view(row);
    const picture = rows.pictureOf(row);
    const drawn = svg("svg", {
      viewBox: `${x} ${y} ${width} ${height}`,
      role: "img",
      "aria-label": this.describe(row),
      class: "photo",
    });
    if (picture) {
      drawn.append(svg("image", { href: picture.url, x, y, width, height, preserveAspectRatio: "none" }));
    } else {
      drawn.append(svg("rect", { x, y, width, height, class: "absent" }));
    }
    if (heat) this.addHeat(drawn, row);
    const [, own, ...colors] = rows.strokes;
    rows.partsOf(row).forEach((part, i) => drawn.append(this.frame(part, colors[i % colors.length], "part")));
    const box = rows.boxAt(rows.box, row);
    if (box) drawn.append(this.frame(box, own, "object"));
    const given = rows.givenOf(row);
    if (given) drawn.append(this.frame(given, colors[0], "given"));
    return drawn;
  }

  frame([x1, y1, x2, y2], color, kind) {
    const at = { x: x1, y: y1, width: x2 - x1, height: y2 - y1, fill: "none" };
    return svg(
      "g",
      { class: `box ${kind}` },
      svg("rect", { ...at, class: "edge", stroke: this.rows.strokes[0] }),
      svg("rect", { ...at, class: "line", stroke: color }),
    );
  }

  /** Lay the attention over a picture that has none yet. */
  addHeat(drawn, row) {
    if (drawn.querySelector(".heat") || !this.hasHeat(row)) return;
    const { rows } = this;
    const [x1, y1, x2, y2] = rows.boxAt(rows.picture_input, rows.pictureAt[row]);
    const heat = svg("image", {
      href: this.heatUrl(row),
      x: x1,
      y: y1,
      width: x2 - x1,
      height: y2 - y1,
      preserveAspectRatio: "none",
      class: "heat",
    });
    drawn.insertBefore(heat, drawn.querySelector(".box"));
  }

  heatUrl(row) {
    if (!this.heats.has(row)) {
      const [width, height] = this.rows.map;
      const canvas = el("canvas", { width, height });
      const context = canvas.getContext("2d");
      const pixels = context.createImageData(width, height);
      bytesOf(this.rows.pictureOf(row).heat).forEach((value, i) => {
        pixels.data.set(this.rows.colors.subarray(value * 3, value * 3 + 3), i * 4);
        // What was looked at least stays visible beneath.
        pixels.data[i * 4 + 3] = 80 + 0.4 * value;
      });
      context.putImageData(pixels, 0, 0);
      if (this.heats.size > 500) this.heats.clear();
      this.heats.set(row, canvas.toDataURL());
    }
    return this.heats.get(row);
  }

  failure(row) {
    return svg(
      "svg",
      { viewBox: "0 0 120 90", role: "img", "aria-label": this.describe(row), class: "photo failed" },
      svg("path", { d: "M42 26h26l12 12v26H42z M68 26v12h12 M52 58l18-14 M52 44l18 14" }),
    );
  }
}
