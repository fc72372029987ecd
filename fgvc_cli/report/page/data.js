"use strict";
// Elements, and the columns of the page. Everything from outside is set as text, never as HTML.

const $ = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** The block that report/pack.py writes -> {header, columns}. */
async function unpack(base64) {
  const packed = new Blob([bytesOf(base64)]);
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const start = Math.ceil((4 + length) / 8) * 8;
  const types = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array };
  const columns = {};
  for (const [name, { type, length, at }] of Object.entries(header.columns)) {
    columns[name] = new types[type](buffer, start + at, length);
  }
  return { header, columns };
}

const TENTHS = 10;

/** The rows of the page, each known by its number. */
class Rows {
  constructor({ header, columns }) {
    Object.assign(this, header, columns);
    this.count = header.rows;
    const texts = (bytes) => new TextDecoder().decode(bytes).split("\0");
    this.path = texts(columns.path);
    this.error = texts(columns.error);
    this.boxId = this.given ? texts(columns.box_id) : null;
    this.lowered = this.path.map((path) => path.toLowerCase());
    if (columns.truth_count) {
      this.truthAt = new Int32Array(this.count + 1);
      this.truth_count.forEach((count, row) => {
        this.truthAt[row + 1] = this.truthAt[row] + Math.max(0, count);
      });
    }
    this.pictureAt = new Int32Array(this.count).fill(-1);
    this.picture_row.forEach((row, picture) => (this.pictureAt[row] = picture));
    this.blocks = [...document.querySelectorAll("script.pictures")];
    this.lines = [];
    this.colors = bytesOf(header.colors);
  }

  /** What a row is of, in words. */
  sourceOf(row) {
    return this.givenOf(row) ? `${this.path[row]}, box ${this.boxId[row]}` : this.path[row];
  }

  /** The box that a row is of; null for a whole image. */
  givenOf(row) {
    return this.given ? this.boxAt(this.given, row) : null;
  }

  answered(row) {
    return this.index[row * this.k] >= 0;
  }

  /** Class number of the best guess, -1 without one. */
  best(row) {
    return this.index[row * this.k];
  }

  /** Probability of the best guess; NaN without one. */
  sure(row) {
    return this.prob[row * this.k];
  }

  statusOf(row) {
    return this.statuses[this.status[row]];
  }

  /** Whether what the images show is known of any. */
  get labelled() {
    return this.truthAt !== undefined;
  }

  /** Numbers of a row's true labels; null where they are not known. */
  truthOf(row) {
    if (!this.labelled || this.truth_count[row] < 0) return null;
    return Array.from(this.truth_labels.subarray(this.truthAt[row], this.truthAt[row + 1]));
  }

  /** Numbers of what a row tells: its best class, or all labels above the threshold. */
  toldOf(row) {
    if (!this.answered(row)) return [];
    if (!this.several) return [this.best(row)];
    const guesses = Array.from(this.index.subarray(row * this.k, (row + 1) * this.k));
    return guesses.filter((guess, rank) => guess >= 0 && this.prob[row * this.k + rank] > this.told_above);
  }

  /** What a row tells, in words. */
  nameOf(row) {
    const names = this.toldOf(row).map((i) => this.classes[i]);
    return names.join(" + ") || "no label";
  }

  wrong(row) {
    if (!this.labelled || this.truth_count[row] < 0 || !this.answered(row)) return false;
    if (!this.several) return this.best(row) !== this.truth_labels[this.truthAt[row]];
    const [truth, told] = [this.truthOf(row), this.toldOf(row)];
    return truth.length !== told.length || told.some((label) => !truth.includes(label));
  }

  /** An xyxy box in pixels of the image, from a column of tenths; null where there is none. */
  boxAt(column, number) {
    const box = column.subarray(number * 4, number * 4 + 4);
    return box.length < 4 || box[0] < 0 ? null : Array.from(box, (edge) => edge / TENTHS);
  }

  partsOf(row) {
    const boxes = Array.from({ length: this.parts_per_row }, (_, i) =>
      this.boxAt(this.parts, row * this.parts_per_row + i),
    );
    return boxes.filter((box) => box);
  }

  /** The picture of a row as {url, heat}: base64 of an attention map, or none; null without a picture. */
  pictureOf(row) {
    const number = this.pictureAt[row];
    if (number < 0) return null;
    const block = Math.floor(number / this.chunk);
    this.lines[block] ??= this.blocks[block].textContent.split("\n");
    const [webp, heat] = this.lines[block][number % this.chunk].split(" ");
    return { url: `data:image/webp;base64,${webp}`, heat };
  }
}

const whole = new Intl.NumberFormat("en");

function plural(count, one, many = `${one}s`) {
  return `${whole.format(count)} ${count === 1 ? one : many}`;
}

/** A probability for people; never rounded to certainty. */
function percent(share) {
  if (share >= 1) return "100 %";
  if (share > 0.999) return "> 99.9 %";
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(share * 100).toFixed(1)} %`;
}

const statusText = (status) => status.replaceAll("_", " ");
