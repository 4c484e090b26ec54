// Elements, numbers in words, and what a screen reader is told.

const $ = (id) => document.getElementById(id);

/** Make an element. Text is only ever text: nothing here parses HTML. */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "grow") node.style.flexGrow = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  return fill(node, ...children);
}

/** Put children in the place of those that there are; what is nothing or false is left out. */
function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return node;
}

/** Make an element of a drawing. */
function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function show(node, visible = true) {
  node.hidden = !visible;
}

/** Tell a screen reader, without moving its focus. */
function announce(text) {
  $("live").textContent = "";
  setTimeout(() => { $("live").textContent = text; }, 60);
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const number = (value) => grouped.format(value);
const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "0 %");

/** Write milliseconds: short ones with a digit, long ones as seconds. */
function ms(value) {
  if (value >= 9950) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 9.95) return `${number(value)} ms`;
  return `${value.toFixed(value >= 0.05 ? 1 : 0)} ms`;
}

/** Write how many times as much: 12, 3.4, 1.2. */
const times = (ratio) => (ratio >= 9.95 ? number(ratio) : ratio.toFixed(1));

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value > 0 ? Math.min(Math.floor(Math.log2(value) / 10), units.length - 1) : 0;
  return `${(value / 2 ** (10 * power)).toFixed(power > 1 ? 1 : 0)} ${units[power]}`;
}

function list(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

function moment(iso) {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? iso : date.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

/** Ask before something is lost; resolves to whether to go on. */
function confirmed(title, text, yes) {
  const dialog = $("confirm-dialog");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  return new Promise((resolve) => {
    let answer = false;
    $("confirm-form").onsubmit = (event) => { event.preventDefault(); answer = true; dialog.close(); };
    $("confirm-cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(answer);
    dialog.showModal();
    $("confirm-cancel").focus();
  });
}
