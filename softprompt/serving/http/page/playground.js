"use strict";
// The playground: asks /v1 as any client would. No library, nothing to build.

const $ = (id) => document.getElementById(id);
const kind = () => document.querySelector("input[name=kind]:checked").value;
const BARE = "text";  // the bare model has a box of its own, under this name
const chosen = () => [...document.querySelectorAll("#choices input:checked")].map((box) => box.value);
let running = null;
let known = null;
const typed = new Map();  // by field, whatever is chosen
let way = null;  // to answer, once it was chosen by hand

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function headers() {
  const key = sessionStorage.getItem("key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function ask(path, body, signal) {
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const answer = await fetch(path, { ...options, headers: headers(), signal });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  const error = new Error(said?.error?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

async function list() {
  try {
    known = await (await ask("/v1/prompts")).json();
    const names = [
      ...known.prompts.map((one) => [one.name, one.versions.at(-1).task ?? "prompt"]),
      ...known.ensembles.map((one) => [one.name, `ensemble of ${one.members.length}`]),
      ...known.aliases.map((one) => [one.name, `alias of ${Object.keys(one.targets).join(", ")}`]),
      [known.base, "bare model"],
    ];
    const before = chosen();
    $("choices").replaceChildren(...names.map(([name, about], place) => choice(name, about, before.length ? before.includes(name) : place === 0)));
    $("about").textContent = `${known.base}, ${known.prompts.length} prompt${known.prompts.length === 1 ? "" : "s"}`;
    choose();
    fail(null);
  } catch (error) {
    $("about").textContent = "not connected";
    if (error.status === 401 || error.status === 403) $("access").hidden = !($("access").open = true);
    fail(error);
  }
}

function choice(name, about, checked) {
  const label = make("label");
  const box = make("input");
  Object.assign(box, { type: "checkbox", value: name, checked });
  label.append(box, name, " ", make("small", about));
  return label;
}

function fail(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

// The versions that answer for a name, each with the name it is called by: a prompt's, an ensemble's members', an alias's
// targets'; none for the bare model.
function versions(name) {
  const alias = known.aliases.find((one) => one.name === name), ensemble = known.ensembles.find((one) => one.name === name);
  const parts = alias ? Object.keys(alias.targets) : ensemble?.members;
  if (parts) return parts.flatMap(versions);
  const [own, digits] = name.split("@");
  const all = known.prompts.find((one) => one.name === own)?.versions ?? [];
  const meant = digits ? all.filter((one) => one.prompt_hash.startsWith(digits)) : all.slice(-1);
  return meant.map((one) => ({ ...one, name }));
}

// What a name is asked for, and whether it must be there: the fields of its versions, each once.
function fields(name) {
  if (name === known.base) return new Map([[BARE, true]]);
  const found = new Map();
  for (const field of versions(name).flatMap((one) => one.fields)) {
    const own = field.replace(/\?$/, "");
    found.set(own, found.get(own) || own === field);
  }
  return found;
}

// One box for each field of what is chosen, with what was typed into it before.
function boxes() {
  const names = chosen(), wanted = new Map(), boxes = [];
  for (const name of names) for (const field of fields(name).keys()) wanted.set(field, [...(wanted.get(field) ?? []), name]);
  for (const [field, readers] of wanted) {
    const box = make("textarea"), label = make("label", field), line = make("div"), notes = [];
    if (readers.every((name) => name === known.base)) notes.push("which the model goes on with");
    if (readers.every((name) => fields(name).get(field) === false)) notes.push("may be left empty");
    if (readers.length < names.length) notes.push(`for ${readers.join(", ")}`);
    const note = make("small", notes.join("; "));
    Object.assign(box, { id: `field-${boxes.length}`, rows: wanted.size > 1 ? 3 : 4, value: typed.get(field) ?? "" });
    label.htmlFor = box.id;
    note.id = `about-${box.id}`;
    box.setAttribute("aria-describedby", note.id);
    box.addEventListener("input", () => { typed.set(field, box.value); });
    line.append(label, note, box);
    boxes.push(line);
  }
  $("fields").replaceChildren(...(boxes.length ? boxes : [make("small", "choose a prompt first")]));
}

// The boxes follow what is chosen, and so does the way to answer until it is chosen by hand.
function choose() {
  boxes();
  const all = chosen().flatMap(versions);
  const usual = chosen().length && all.every((one) => !one.labels.length) ? "complete" : "classify";
  document.querySelector(`input[name=kind][value=${way ?? usual}]`).checked = true;
  show();
}

// A name's own fields; one that may be left empty is left out then.
function record(name) {
  const own = [...fields(name)].filter(([field, needed]) => needed || typed.get(field));
  return Object.fromEntries(own.map(([field]) => [field, typed.get(field) ?? ""]));
}

function question(model) {
  const asked = record(model), text = kind() === "classify" ? "input" : "prompt";
  const input = { ...(model === known.base ? { [text]: asked[BARE] } : { fields: asked }), show_input: true };
  if (kind() === "classify") {
    const labels = $("labels").value.split(",").map((label) => label.trim()).filter(Boolean);
    return ["/v1/classify", { model, ...input, ...(labels.length ? { labels } : {}) }];
  }
  const tokens = $("max-tokens").valueAsNumber, temperature = $("temperature").valueAsNumber;
  return ["/v1/completions", {
    model, ...input, stream: true, ...(tokens ? { max_tokens: tokens } : {}), ...(temperature ? { temperature } : {}),
  }];
}

function quoted(text) { return `'${text.replaceAll("'", `'\\''`)}'`; }

function show() {
  document.body.classList.toggle("complete", kind() === "complete");
  if (!chosen().length) return $("curl").replaceChildren("choose a prompt first");
  const [path, body] = question(chosen()[0]);
  const key = sessionStorage.getItem("key") ? ` -H 'Authorization: Bearer KEY'` : "";
  const quiet = body.stream ? " -N" : "";
  $("curl").textContent = `curl${quiet} ${location.origin}${path} -H 'Content-Type: application/json'${key} -d ${quoted(JSON.stringify(body))}`;
}

async function run(event) {
  event?.preventDefault();
  if (running) running.abort();
  const names = chosen();
  if (!names.length) return fail(new Error("choose a prompt first"));
  const empty = names.find((name) => fields(name).size && !Object.values(record(name)).some((text) => text.trim()));
  if (empty) {
    const missing = [...fields(empty).keys()];
    [...document.querySelectorAll("#fields label")].find((label) => label.textContent === missing[0])?.control.focus();
    return fail(new Error(`fill in ${missing.join(" and ")} first: ${empty} has nothing to answer`));
  }
  fail(null);
  const mine = running = new AbortController();
  $("run").disabled = true;
  const cards = names.map((name) => { const card = make("article"); card.append(make("h2", name)); return card; });
  $("answers").replaceChildren(...cards);
  await Promise.all(names.map((name, i) => answer(name, cards[i], mine.signal)));
  if (running === mine) { running = null; $("run").disabled = false; }
}

async function answer(name, card, signal) {
  try {
    const [path, body] = question(name);
    const begun = performance.now();
    const response = await ask(path, body, signal);
    if (body.stream) await stream(response, card);
    else for (const result of (await response.json()).results) label(result, card);
    card.querySelector(".tokens")?.append(`, ${Math.round(performance.now() - begun)} ms`);
  } catch (error) {
    if (error.name !== "AbortError") card.append(make("p", error.message, "wrong"));
  }
}

function label(result, card) {
  if (result.example) card.append(make("h3", result.example));
  const shares = Object.entries(result.probabilities).sort((a, b) => b[1] - a[1]);
  for (const [text, share] of shares.slice(0, 20)) {
    const bar = make("div", undefined, text === result.label ? "bar best" : "bar");
    bar.style.setProperty("--share", `${100 * share}%`);
    bar.append(make("span", text), make("span", `${(100 * share).toFixed(1)} %`));
    card.append(bar);
  }
  if (shares.length > 20) card.append(make("p", `and ${shares.length - 20} more labels`, "said"));
  const voters = versions(card.querySelector("h2").textContent);
  for (const vote of result.votes ?? []) {
    const voter = voters.find((one) => one.prompt_hash === vote.prompt_hash)?.name ?? vote.prompt_hash.slice(0, 12);
    card.append(make("p", `${voter} votes ${vote.label}`, "said"));
  }
  said(result, card);
}

async function stream(response, card) {
  const text = make("p", "", "text");
  card.append(text);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", last = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const { choices, error } = JSON.parse(data);
      if (error) throw new Error(error.message);
      text.append(choices[0].text);
      if (choices[0].finish_reason) last = choices[0];
    }
  }
  if (last) said(last, card);
}

function said(result, card) {
  const cut = result.truncated ? ", cut to the length limit" : "";
  const line = make("p", `${result.input_tokens} input tokens${cut}`, "said tokens");
  if (result.prompt_hash) line.append(`, prompt ${result.prompt_hash.slice(0, 12)}`);
  card.append(line);
  const read = make("details");
  read.append(make("summary", "What the model read"));
  for (const text of [result.input_text].flat()) read.append(make("pre", text, "read"));
  card.append(read);
  if (result.prompt_hash) card.append(nearest(card.querySelector("h2").textContent));
}

function nearest(name) {
  const button = make("button", "nearest tokens", "quiet");
  button.type = "button";
  button.setAttribute("aria-label", `Nearest tokens of ${name}`);
  button.onclick = async () => {
    button.disabled = true;
    try {
      const found = await (await ask(`/v1/prompts/${encodeURIComponent(name)}/nearest`)).json();
      const table = make("table");
      const head = make("tr");
      head.append(make("th", "row"), make("th", "norm"), make("th", "nearest by cosine"));
      table.append(head);
      for (const row of found.rows) {
        const line = make("tr");
        const tokens = row.tokens.map((token, i) => `${JSON.stringify(token)} ${row.cosines[i].toFixed(2)}`);
        line.append(make("td", row.position), make("td", row.norm.toFixed(1)), make("td", tokens.join("  ")));
        table.append(line);
      }
      button.replaceWith(table);
    } catch (error) { button.replaceWith(make("p", error.message, "wrong")); }
  };
  return button;
}

$("form").addEventListener("submit", run);
$("choices").addEventListener("change", choose);
$("form").addEventListener("input", show);
for (const box of document.querySelectorAll("input[name=kind]")) box.addEventListener("change", () => { way = box.value; });
document.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(); });
$("save-key").addEventListener("click", () => { sessionStorage.setItem("key", $("key").value); $("key").value = ""; list(); });
list();
