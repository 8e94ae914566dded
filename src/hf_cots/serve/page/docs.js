"use strict";

// Shows /openapi.json without the scripts that FastAPI's own page loads from elsewhere.

function element(tag, text = "", ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  if (schema.type === "object" && schema.additionalProperties) return `object of ${typeOf(schema.additionalProperties)}`;
  return schema.format === "binary" ? "file" : schema.type || "any";
}

function table(rows) {
  const body = element("tbody");
  for (const [name, schema, required] of rows) {
    const limits = ["default", "minimum", "maximum", "exclusiveMaximum", "maxLength"].filter((key) => schema[key] != null && typeof schema[key] !== "object").map((key) => `${key} ${schema[key]}`);
    const type = [typeOf(schema), required ? "required" : "", ...limits].filter(Boolean).join(", ");
    body.append(element("tr", "", element("td", "", element("code", name)), element("td", type), element("td", schema.description || "")));
  }
  return element("table", "", body);
}

function fields(schema) {
  return Object.entries(schema.properties || {}).map(([name, each]) => [name, each, (schema.required || []).includes(name)]);
}

function describe(address, method, operation) {
  const box = element("section", "", element("h2", `${method.toUpperCase()} ${address}`), element("p", operation.description || ""));
  const parameters = (operation.parameters || []).map((each) => [each.name, { ...each.schema, description: each.description }, each.required]);
  if (parameters.length) box.append(element("h3", "Parameters"), table(parameters));
  for (const [type, { schema }] of Object.entries(operation.requestBody?.content || {})) box.append(element("h3", `Body, ${type}`), table(fields(schema)));
  const answers = Object.entries(operation.responses || {}).map(([status, each]) => [status, { ...(each.content?.["application/json"]?.schema || {}), description: each.description }]);
  box.append(element("h3", "Answers"), table(answers));
  return box;
}

async function begin() {
  const main = document.getElementById("docs");
  const schema = await (await fetch("/openapi.json")).json();
  main.replaceChildren(element("h1", schema.info.title), element("p", schema.info.description));
  for (const [address, operations] of Object.entries(schema.paths)) for (const [method, operation] of Object.entries(operations)) main.append(describe(address, method, operation));
  main.append(element("h2", "Objects"));
  for (const [name, each] of Object.entries(schema.components?.schemas || {})) main.append(element("h3", name), element("p", each.description || ""), table(fields(each)));
}

begin();
