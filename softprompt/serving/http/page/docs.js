// The OpenAPI document as a page: every endpoint with its parameters, body, answer and errors.
"use strict";

function make(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

/** The schema that a reference leads to, and its name. */
function resolved(schema, all) {
  const name = schema?.$ref?.split("/").pop();
  return name ? [all[name], name] : [schema ?? {}, ""];
}

/** A schema's type in a few words: string, array of number, ChatMessage, string or null. */
function typeOf(schema, all) {
  if (schema.$ref) return resolved(schema, all)[1];
  if (schema.anyOf) return [...new Set(schema.anyOf.map((one) => typeOf(one, all)))].join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `array of ${typeOf(schema.items ?? {}, all)}`;
  if (schema.format === "binary") return "bytes";
  return schema.type ?? "anything";
}

/** A row for each field: name, type, default, what it means. */
function table(fields) {
  const made = make("table");
  for (const [name, type, preset, about] of fields) {
    const row = made.insertRow();
    row.append(make("th", name), make("td", type), make("td", preset), make("td", about, "about"));
  }
  return made;
}

function fieldsOf(schema, all) {
  const [own] = resolved(schema, all);
  return Object.entries(own.properties ?? {}).map(([name, field]) => {
    const preset = "default" in field ? `= ${JSON.stringify(field.default)}` : "";
    const needed = own.required?.includes(name) ? "required" : preset;
    return [name, typeOf(field, all), needed, field.description ?? ""];
  });
}

function part(title, schema, all) {
  const [, name] = resolved(schema, all);
  const made = make("details");
  made.append(make("summary", name ? `${title}: ${name}` : title));
  const fields = fieldsOf(schema, all);
  made.append(fields.length ? table(fields) : make("p", typeOf(schema, all), "said"));
  return made;
}

function schemaIn(content) {
  return Object.values(content ?? {})[0]?.schema;
}

function endpoint(path, method, operation, all) {
  const made = make("article");
  made.append(make("h2", `${method.toUpperCase()} ${path}`), make("p", operation.description ?? ""));
  const parameters = (operation.parameters ?? []).map((one) => [
    one.name, typeOf(one.schema, all), one.required ? "required" : "", one.description ?? `in the ${one.in}`]);
  if (parameters.length) made.append(table(parameters));
  const body = schemaIn(operation.requestBody?.content);
  if (body) made.append(part("Body", body, all));
  const errors = [];
  for (const [status, answer] of Object.entries(operation.responses ?? {})) {
    const schema = schemaIn(answer.content);
    if (status.startsWith("2")) made.append(part(`Answer ${status}`, schema ?? {}, all));
    else errors.push([status, "", "", answer.description]);
  }
  if (errors.length) {
    const folded = make("details");
    folded.append(make("summary", "Errors"), table(errors));
    made.append(folded);
  }
  return made;
}

async function show() {
  const about = document.getElementById("about");
  try {
    const answer = await fetch("/openapi.json");
    const document_ = await answer.json();
    const all = document_.components?.schemas ?? {};
    const page = document.getElementById("endpoints");
    for (const [path, operations] of Object.entries(document_.paths))
      for (const [method, operation] of Object.entries(operations)) page.append(endpoint(path, method, operation, all));
    about.textContent = document_.info.description;
  } catch (error) {
    about.textContent = `the OpenAPI document could not be read: ${error.message}`;
  }
}

show();
