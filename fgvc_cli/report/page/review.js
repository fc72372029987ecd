// The desk: a person says of each row what it really shows. First what needs no page, then the page.

const CHOICES = 9; // classes offered at once

/** A text as report/review.py writes it into a CSV: no spreadsheet may take it for a formula. */
function asCell(text, starts) {
  const number = /^[+-]?\d+(\.\d+)?([eE][+-]?\d+)?$/;
  return text !== "" && `${starts}'`.includes(text[0]) && !number.test(text) ? `'${text}` : text;
}

/** The text that a cell was made of. */
function fromCell(cell, starts) {
  return cell.length > 1 && cell[0] === "'" && `${starts}'`.includes(cell[1]) ? cell.slice(1) : cell;
}

/** Cells -> one line, quoted where needed. */
const csvLine = (cells, starts) =>
  cells
    .map((cell) => asCell(cell, starts))
    .map((cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell))
    .join(",") + "\n";

/** The cells of a CSV with commas, line by line. */
function parseCsv(text, starts) {
  const lines = [];
  let cells = [];
  const pattern = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\n|\r|$)/gy;
  text = text.replace(/^\ufeff/, "");
  while (pattern.lastIndex < text.length) {
    const [match, quoted, plain, end] = pattern.exec(text) ?? [];
    if (match === undefined) throw new Error(`line ${lines.length + 1} is not CSV`);
    cells.push(fromCell(quoted?.replaceAll('""', '"') ?? plain, starts));
    if (end === ",") {
      if (pattern.lastIndex === text.length) cells.push("");
      else continue;
    }
    lines.push(cells);
    cells = [];
  }
  return lines;
}

/** Without case and accents; upper case first, which makes two letters of ß. */
const plainLetters = (text) =>
  text.normalize("NFKD").replace(/\p{M}/gu, "").toUpperCase().toLowerCase();

/**
 * Names that fit what was typed, the best first: those that begin so, then those with a word that does,
 * then those that contain it; equal ones as given.
 */
