// One operation of the API reference: its description, parameters and answers. docs-try.js has its form.

import { codeBlock, paragraphs, pretty, prose } from "./docs-dom.js";
import { kindOf, mediasOf, ruleOf } from "./docs-schema.js";
import { tryIt } from "./docs-try.js";
import { element } from "./element.js";

const RIGHTS = {
  send: "Needs the right `send` for the username.",
  read: "Needs the right `read` for the username.",
  ops: "Needs the right `ops`.",
  any: "Needs a token with any right, or a right that requests without a token have.",
};

/** Return the name of a method as a colored badge. */
export function badge(method) {
  return element("span", { class: `method ${method.toLowerCase()}` }, [method]);
}

/** Resolve a reference. Keys beside it take precedence. */
export function resolved(api, node) {
  if (!node?.$ref) return node;
  const { $ref, ...beside } = node;
  const target = $ref.slice(2).split("/").reduce((at, step) => at[step], api);
  return { ...resolved(api, target), ...beside };
}

/** Return the card of an operation. */
export function operationOf(api, { path, method, said }) {
  const id = said.operationId;
  const parameters = (said.parameters ?? []).map((each) => resolved(api, each));
  return element("article", { class: "card stack operation", id, "aria-labelledby": `${id}-name` }, [
    element("div", { class: "stack head" }, [
      element("h3", { id: `${id}-name`, tabindex: "-1" }, [
        badge(method),
        " ",
        element("span", { class: "path" }, [path]),
        " ",
        element("a", { class: "anchor", href: `#${id}`, "aria-label": `Link to ${method} ${path}` }, ["#"]),
      ]),
      element("p", { class: "summary" }, prose(`${said.summary}.`)),
    ]),
    ...(said["x-consumes"] ? [consumes(said)] : []),
    ...paragraphs(withoutWarning(said)),
    ...(said["x-right"] ? [element("p", { class: "small" }, prose(RIGHTS[said["x-right"]]))] : []),
    ...(parameters.length ? [part("Parameters", fields(parameters.map(asField)))] : []),
    ...(said.requestBody ? [bodyOf(api, said.requestBody)] : []),
    part("Answers", answersOf(api, said.responses)),
    ...tryIt(api, { path, method, said, parameters }),
  ]);
}

function consumes(said) {
  return element("p", { class: "notice pending" }, [
    element("strong", {}, ["Consumes. "]),
    `A call will ${said["x-effect"]}.`,
  ]);
}

function withoutWarning(said) {
  // The description begins with the same warning, which has its own box here.
  return said["x-consumes"] ? said.description.replace(/^Consumes: [^.]*\. /, "") : said.description;
}

function part(title, ...children) {
  return element("section", { class: "part" }, [element("h4", {}, [title]), ...children]);
}

function asField({ name, in: place, required, schema, description }) {
  return { name, place, required, schema, description };
}

function fields(all) {
  return element("dl", { class: "fields" }, all.flatMap(({ name, place, required, schema, description }) => [
    element("dt", {}, [
      element("code", {}, [name]),
      ...(place ? [" ", element("span", { class: "muted small" }, [place])] : []),
      ...(required ? [" ", element("span", { class: "required small" }, ["required"])] : []),
    ]),
    element("dd", {}, [
      element("span", { class: "rule" }, [ruleOf(schema)]),
      ...(description ? [" ", ...prose(description)] : []),
    ]),
  ]));
}

function fieldsOf(api, schema) {
  const object = resolved(api, schema);
  return fields(Object.entries(object.properties).map(([name, found]) => {
    const { description, ...field } = resolved(api, found);
    return { name, required: object.required.includes(name), schema: field, description };
  }));
}

function bodyOf(api, body) {
  const medias = mediasOf(body).map(([media, { schema }]) => ({ media, ...resolved(api, schema) }));
  const line = (text) => element("p", { class: "muted small" }, [text]);
  // A text that is described is a body of its own; one that is not is another form of the first.
  const texts = medias.filter(({ type, description }) => type === "string" && description);
  const others = medias.filter((media) => !texts.includes(media));
  const kinds = others.map(({ media }) => media).join(", or ");
  const { type, maxItems, items } = others[0];
  return part(
    "Body",
    ...texts.map((text) => line(`${text.media}: ${text.description} ${ruleOf(text)} Or:`)),
    line(type === "array" ? `${kinds}: up to ${maxItems} objects with` : `${kinds}, with`),
    fieldsOf(api, type === "array" ? items : others[0]),
  );
}

/** Return the answers of an operation, by status. */
export function answersOf(api, responses) {
  return element("div", { class: "answers" }, Object.entries(responses).map(([status, found]) => {
    const answer = resolved(api, found);
    const [[media, content] = []] = Object.entries(answer.content ?? {});
    const examples = Object.entries(content?.examples ?? {});
    if (content?.example !== undefined) examples.push(["example", { value: content.example }]);
    return element("details", {}, [
      element("summary", {}, [
        element("span", { class: `status ${kindOf(status)}` }, [status]),
        element("span", {}, prose(answer.description)),
      ]),
      element("div", { class: "stack inside" }, [
        ...(media ? [element("p", { class: "muted small" }, [Object.keys(answer.content).join(", ")])] : []),
        fields(Object.entries(answer.headers ?? {}).map(([name, header]) => {
          const { description, schema } = resolved(api, header);
          return { name, place: "header", schema, description };
        })),
        ...examples.map(([name, { value }]) => codeBlock(`${name}, an answer ${status}`, pretty(value))),
      ]),
    ]);
  }));
}
