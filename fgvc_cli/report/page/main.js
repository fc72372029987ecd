// Puts the page together.

/** What a card says of its row besides the class: null, or what to mind. */
function remark(rows, row) {
  if (rows.wrong(row)) {
    const names = rows.truthOf(row).map((i) => rows.classes[i]);
    return `really ${names.join(" + ") || "without a label"}`;
  }
  return rows.answered(row) && rows.statusOf(row) !== "ok" ? statusText(rows.statusOf(row)) : null;
}

/** The button that is an image's card. */
function buildCard(rows, pictures, row, review) {
  const answered = rows.answered(row);
  const name = answered ? rows.nameOf(row) : statusText(rows.statusOf(row));
  const sure = answered ? percent(rows.sure(row)) : rows.error[row];
  const chip = remark(rows, row);
  const path = rows.sourceOf(row);
  const drawn = pictures.draw(row, { heat: $("maps").checked });
  const mark = review?.mark(row);
  review?.addBox(drawn, row);
  const said = [mark?.text, name, sure, chip, path, pictures.describe(row)].filter(Boolean).join(", ");
  const button = el(
    "button",
    { class: "card", type: "button", "aria-haspopup": "dialog", "aria-label": said },
    el("span", { class: "frame" }, drawn),
    el("strong", { class: "name", title: name }, name),
    answered
      ? el("span", { class: "sure" }, el("span", { class: "meter" }), el("span", { class: "prob" }, sure))
      : el("span", { class: "error", title: sure }, sure),
    chip ? el("span", { class: rows.wrong(row) ? "chip wrong" : "chip" }, chip) : null,
    el("span", { class: "path", title: path }, el("bdi", {}, path)),
    mark ? el("span", { class: `mark ${mark.state}`, title: mark.text }, mark.text) : null,
  );
  button.style.setProperty("--share", answered ? rows.sure(row) : 0);
  button.classList.toggle("bad", !answered);
  const look = () => pictures.addHeat(drawn, row);
  button.addEventListener("pointerenter", look);
  button.addEventListener("focus", look);
  return button;
}

function summarize(rows) {
  const counts = { unknown: 0, unsure: 0, failed: 0 };
  for (let row = 0; row < rows.count; row++) {
    const status = rows.answered(row) ? rows.statusOf(row) : "failed";
    if (status in counts) counts[status]++;
  }
  const shown = [plural(rows.count, "image")];
  for (const [status, count] of Object.entries(counts))
    if (count || status !== "unknown") shown.push(`${whole.format(count)} ${status}`);
  if (rows.model) shown.push(`${plural(rows.known, "class", "classes")} of ${rows.model}`);
  return shown.join(" · ");
}

function describeFile(rows) {
  const facts = [`${rows.source}, fgvc ${rows.version}${rows.weights ? `, weights ${rows.weights}` : ""}.`];
  if (rows.skipped > 0)
    facts.push(`${plural(rows.skipped, "row has", "rows have")} no picture, to keep this file small.`);
  if (!rows.map) facts.push("It shows no attention maps.");
  facts.push(
    rows.review
      ? "What you decide stays on this computer: in this browser, or in reviewed.csv where fgvc shows the page."
      : "Nothing on this page comes from or goes to a network.",
  );
  return facts.join(" ");
}

function tabs(select) {
  const all = [...document.querySelectorAll("[role=tab]")];
  const choose = (tab) => {
    for (const other of all) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", chosen);
      other.tabIndex = chosen ? 0 : -1;
      $(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    select(tab.id);
  };
  for (const [i, tab] of all.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const next = all[(i + 1) % all.length];
      choose(next);
      next.focus();
    });
  }
  return choose;
}

async function main() {
  const rows = new Rows(await unpack($("rows").textContent));
  $("rows").remove();
  const selection = new Selection(rows);
  const pictures = new Pictures(rows);
  const review = rows.review ? new Review(rows, pictures) : null;
  if (review) selection.stateOf = (row) => review.decisions.stateOf(row);
  const detail = new Detail(rows, pictures, (position) => detail.order === grid.rows && grid.focus(position));
  const grid = new Grid($("photos"), {
    build: (row) => buildCard(rows, pictures, row, review),
    open: (position) => detail.open(grid.rows, position),
  });
  const change = () => {
    grid.show(selection.apply());
    facets.update();
    $("count").textContent =
      grid.rows.length === rows.count
        ? plural(rows.count, "image")
        : `${whole.format(grid.rows.length)} of ${plural(rows.count, "image")}`;
    $("none").hidden = grid.rows.length > 0;
    const truths = [...selection.truths].map((i) => rows.classes[i]).join(", ");
    $("pair").hidden = !truths;
    $("pair").replaceChildren(
      `Only images ${rows.several ? "with the label" : "whose label is"} ${truths}. `,
      el(
        "button",
        { type: "button", onclick: () => (selection.truths.clear(), change(), $("order").focus()) },
        "Show all labels",
      ),
    );
  };
  const facets = new Facets(rows, selection, change);

  for (const [name, order] of Object.entries(ORDERS)) {
    if ((!order.labelled || rows.labelled) && (!order.reviewed || (rows.review && rows.k > 1)))
      $("order").append(el("option", { value: name }, order.name));
  }
  if (rows.review?.picked) $("order").value = selection.order = "file";
  $("order").addEventListener("change", () => {
    selection.order = $("order").value;
    change();
  });
  $("boxes").addEventListener("change", () =>
    document.body.classList.toggle("no-boxes", !$("boxes").checked),
  );
  $("maps-label").hidden = !rows.map;
  $("maps").addEventListener("change", () => {
    document.body.classList.toggle("with-maps", $("maps").checked);
    grid.reset();
    grid.render();
  });
  // A narrow screen shows images first.
  if (matchMedia("(max-width: 52rem)").matches) $("filters").open = false;

  $("summary").textContent = summarize(rows);
  $("about").textContent = describeFile(rows);
  if (rows.labelled) {
    $("tabs").hidden = false;
    const choose = tabs((id) => id === "tab-photos" && grid.measure());
    const show = (truth, guess) => {
      facets.clear();
      if (truth !== null) selection.truths.add(truth);
      if (guess !== null) selection.classes.add(guess);
      facets.show();
      choose($("tab-photos"));
      change();
      grid.focus(0);
    };
    const labels = rows.several ? new LabelSets(rows, show) : new Labels(rows, pictures, detail, show);
    labels.draw($("view-labels"));
  }
  await review?.start({ grid, detail, facets });
  change();
  if (review) grid.focus(0);
  document.body.dataset.ready = "";
}

main().catch((error) => {
  $("summary").textContent =
    `This page could not be opened: ${error.message}. A browser from 2023 or later is needed.`;
  throw error;
});
