// What the schema, a preset and a form say about a configuration. Pure data; no parameter is named here.

/** The sections of the form: [{name, title, description, fields}]; parameters outside any section come first, name "". */
export function sections(schema) {
  const loose = { name: "", description: "", fields: [] };
  const named = [];
  for (const [name, property] of Object.entries(schema.properties)) {
    const below = resolve(schema, property);
    if (below.type === "object")
      named.push({ name, description: below.description ?? "", fields: fieldsOf(schema, name, below) });
    else if (below.const === undefined && name !== "preset") loose.fields.push(field(name, below));
  }
  return [loose, ...named];
}

/** The value at a dotted path. */
export function at(config, path) {
  return path.split(".").reduce((value, name) => value?.[name], config);
}

/** Overrides as a tree, from values by dotted path. */
export function tree(values) {
  const root = {};
  for (const [path, value] of values) {
    const names = path.split(".");
    const leaf = names.pop();
    names.reduce((section, name) => (section[name] ??= {}), root)[leaf] = value;
  }
  return root;
}

export function same(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}

/** What is not as in the preset: [{path, value, preset}]. */
export function differences(config, preset) {
  return leaves(config)
    .map(([path, value]) => ({ path, value, preset: at(preset, path) }))
    .filter(({ value, preset: usual }) => !same(value, usual));
}

/** [path, value] of every parameter. */
export function leaves(config, prefix = "") {
  return Object.entries(config).flatMap(([name, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? leaves(value, `${prefix}${name}.`)
      : [[prefix + name, value]],
  );
}

/** A value as text for an input, and back. Text that is no number is sent as it is: the service says what is wrong with it. */
export function toText(value) {
  if (value === null || value === undefined) return "";
  return Array.isArray(value) ? value.join(", ") : String(value);
}

export function fromText(field, text) {
  const trimmed = text.trim();
  if (trimmed === "" && field.nullable) return null;
  if (field.kind === "list") return trimmed === "" ? [] : trimmed.split(",").map((part) => numberOrText(part.trim()));
  return field.kind === "number" ? numberOrText(trimmed) : trimmed;
}

/** The field that an error is about: the one it names, or the one it names a part of. */
export function fieldOf(path, known) {
  const names = path.replace(/^body\.(config\.)?/, "").split(".");
  for (; names.length; names.pop()) if (known.has(names.join("."))) return names.join(".");
  return null;
}

function fieldsOf(schema, section, object) {
  return Object.entries(object.properties).flatMap(([name, property]) => {
    const [path, below] = [`${section}.${name}`, resolve(schema, property)];
    return below.type === "object" ? fieldsOf(schema, path, below) : [field(path, below)];
  });
}

function field(path, property) {
  const kinds = property.anyOf ?? [property];
  const main = kinds.find(({ type }) => type !== "null");
  return {
    path,
    name: path.split(".").pop(),
    description: property.description ?? "",
    nullable: kinds.some(({ type }) => type === "null"),
    choices: main.enum ?? main.items?.enum ?? null,
    kind: kindOf(main),
    range: rangeOf(main),
  };
}

function kindOf({ type, enum: choices, items }) {
  if (type === "array") return items.enum ? "choices" : "list";
  if (choices) return "choice";
  return { boolean: "switch", integer: "number", number: "number" }[type] ?? "text";
}

function rangeOf({ minimum, exclusiveMinimum, maximum, exclusiveMaximum }) {
  const bounds = [
    ["≥", minimum],
    [">", exclusiveMinimum],
    ["≤", maximum],
    ["<", exclusiveMaximum],
  ];
  return bounds
    .filter(([, bound]) => bound !== undefined)
    .map(([sign, bound]) => `${sign}\u00a0${bound}`)
    .join(", ");
}

function resolve(schema, property) {
  return property.$ref ? schema.$defs[property.$ref.split("/").pop()] : property;
}

function numberOrText(text) {
  const isNumber = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) && Number.isFinite(Number(text));
  return isNumber ? Number(text) : text;
}