function matchNames(typed, names) {
  const wanted = plainLetters(typed.trim());
  const ranked = [[], [], []];
  for (const name of names) {
    const own = plainLetters(name);
    const at = own.indexOf(wanted);
    if (at < 0) continue;
    const inner = /[\s_\-/(.]/;
    let word = at;
    while (word > 0 && !inner.test(own[word - 1])) word = own.indexOf(wanted, word + 1);
    ranked[at === 0 ? 0 : word > 0 ? 1 : 2].push(name);
  }
  return ranked.flat();
}

/** What a dragged box is in whole tenths of a pixel, within the image; null where it is no box. */
function boxOf([x1, y1], [x2, y2], width, height) {
  const inside = (value, most) => Math.round(10 * Math.min(Math.max(value, 0), most)) / 10;
  const box = [
    inside(Math.min(x1, x2), width),
    inside(Math.min(y1, y2), height),
    inside(Math.max(x1, x2), width),
    inside(Math.max(y1, y2), height),
  ];
  return box[2] - box[0] >= 2 && box[3] - box[1] >= 2 ? box : null;
}

/**
 * The decisions of a page: row -> {label, box, who, when}; a label of null is not decided yet, only boxed.
 *
 * They are kept in the browser, each under a key of its own, so that one more costs the same with a hundred
 * thousand before it. Where ``fgvc report --serve`` shows the page, they go to it, and the browser keeps
 * what has not arrived.
 */
class Decisions {
  /** ``changed(row)`` is called where another tab decided; ``told(text)`` gets what went wrong, or "". */
  constructor(rows, { changed, told }) {
    Object.assign(this, { rows, changed, told, of: new Map(), past: [], served: false, unsent: new Set() });
    this.words = rows.review;
    this.prefix = `fgvc-review:${this.words.key}/`;
    this.counts = { open: rows.count, right: 0, corrected: 0, none: 0, wrong: 0 };
  }

  async load() {
    if (location.protocol.startsWith("http")) {
      const answer = await fetch("decisions").catch(() => null);
      if (answer?.ok) {
        const { who, rows } = await answer.json();
        this.served = true;
        this.who = who;
        for (const { row, ...decision } of rows) this.put(row, decision);
      }
    }
    try {
      this.who = localStorage.getItem("fgvc-review-who") ?? this.who ?? "";
      const keys = Array.from({ length: localStorage.length }, (_, i) => localStorage.key(i));
      for (const key of keys) {
        if (!key.startsWith(this.prefix)) continue;
        const row = Number(key.slice(this.prefix.length));
        const decision = JSON.parse(localStorage.getItem(key));
        if (!(row >= 0 && row < this.rows.count)) continue;
        this.put(row, decision);
        if (this.served) this.unsent.add(row);
      }
    } catch (error) {
      this.told(`This browser keeps nothing (${error.message}): download reviewed.csv before you leave.`);
    }
    addEventListener("storage", ({ key, newValue }) => {
      if (!key?.startsWith(this.prefix) || this.served) return;
      const row = Number(key.slice(this.prefix.length));
      this.put(row, newValue && JSON.parse(newValue));
      this.changed(row);
    });
    this.send();
  }

  setWho(name) {
    this.who = name.trim();
    try {
      localStorage.setItem("fgvc-review-who", this.who);
    } catch {
      // It is asked for again next time.
    }
  }

  /** ``open``, ``right``, ``corrected``, ``none`` or ``wrong``. */
  stateOf(row) {
    const label = this.of.get(row)?.label;
    if (label == null) return "open";
    if (label === this.words.none) return "none";
    if (label === this.words.wrong) return "wrong";
    return label === this.oldLabel(row) ? "right" : "corrected";
  }

  oldLabel(row) {
    return this.rows.answered(row) ? this.rows.classes[this.rows.best(row)] : "";
  }

  get decided() {
    return this.rows.count - this.counts.open;
  }

  put(row, decision) {
    this.counts[this.stateOf(row)]--;
    if (decision) this.of.set(row, decision);
    else this.of.delete(row);
    this.counts[this.stateOf(row)]++;
  }

  /** Change what is said of a row; ``undo`` takes it back. */
  decide(row, { label, box }) {
    const before = this.of.get(row) ?? null;
    const decision = {
      label: label ?? before?.label ?? null,
      box: box ?? before?.box ?? null,
      who: this.who,
      when: new Date().toISOString().replace(/\.\d+Z$/, "Z"),
    };
    this.past.push([row, before]);
    this.put(row, decision);
    this.keep(row);
  }

  /** The row whose last change was taken back; null where there is nothing to take back. */
  undo() {
    const last = this.past.pop();
    if (!last) return null;
    this.put(...last);
    this.keep(last[0]);
    return last[0];
  }

  keep(row) {
    const decision = this.of.get(row);
    const key = `${this.prefix}${row}`;
    try {
      if (decision) localStorage.setItem(key, JSON.stringify(decision));
      else if (this.served) localStorage.setItem(key, "null");
      else localStorage.removeItem(key);
      if (!this.served) this.told("");
    } catch (error) {
      if (!this.served) this.told(`This browser keeps no more (${error.name}): download reviewed.csv now.`);
    }
    if (this.served) {
      this.unsent.add(row);
      this.send();
    }
  }

  /** Send what fgvc has not got yet, one request at a time. */
  async send() {
    if (!this.served || this.sending || !this.unsent.size) return;
    this.sending = true;
    const sent = [...this.unsent].slice(0, 200);
    const said = sent.map((row) => this.of.get(row) ?? null);
    const change = (row, i) => (said[i]?.label == null ? { row, label: null } : { row, ...said[i] });
    const body = JSON.stringify(sent.map(change));
    try {
      const answer = await fetch("decisions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body,
      });
      if (!answer.ok) throw new Error((await answer.text()).trim());
      sent.forEach((row, i) => {
        if ((this.of.get(row) ?? null) !== said[i]) return; // decided again meanwhile
        this.unsent.delete(row);
        // A box without a label is not in reviewed.csv.
        if (said[i]?.label != null || !said[i]) localStorage.removeItem(`${this.prefix}${row}`);
      });
      this.told("");
    } catch (error) {
      this.told(`Not in reviewed.csv yet, this browser keeps it: ${error.message}`);
      await new Promise((later) => setTimeout(later, 3000));
    }
    this.sending = false;
    this.send();
  }

  /** reviewed.csv. */
  csv() {
    const { starts, columns } = this.words;
    const lines = [csvLine(columns, starts)];
    for (const row of [...this.of.keys()].sort((a, b) => a - b)) {
      const { label, box, who, when } = this.of.get(row);
      if (label === null) continue;
      const edges = (box ?? this.rows.givenOf(row))?.map((edge) => edge.toFixed(1)) ?? ["", "", "", ""];
      const prob = this.rows.answered(row) ? this.rows.sure(row).toFixed(6) : "";
      const said = [label, this.oldLabel(row), prob, who ?? "", when];
      if (this.rows.boxId) said.push(this.rows.boxId[row]);
      lines.push(csvLine([this.imagePath(row), ...edges, ...said], starts));
    }
    return lines.join("");
  }

  /** Where the image of a row is from the folder of the page; absolute paths stay. */
  imagePath(row) {
    const path = this.rows.path[row];
    return /^(\/|[A-Za-z]:)/.test(path) ? path : this.words.folder + path;
  }

  /** Take over the lines of an earlier reviewed.csv -> how many met a row, and how many none. */
  read(text) {
    const { starts, columns } = this.words;
    const [header = [], ...lines] = parseCsv(text, starts);
    const at = Object.fromEntries(header.map((name, i) => [name.trim().toLowerCase(), i]));
    const missing = ["path", "label"].filter((name) => !(name in at));
    if (missing.length)
      throw new Error(`it has no column ${missing.join(" and ")}; expected ${columns.join(",")}`);
    const { boxId } = this.rows;
    if (boxId && !("box_id" in at)) throw new Error("it does not say which box a line is of (box_id)");
    const key = (path, box) => (boxId ? `${path}\0${box}` : path);
    const rowOf = new Map();
    for (let row = this.rows.count - 1; row >= 0; row--) {
      rowOf.set(key(this.rows.path[row], boxId?.[row]), row);
      rowOf.set(key(this.imagePath(row), boxId?.[row]), row);
    }
    let [met, unmet] = [0, 0];
    for (const cells of lines) {
      const row = rowOf.get(key(cells[at.path], cells[at.box_id]));
      const label = cells[at.label]?.trim();
      if (row === undefined || !label) {
        unmet++;
        continue;
      }
      const edges = ["x1", "y1", "x2", "y2"].map((name) => Number(cells[at[name]] || NaN));
      const given = this.rows.givenOf(row);
      const drawn = edges.every(Number.isFinite) && !edges.every((edge, i) => edge === given?.[i]);
      this.past.push([row, this.of.get(row) ?? null]);
      this.put(row, {
        label,
        box: drawn ? edges : null,
        who: cells[at.who] ?? "",
        when: cells[at.when] ?? "",
      });
      this.keep(row);
      met++;
    }
    return [met, unmet];
  }
}

const STATES = {
  open: "not reviewed",
  right: "right",
  corrected: "another class",
  none: "none of these",
  wrong: "wrong, class not known",
};

const KEYS = [
  ["R", "right: it is the model's class"],
  ["1 – 9", "it is the guess of this rank"],
  ["C", "another class: type a part of its name, or a new one"],
  ["N", "none of these classes"],
  ["W", "wrong, and the class is not known"],
  ["U or Ctrl+Z", "undo"],
  ["Enter", "look at it large; there, drag a box"],
  ["arrows", "next, previous"],
];

/** Keys, buttons and marks of the desk. */
class Review {
  constructor(rows, pictures) {
    Object.assign(this, { rows, pictures });
    this.names = [...rows.classes];
    this.decisions = new Decisions(rows, {
      changed: (row) => this.refresh(row),
      told: (text) => this.complain(text),
    });
  }

  /** Put the desk on the page; ``facets``, ``grid`` and ``detail`` are its parts. */
  async start({ grid, detail, facets }) {
    Object.assign(this, { grid, detail, facets });
    detail.extend = (row) => this.extend(row);
    this.buildBar();
    this.buildChooser();
    await this.decisions.load();
    for (const { label } of this.decisions.of.values()) this.learn(label);
    this.nameField.value = this.decisions.who;
    if (this.decisions.served) this.download.textContent = "Download a copy";
    document.addEventListener("keydown", (event) => this.onKey(event));
    this.progress();
  }

  learn(label) {
    const { none, wrong } = this.rows.review;
    if (label == null || label === none || label === wrong) return;
    if (!this.names.includes(label)) this.names.push(label);
  }

  buildBar() {
    const button = (text, act, title) => el("button", { type: "button", onclick: act, title }, text);
    this.said = el("p", { role: "status", id: "reviewed" });
    this.trouble = el("p", { role: "alert", id: "review-trouble", hidden: true });
    this.nameField = el("input", { type: "text", autocomplete: "off", size: 9, maxlength: 100 });
    this.nameField.addEventListener("change", () => this.decisions.setWho(this.nameField.value));
    const file = el("input", { type: "file", accept: ".csv", hidden: true, "aria-label": "reviewed.csv" });
    file.id = "review-file";
    file.addEventListener("change", () => this.open(file));
    this.download = button("Download reviewed.csv", () => this.save());
    const keys = el(
      "details",
      { id: "review-keys" },
      el("summary", {}, "Keys: R right, C another class, N none of these, W wrong, U undo …"),
      el("dl", {}, ...KEYS.flatMap(([key, text]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, text)])),
    );
    const bar = el(
      "div",
      { id: "review-bar" },
      this.said,
      el("label", {}, "Who ", this.nameField),
      button("Undo", () => this.undo(), "U or Ctrl+Z"),
      button("Open …", () => file.click(), "continue from an earlier reviewed.csv"),
      file,
      this.download,
      keys,
      this.trouble,
    );
    $("photos").before(bar);
  }

  complain(text) {
    this.trouble.textContent = text;
    this.trouble.hidden = !text;
  }

  progress() {
    const { decisions, rows } = this;
    this.said.textContent = `${whole.format(decisions.decided)} of ${whole.format(rows.count)} reviewed`;
    // Counting a hundred thousand rows is not to slow the keys down.
    clearTimeout(this.counting);
    this.counting = setTimeout(() => this.facets.update(), 250);
  }

  /** Show anew what is said of a row. */
  refresh(row) {
    this.grid.rebuild(row);
    if (this.detail.dialog.open && this.detail.order[this.detail.position] === row) this.detail.move(0);
    this.progress();
  }

  /** What a card says of its row. */
  mark(row) {
    const state = this.decisions.stateOf(row);
    if (state === "open") return this.decisions.of.has(row) ? { state, text: "boxed, not decided" } : null;
    const text = { right: "✓ right", none: "∅ none of these", wrong: "✗ wrong" }[state];
    return { state, text: text ?? `→ ${this.decisions.of.get(row).label}` };
  }

  /** Draw a row's own box over its picture. */
  addBox(drawn, row) {
    const box = this.decisions.of.get(row)?.box;
    drawn.querySelector(".drawn")?.remove();
    if (box) drawn.append(this.pictures.frame(box, this.rows.strokes[2], "drawn"));
  }

  /** The row that a key means; null where none has the focus. */
  current() {
    if (this.detail.dialog.open) return this.detail.order[this.detail.position];
    return this.grid.list.contains(document.activeElement) ? this.grid.rows[this.grid.current] : null;
  }

  onKey(event) {
    if (event.target.closest("input, select, textarea") && event.target.type !== "checkbox") return;
    if (this.chooser.open || event.altKey) return;
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key !== "z" || event.shiftKey) return;
      event.preventDefault();
      this.undo();
      return;
    }
    const acts = { r: "right", c: "choose", n: "none", w: "wrong", u: "undo" };
    const act = /^[1-9]$/.test(key) ? "rank" : acts[key];
    if (!act || (event.repeat && act !== "undo")) return;
    event.preventDefault();
    if (act === "undo") this.undo();
    else if (this.current() === null) this.grid.focus(this.grid.current);
    else if (act === "choose") this.choose();
    else if (act === "rank") this.decide(this.guess(Number(key) - 1));
    else this.decide({ right: this.guess(0), ...this.rows.review }[act]);
  }

  /** The class of the current row's guess of a rank, from 0; null where there is none. */
  guess(rank) {
    const { rows } = this;
    const index = rank < rows.k ? rows.index[this.current() * rows.k + rank] : -1;
    return index >= 0 ? rows.classes[index] : null;
  }

  /** Say what the current row shows, and go on to the next. */
  decide(label) {
    const row = this.current();
    if (!this.rows.answered(row)) {
      this.complain("This row has no prediction, and so no picture to judge.");
      return;
    }
    if (label === null) return;
    this.complain("");
    this.decisions.decide(row, { label });
    this.learn(label);
    this.refresh(row);
    if (this.detail.dialog.open) this.detail.move(1);
    else this.grid.focus(this.grid.current + 1);
  }

  undo() {
    const row = this.decisions.undo();
    if (row === null) return;
    this.refresh(row);
    if (this.detail.dialog.open) {
      const position = this.detail.order.indexOf(row);
      if (position >= 0) this.detail.move(position - this.detail.position);
    } else {
      const position = this.grid.rows.indexOf(row);
      if (position >= 0) this.grid.focus(position);
    }
  }

  buildChooser() {
    // Of type text: in a search field, Escape would first empty it.
    this.field = el("input", {
      type: "text",
      role: "combobox",
      "aria-label": "Class",
      "aria-expanded": "true",
      "aria-controls": "review-classes",
      autocomplete: "off",
      spellcheck: "false",
    });
    this.list = el("ul", { id: "review-classes", role: "listbox", "aria-label": "Classes" });
    this.chooser = el(
      "dialog",
      { id: "chooser", "aria-label": "Another class" },
      this.field,
      this.list,
      el("p", { class: "small" }, "Enter takes the marked one, the arrows move, Escape closes."),
    );
    this.field.addEventListener("input", () => this.offer());
    this.field.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        this.pick = (this.pick + step + this.offered.length) % this.offered.length || 0;
        this.markPick();
      } else if (event.key === "Enter") {
        event.preventDefault();
        this.take(this.pick);
      }
    });
    document.body.append(this.chooser);
  }

  choose() {
    this.field.value = "";
    this.chooser.showModal();
    this.offer();
    this.field.focus();
  }

  offer() {
    const { rows } = this;
    const typed = this.field.value.trim();
    const row = this.current();
    const guesses = Array.from(rows.index.subarray(row * rows.k, (row + 1) * rows.k))
      .filter((index) => index >= 0)
      .map((index) => rows.classes[index]);
    // What the model holds likely comes first among equals.
    const names = [...new Set([...guesses, ...this.names])];
    this.offered = matchNames(typed, names).slice(0, CHOICES);
    const known = names.some((name) => plainLetters(name) === plainLetters(typed));
    const reserved = [rows.review.none, rows.review.wrong].includes(typed.toLowerCase());
    if (typed && !known && !reserved) this.offered.push(typed);
    this.pick = 0;
    this.list.replaceChildren(
      ...this.offered.map((name, i) =>
        el(
          "li",
          { role: "option", id: `review-class-${i}`, onclick: () => this.take(i) },
          this.names.includes(name) ? name : `new class “${name}”`,
        ),
      ),
    );
    this.markPick();
  }

  markPick() {
    const items = [...this.list.children];
    items.forEach((item, i) => item.setAttribute("aria-selected", i === this.pick));
    this.field.setAttribute("aria-activedescendant", items[this.pick]?.id ?? "");
  }

  take(i) {
    if (!this.offered.length) return;
    this.chooser.close();
    this.decide(this.offered[i]);
  }

  /** What the large view of a row has besides: what is said of it, buttons, and a box to be dragged. */
  extend(row) {
    if (!this.rows.answered(row)) return;
    const { dialog } = this.detail;
    const drawn = dialog.querySelector("figure svg");
    this.addBox(drawn, row);
    this.listenForBox(drawn, row);
    const button = (text, key, act) =>
      el("button", { type: "button", title: key, "data-act": key, onclick: act }, text);
    const words = this.rows.review;
    const said = this.mark(row)?.text ?? "not reviewed; drag on the picture for a box";
    dialog.querySelector(".figures").after(
      el(
        "div",
        { class: "verdict" },
        button("Right", "R", () => this.decide(this.guess(0))),
        button("Another class …", "C", () => this.choose()),
        button("None of these", "N", () => this.decide(words.none)),
        button("Wrong", "W", () => this.decide(words.wrong)),
        button("Undo", "U", () => this.undo()),
        el("span", { class: "said" }, said),
      ),
    );
  }

  listenForBox(drawn, row) {
    const [width, height] = this.rows.size.subarray(row * 2, row * 2 + 2);
    const at = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY);
      const { x, y } = point.matrixTransform(drawn.getScreenCTM().inverse());
      return [x, y];
    };
    let start = null;
    drawn.classList.add("drawable");
    drawn.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      drawn.setPointerCapture(event.pointerId);
      start = at(event);
    });
    drawn.addEventListener("pointermove", (event) => {
      if (!start) return;
      const box = boxOf(start, at(event), width, height);
      drawn.querySelector(".drawn")?.remove();
      if (box) drawn.append(this.pictures.frame(box, this.rows.strokes[2], "drawn"));
    });
    drawn.addEventListener("pointerup", (event) => {
      const box = start && boxOf(start, at(event), width, height);
      start = null;
      if (!box) return;
      this.decisions.decide(row, { box });
      this.refresh(row);
    });
    drawn.addEventListener("pointercancel", () => {
      start = null;
      this.addBox(drawn, row);
    });
  }

  save() {
    const url = URL.createObjectURL(new Blob([this.decisions.csv()], { type: "text/csv" }));
    el("a", { href: url, download: "reviewed.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  async open(file) {
    const [chosen] = file.files;
    if (!chosen) return;
    try {
      const [met, unmet] = this.decisions.read(await chosen.text());
      const said = `${plural(met, "line")} of ${chosen.name} taken over`;
      this.complain(unmet ? `${said}; ${whole.format(unmet)} met no row or had no label.` : "");
    } catch (error) {
      this.complain(`${chosen.name} could not be read: ${error.message}.`);
    }
    file.value = "";
    for (const { label } of this.decisions.of.values()) this.learn(label);
    this.grid.reset();
    this.grid.render();
    this.progress();
  }
}
